"""Flags of the bench command. Imports no torch, so that --help is fast."""
from __future__ import annotations

import argparse
from typing import Any

from ..base.command_line import Parser, flag_of
from ..base.processes import cores
from ..options.shared_flags import add_train_flags
from .recipes import RECIPES, SMALL_RECIPES

# Values of --quick, for the sub-commands that have the argument.
_QUICK = dict(images=8, batch_size=4, img_size=32, repeats=1, num_classes=3, steps=1, model='test_resnet', epochs=3,
              source='20', warm=False)

_AT_LEAST = dict(images=1, batch_size=2, img_size=8, repeats=1, num_classes=2, steps=1, epochs=1, workers=0)


def _number(*names: str, **kwargs: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, dict(type=int, metavar='N', **kwargs)


_FLAGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    'folder': (('folder',), dict(metavar='DIR', help='folder with class folders, or with splits')),
    'source': (('source',), dict(
        nargs='?', metavar='DIR_OR_COUNT',
        help='folder of class folders, or number of empty files to create in a temporary folder')),
    'split': (('--split',), dict(metavar='NAME', help='split')),
    'timm_script': (('--timm-script',), dict(
        required=True, metavar='FILE', help="train.py of timm's repository")),
    'batch_size': _number('-b', '--batch-size', help='images in a batch'),
    'images': _number('--images', help='largest number of images to read'),
    'workers': _number('-j', '--workers', help='loader processes; 0: all in one process'),
    'recipes': (('--recipes',), dict(nargs='+', metavar='NAME')),
    'recipe': (('--recipe',), dict(
        choices=[*RECIPES], metavar='NAME', help=f'augmentation, of {", ".join(RECIPES)}')),
    'model': (('--model',), dict(metavar='NAME', help='name of the model in timm')),
    'img_size': _number('--img-size', help='side of a view'),
    'num_classes': _number('--num-classes', help='classes'),
    'steps': _number('--steps', help='steps in a repetition'),
    'epochs': _number('--epochs', help='epochs'),
    'device': (('--device',), dict(metavar='DEVICE', help='device; the CPU is used without CUDA')),
    'amp': (('--amp',), dict(action='store_true', help='automatic mixed precision')),
    'amp_dtype': (('--amp-dtype',), dict(choices=('float16', 'bfloat16'), help='lower precision')),
    'channels_last': (('--channels-last',), dict(action='store_true', help='channels-last memory')),
    'torchcompile': (('--torchcompile',), dict(action='store_true', help='torch.compile')),
    'memory': (('--memory',), dict(action='store_true', help='also with the images kept decoded in memory')),
    'flags': (('--flags',), dict(metavar='"FLAGS"', help='further flags of both scripts, in quotes')),
}


def _recipes(known: dict[str, Any]) -> dict[str, Any]:
    return dict(choices=[*known], help=f'augmentations, of {", ".join(known)} (default: all)')


_NETWORK = dict(model='resnet50', img_size=224, device='cuda', amp=False, amp_dtype='float16', channels_last=False,
                torchcompile=False)

# Help, number of repetitions and flags by sub-command. The value of a flag is its default, or a dict of arguments of
# add_argument that replace those in _FLAGS.
_COMMANDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    'loader': ("views per second of timm's loader with one view, and of both backends with two", 5, dict(
        folder=None, split='train', batch_size=64, images=1024, workers=0, recipes=_recipes(RECIPES), img_size=224,
        memory=False)),
    'small': ('the same for small images, kept in memory', 5, dict(
        folder=None, split='train', batch_size=128, images=5000, workers=0, recipes=_recipes(SMALL_RECIPES))),
    'collate': ('two-view MixUp of a batch of uint8 images', 20, dict(img_size=224, batch_size=128)),
    'step': ('a training step of AgMax against cross-entropy on the same views, and on one view of each image', 5, dict(
        _NETWORK, batch_size=dict(default=64, help='images in a batch; views are twice as many'), num_classes=1000,
        steps=10)),
    'objective': ("gradients of AgMax's terms against that of the cross-entropy, by images in a batch and classes", 5,
                  dict(batch_size=dict(help='images in a batch, on all GPUs together (default: a table of several)'),
                       num_classes=dict(help='classes (default: a table of several)'))),
    'training': ('training from files against its parts: decoding, views, steps', 5, dict(
        folder=None, split='train', batch_size=64, images=4096, workers=cores(), recipe='standard', **_NETWORK)),
    'run': ("a whole run of train.py --agmax against timm's script on as many views", 3, dict(
        folder=None, split='train', batch_size=64, timm_script=None, model='resnet50',
        epochs=dict(default=1, help="epochs of our run; timm's run has twice as many"), workers=cores(), device='cuda',
        flags='')),
    'memory': ('memory of the loading processes over several epochs', 1, dict(
        folder=None, split='train', batch_size=64, images=4096, workers=0, img_size=224, epochs=3, memory=False)),
    'startup': ('seconds from the command to the first training step', 5, {}),
    'index': ("timm's index of a folder of images against ours", 5, dict(source='1000000')),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. `command` is the name of the sub-command, `arguments` those of its function."""
    parser = create_parser()
    args = parser.parse_args(argv)
    if args.quick:
        args.parser.set_defaults(**{name: value for name, value in _QUICK.items() if name in args})
        args = parser.parse_args(argv)  # the command line wins
    for name, least in _AT_LEAST.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            args.parser.error(f'{flag_of(name)} must be {least} or more, got {value:g}')
    args.arguments = {name: value for name, value in vars(args).items()
                      if name not in ('command', 'parser', 'output', 'quick')}
    return args


def create_parser() -> Parser:
    parser = Parser(prog='python -m agmax_timm.bench', description='Measure speed and memory on your own data.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (title, repeats, flags) in _COMMANDS.items():
        _add(commands.add_parser(name, help=title, description=title.capitalize() + '.'), name, repeats, flags)
    return parser


def _add(parser: Parser, name: str, repeats: int, flags: dict[str, Any]) -> None:
    for flag, given in flags.items():
        names, kwargs = _FLAGS[flag]
        parser.add_argument(*names, **kwargs | (given if isinstance(given, dict) else dict(default=given)))
    if name == 'training':
        add_train_flags(parser.add_mutually_exclusive_group(), 'pin_mem', 'no_pin_mem')
    if name == 'startup':
        parser.set_defaults(warm=True)
    parser.add_argument('--repeats', type=int, default=repeats, metavar='N',
                        help='repetitions, each of all configurations in a shuffled order')
    parser.add_argument('--output', metavar='DIR', help=f'folder for {name}.csv and, with matplotlib, {name}.png')
    parser.add_argument('--quick', action='store_true', help='a short test of the command, not of the speed')
    parser.set_defaults(parser=parser)
