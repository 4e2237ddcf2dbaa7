"""The parser of every command: errors of one line, defaults that say something. Imports nothing heavy."""
import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any

from .text import nearest, one_line

# Flags of ours that begin as one of timm's does.
YIELDING = ('check_data', 'image_memory', 'corruptions_dir', 'severities', 'stress', 'attack', 'report', 'report_dir',
            'no_pin_mem')


# Names that other programs give an option, and ours: the first that the command has is proposed. A word after the name
# is its value; `torchrun ...` is proposed in place of an option.
_SYNONYMS = {
    'accumulate': ('grad_accum_steps',),
    'apex_amp': ('amp',),
    'arch': ('model',),
    'architecture': ('model',),
    'auto_augment': ('aa',),
    'autoaugment': ('aa',),
    'bf16': ('amp_dtype bfloat16',),
    'betas': ('opt_betas',),
    'bs': ('batch_size',),
    'ckpt': ('checkpoint', 'initial_checkpoint'),
    'compile': ('torchcompile',),
    'data_path': ('data_dir',),
    'dropout': ('drop',),
    'ema': ('model_ema', 'use_ema'),
    'ema_decay': ('model_ema_decay',),
    'eps': ('opt_eps',),
    'finetune': ('initial_checkpoint',),
    'fp16': ('amp',),
    'gpus': ('num_gpu', 'torchrun --nproc-per-node'),
    'gradient_accumulation_steps': ('grad_accum_steps',),
    'image_size': ('img_size',),
    'imgsz': ('img_size',),
    'label_smoothing': ('smoothing',),
    'learning_rate': ('lr',),
    'lr_scheduler': ('sched',),
    'max_epochs': ('epochs',),
    'max_grad_norm': ('clip_grad',),
    'mixed_precision': ('amp',),
    'name': ('experiment',),
    'native_amp': ('amp',),
    'nb_classes': ('num_classes',),
    'num_epochs': ('epochs',),
    'num_gpus': ('num_gpu', 'torchrun --nproc-per-node'),
    'num_workers': ('workers',),
    'optim': ('opt',),
    'optimizer': ('opt',),
    'output_dir': ('output',),
    'rand_augment': ('aa',),
    'randaugment': ('aa',),
    'random_erase': ('reprob',),
    'random_erasing': ('reprob',),
    'run_name': ('experiment',),
    'save_dir': ('output',),
    'scheduler': ('sched',),
    'tensorboard': ('log_tensorboard',),
    'wandb': ('log_wandb',),
    'wd': ('weight_decay',),
    'weights': ('checkpoint', 'initial_checkpoint'),
}


class _HelpFormatter(argparse.HelpFormatter):
    """Show every default, as it is typed. The help of an option without a default says what happens without it."""

    def _get_help_string(self, action: argparse.Action):
        default = default_text(action)
        text = action.help or ''
        return text + f' (default: {default})'.replace('%', '%%') if default else text


