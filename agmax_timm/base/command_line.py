"""The parser of every command: errors of one line, defaults as they are typed. Imports neither torch nor timm."""
import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from .text import nearest, one_line

# Options of this package that start like an option of timm. An abbreviation of both stands for that of timm.
YIELDING = ('check_data', 'image_memory', 'corruptions_dir', 'severities', 'stress', 'attack', 'report', 'report_dir',
            'no_pin_mem')


# Options by their names in other programs. The first one that the command has is proposed. A word after the option is
# its value; `torchrun ...` is proposed in place of an option.
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
    """Add to each help text the default, as it is typed. Options without a default describe what happens then."""

    def _get_help_string(self, action: argparse.Action):
        default = default_text(action)
        text = action.help or ''
        return text + f' (default: {default})'.replace('%', '%%') if default else text


def default_text(action: argparse.Action) -> str:
    """Return the default of an option as it is typed on a command line, '' if the option is off or not set."""
    default = action.default
    if default is None or default is False or default == argparse.SUPPRESS:
        return ''
    return ' '.join(map(str, default)) if isinstance(default, (list, tuple, dict)) else str(default)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of all flags."""

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

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {one_line(message)} (--help lists all flags)\n')

    def _get_option_tuples(self, option_string: str):
        """Return the flags that an abbreviation may stand for. --check is timm's --checkpoint, not --check-data."""
        matches = super()._get_option_tuples(option_string)
        return [match for match in matches if match[0].dest not in YIELDING] or matches

    def warn(self, message: str) -> None:
        """Print a warning about an option, before the log exists. Only the first of several processes prints it."""
        if os.environ.get('RANK', '0') == '0':
            print(f"{self.prog}: warning: {one_line(message)}", file=sys.stderr)


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """Add --use-ema and --raw. They set `use_ema` to True or False; None is the weights that the run ranked."""
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


def pinning(args: Any) -> bool | None:
    """Whether the flags ask for pinned memory. None is the default of the device."""
    return False if args.no_pin_mem else args.pin_mem or None


def flag_of(name: str) -> str:
    """Return the flag of an option: '--batch-size' for 'batch_size'."""
    return '--' + name.replace('_', '-')


def interval(value: int | str) -> int | str:
    """Convert an interval: a number of updates to an int; seconds, such as '600s', stay text."""
    number, unit = parse_interval(value)
    return int(number) if unit == 'updates' else str(value)


def parse_interval(value: int | str) -> tuple[int | float, str]:
    """Return the number and the unit, 'updates' or 'seconds', of an interval. Raise ValueError if it is invalid."""
    text = str(value)
    number, unit = (float(text[:-1]), 'seconds') if text.endswith('s') else (int(value), 'updates')
    if not 0 <= number < float('inf') or (unit == 'seconds' and not number):
        raise ValueError
    return number, unit


def memory(value: float | str) -> str:
    """Check an amount of memory: a share of the free memory in [0, 1], or an amount such as '8G' or '500M'."""
    text = str(value)
    amount = text[-1:].upper() in ('G', 'M')
    if not 0. <= float(text[:-1] if amount else text) <= (float('inf') if amount else 1.):
        raise argparse.ArgumentTypeError(f"takes a share in [0, 1], or an amount such as 8G or 500M, got '{value}'")
    return text


def nearest_option(name: str, known: Iterable[str]) -> str:
    """Return ', did you mean X?' for a misspelt flag or option, '' if none is similar. See nearest.

    Names of options in other programs are tried first.
    """
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
        broken = [value for value in values if value and value.find('=') < 1]
        if broken:
            parser.error(f"{option_string} takes KEY=VALUE, got '{broken[0]}'")
        try:
            ParseKwargs(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)
        except (RecursionError, MemoryError, OverflowError):
            parser.error(f'{option_string} has a value that is nested too deeply')
        for key, value in getattr(namespace, self.dest).items():
            if not is_plain(value):
                parser.error(f'{option_string} {key} takes a number, a word, or a list of these, got {value!r}')


def add_dataset_flag(group: Any) -> None:
    """Add --hub-dataset, because a folder does not contain the data's name on the Hub."""
    group.add_argument('--hub-dataset', default='', metavar='OWNER/NAME',
                       help="the training data's name on the Hub, for the model card")


def add_model_flags(parser: Parser) -> None:
    """Add flags for files of weights that do not name their model; see checkpoint.read_model."""
    parser.add_argument('--model', metavar='NAME', help='name in timm, for files that do not say')
    parser.add_argument('--num-classes', type=int, metavar='N', help='outputs, for files that do not say')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='further arguments of the model, for files that do not say')


def is_plain(value: Any) -> bool:
    """Whether a value consists of at most 10,000 numbers, strings, lists and dictionaries, as options in YAML do.

    The number is limited because YAML references can expand a few lines to billions of values.
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
