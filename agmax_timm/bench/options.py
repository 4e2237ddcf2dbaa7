"""Flags of the measurements. Imports nothing heavy: --help is fast."""
from typing import Any

from ..base.command_line import Parser, add_pinning_flags
from ..base.processes import cores
from .recipes import RECIPES, SMALL_RECIPES

# What --quick takes instead of the defaults, where a sub-command has the flag.
_QUICK = dict(
    images=8, batch_size=4, img_size=32, repeats=1, num_classes=3, steps=1, model='test_resnet', epochs=3, source='20')

_AT_LEAST = dict(images=1, batch_size=2, img_size=8, repeats=1, num_classes=2, steps=1, epochs=1, workers=0)

_COMMANDS: dict[str, str] = {
    'loader': "views a second of timm's loader with one view, and of both backends with two",
    'small': 'the same for small images, kept in memory',
    'collate': 'two-view MixUp of a batch of uint8 images',
    'step': 'a training step of AgMax against cross-entropy on the same views',
    'objective': "gradients of AgMax's terms against that of the cross-entropy, by images in a batch and classes",
    'training': 'training from files against its parts: decoding, views, steps',
    'run': "a whole run of train.py --agmax against timm's script on the same number of views",
    'memory': 'memory of the loading processes over several epochs',
    'startup': 'seconds from the command to the first training step',
    'index': "timm's index of a folder of images against ours",
}


def parse(argv: list[str] | None = None):
    """The options of one sub-command, its name in `command`."""
    parser = Parser(prog='python -m agmax_timm.bench', description='Measure speed and memory on your own data.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    subparsers = {name: _add(commands, name) for name in _COMMANDS}
    args = parser.parse_args(argv)
    if args.quick:
        known = vars(args)
        subparsers[args.command].set_defaults(**{name: value for name, value in _QUICK.items() if name in known})
        args = parser.parse_args(argv)  # what is on the command line stays
    for name, least in _AT_LEAST.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            flag = f'--{name.replace("_", "-")}'
            subparsers[args.command].error(f'{flag} must be {least} or more, got {value}')
    return args


def _add(commands, name: str) -> Parser:
    parser = commands.add_parser(name, help=_COMMANDS[name], description=_COMMANDS[name].capitalize() + '.')
    _FLAGS[name](parser)
    parser.add_argument('--repeats', type=int, default=dict(memory=1, collate=20, run=3).get(name, 5), metavar='N',
                        help='repetitions, each of all configurations in a shuffled order')
    parser.add_argument('--output', metavar='DIR', help=f'folder for {name}.csv and, with matplotlib, {name}.png')
    parser.add_argument('--quick', action='store_true', help='a short form that shows that it works, not how fast')
    return parser


def _folder(parser: Parser, images: int, batch_size: int, workers: int = 0) -> None:
    _data(parser, batch_size)
    parser.add_argument('--images', type=int, default=images, metavar='N', help='images of it that are read, at most')
    parser.add_argument('-j', '--workers', type=int, default=workers, metavar='N',
                        help=f'loader processes; 0: all in one{"" if workers else ", on one core"}')


def _data(parser: Parser, batch_size: int) -> None:
    parser.add_argument('folder', metavar='DIR', help='folder of images in class folders, or of such splits')
    parser.add_argument('--split', default='train', metavar='NAME', help='split')
    parser.add_argument('-b', '--batch-size', type=int, default=batch_size, metavar='N', help='images in a batch')


def _recipes(parser: Parser, known: dict[str, Any]) -> None:
    parser.add_argument('--recipes', nargs='+', choices=[*known], metavar='NAME',
                        help=f'augmentations, of {", ".join(known)} (default: all)')


def _loader(parser: Parser) -> None:
    _folder(parser, images=1024, batch_size=64)
    _recipes(parser, RECIPES)
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of a view')
    parser.add_argument('--memory', action='store_true', help='also with the images kept decoded in memory')


def _small(parser: Parser) -> None:
    _folder(parser, images=5000, batch_size=128)
    _recipes(parser, SMALL_RECIPES)


def _collate(parser: Parser) -> None:
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of a view')
    parser.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='images in a batch')


def _step(parser: Parser) -> None:
    _network(parser)
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='images; twice as many views')
    parser.add_argument('--num-classes', type=int, default=1000, metavar='N', help='classes')
    parser.add_argument('--steps', type=int, default=10, metavar='N', help='steps in a repetition')


def _objective(parser: Parser) -> None:
    parser.add_argument('-b', '--batch-size', type=int, metavar='N',
                        help='images in a batch, on all GPUs together (default: a table of several)')
    parser.add_argument('--num-classes', type=int, metavar='N', help='classes (default: a table of several)')


def _training(parser: Parser) -> None:
    _folder(parser, images=4096, batch_size=64, workers=cores())
    parser.add_argument('--recipe', default='standard', choices=[*RECIPES], metavar='NAME',
                        help=f'augmentation, of {", ".join(RECIPES)}')
    _network(parser)
    add_pinning_flags(parser.add_mutually_exclusive_group())


def _run(parser: Parser) -> None:
    _data(parser, batch_size=64)
    parser.add_argument('--timm-script', required=True, metavar='FILE', help="train.py of timm's repository")
    parser.add_argument('--model', default='resnet50', metavar='NAME', help="timm's name of a model")
    parser.add_argument('--epochs', type=int, default=1, metavar='N', help="epochs of ours; timm's has twice as many")
    parser.add_argument('-j', '--workers', type=int, default=cores(), metavar='N', help='loader processes')
    _device(parser)
    parser.add_argument('--flags', default='', metavar='"FLAGS"', help='what else both are given, in quotes')


def _network(parser: Parser) -> None:
    parser.add_argument('--model', default='resnet50', metavar='NAME', help="timm's name of a model")
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of a view')
    _device(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='lower precision')
    parser.add_argument('--channels-last', action='store_true', help='channels-last memory')
    parser.add_argument('--torchcompile', action='store_true', help='torch.compile')
    parser.set_defaults(model_dtype=None)


def _device(parser: Parser) -> None:
    parser.add_argument('--device', default='cuda', metavar='DEVICE', help='device; the CPU where there is no CUDA')


def _memory(parser: Parser) -> None:
    _folder(parser, images=4096, batch_size=64)
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of a view')
    parser.add_argument('--epochs', type=int, default=3, metavar='N', help='epochs')
    parser.add_argument('--memory', action='store_true', help='also with the images kept decoded in memory')


def _startup(parser: Parser) -> None:
    pass


def _index(parser: Parser) -> None:
    parser.add_argument('source', nargs='?', default='1000000', metavar='DIR_OR_COUNT',
                        help='folder of class folders, or how many empty files to make in a temporary one')


_FLAGS = dict(loader=_loader, small=_small, collate=_collate, step=_step, objective=_objective, training=_training,
              run=_run, memory=_memory, startup=_startup, index=_index)