def default_text(action: argparse.Action) -> str:
    """The default of an option as it is typed on a command line, '' if the option is off or not set."""
    default = action.default
    if default is None or default is False or default == argparse.SUPPRESS:
        return ''
    return ' '.join(map(str, default)) if isinstance(default, (list, tuple, dict)) else str(default)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of all flags before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith('-')), unknown[0]).partition('=')[0]
            known = [name for action in self._actions for name in action.option_strings if name.startswith('--')]
            hint = nearest_option(flag, known) if flag.startswith('-') else ''
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        for action in self._actions:  # argparse takes --flag=-- for no value at all
            if getattr(namespace, action.dest, None) == [] != action.default and action.nargs != '*':
                self.error(f"argument {'/'.join(action.option_strings)}: expected a value, got --")
        return namespace

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {one_line(message)} (--help lists all flags)\n')

    def _get_option_tuples(self, option_string: str):
        """The flags that an abbreviation may stand for: --check is timm's --checkpoint, as it is without ours."""
        matches = super()._get_option_tuples(option_string)
        return [match for match in matches if match[0].dest not in YIELDING] or matches

    def warn(self, message: str) -> None:
        """Tell of an option before there is a log: the first of several processes does."""
        if os.environ.get('RANK', '0') == '0':
            print(f"{self.prog}: warning: {one_line(message)}", file=sys.stderr)


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """Add --use-ema and --raw. They set `use_ema` to True or False; None means the weights that the run ranked by."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--use-ema', action='store_true', default=None,
                       help='the EMA of the weights (default: the weights by which the run ranked its checkpoints)')
    group.add_argument('--raw', action='store_false', dest='use_ema', default=None,
                       help='the weights without averaging')


def add_pinning_flags(parser: argparse._ActionsContainer) -> None:
    """Add --pin-mem and --no-pin-mem, as `pin_mem` and `no_pin_mem`."""
    parser.add_argument('--pin-mem', action='store_true',
                        help='batches go to the device from pinned memory (default: where it is CUDA)')
    parser.add_argument('--no-pin-mem', action='store_true',
                        help='they do not: pinned memory cannot be swapped out')


def pinning(args: argparse.Namespace) -> bool | None:
    """Whether the flags ask for pinned memory, None for what is usual on the device."""
    return False if args.no_pin_mem else args.pin_mem or None


def flag_of(name: str) -> str:
    """The flag of an option: '--batch-size' of 'batch_size'."""
    return '--' + name.replace('_', '-')


def interval(value: int | str) -> int | str:
    """Type of a number of updates, an int, or of seconds, as given: '600s'."""
    number, unit = parse_interval(value)
    return int(number) if unit == 'updates' else str(value)


def parse_interval(value: int | str) -> tuple[int | float, str]:
    """The number and the unit, 'updates' or 'seconds', of an interval; raise ValueError where it is none."""
    text = str(value)
    number, unit = (float(text[:-1]), 'seconds') if text.endswith('s') else (int(value), 'updates')
    if not 0 <= number < float('inf') or (unit == 'seconds' and not number):
        raise ValueError
    return number, unit


def memory(value: float | str) -> str:
    """Type of an amount of memory, as given: a share of what is free in [0, 1], or an amount as '8G' or '500M'."""
    text = str(value)
    amount = text[-1:].upper() in ('G', 'M')
    if not 0. <= float(text[:-1] if amount else text) <= (float('inf') if amount else 1.):
        raise argparse.ArgumentTypeError(f"takes a share in [0, 1], or an amount as 8G or 500M, got '{value}'")
    return text


def nearest_option(name: str, known: Iterable[str]) -> str:
    """As nearest, for flags or names of options in a file. Names that other programs use are tried first."""
    known = list(known)
    spelled = {other.lstrip('-').replace('-', '_'): other for other in known}
    for meant in _SYNONYMS.get(name.lstrip('-').replace('-', '_'), ()):
        option, _, rest = meant.partition(' ')
        if option in spelled:
            return f", did you mean {' '.join(filter(None, (spelled[option], rest)))}?"
        if rest.startswith('--'):
            return f', did you mean {meant}?'
    return nearest(name, known)


class KeyValues(argparse.Action):
    """timm.utils.ParseKwargs, imported only where the flag is used."""

    def __call__(self, parser, namespace, values, option_string=None):
        from timm.utils import ParseKwargs
        broken = [value for value in values if value and not value.partition('=')[0] * value.count('=')]
        if broken:
            parser.error(f"{option_string} takes KEY=VALUE, got '{broken[0]}'")
        try:
            ParseKwargs(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)
        except (RecursionError, MemoryError, OverflowError):
            parser.error(f'{option_string} has a value that is nested too deeply')
        for key, value in getattr(namespace, self.dest).items():
            if not is_plain(value):
                parser.error(f'{option_string} {key} takes a number, a word, or lists of such, got {value!r}')


def add_dataset_flag(group: Any) -> None:
    """Add --hub-dataset. The name of the data on the Hub is not known from a folder."""
    group.add_argument('--hub-dataset', default='', metavar='OWNER/NAME',
                       help="the training data's name on the Hub, for the model card")


def add_model_flags(parser: Parser) -> None:
    """Add flags for weights files that do not say which model they hold; see checkpoint.read_model."""
    parser.add_argument('--model', metavar='NAME', help='name in timm, for files that do not say')
    parser.add_argument('--num-classes', type=int, metavar='N', help='outputs, for files that do not say')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='further arguments of the model, for files that do not say')


def is_plain(value: Any) -> bool:
    """Whether it is what a YAML file holds of options: numbers, strings, lists and dictionaries, 10,000 at most in all.

    References can make a file of a few lines mean any number.
    """
    todo, count = [value], 0
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                return False
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            count += len(value)
            if count > 10_000:
                return False
            todo.extend(value)
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            return False
    return True
