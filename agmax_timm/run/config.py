"""From the command line and YAML files to checked options: every mistake is one line, before anything is built."""
import argparse
import copy
import difflib
from typing import Any, Callable, Dict, List, Optional, Set

import yaml

from ..data.loader import CROP_MODES
from ..data.mixup import MIXUP_MODES
from ..hub import HubError, check_name, check_revision
from .options import train_parser, validate_parser


class OptionError(ValueError):
    """Options that turned out not to fit what was built; the message names the flag, the value and the remedy."""


_AGMAX_OPTIONS = ('agmax_loss', 'agmax_weight', 'agmax_divergence_weight', 'agmax_units', 'agmax_init_std')


def parse_train_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Options of train.py: defaults, then the files of -c in their order, then the command line.

    Exits with status 2 and one line for anything that is unknown, of the wrong type or impossible together.
    """
    parser, declared = train_parser(), train_parser()
    files, _ = _config_parser().parse_known_args(argv)
    for path in files.config:
        parser.set_defaults(**read_config(path, declared))
    args = parser.parse_args(argv)
    del args.config  # what remains is a YAML file of the same run
    args.data_dir = args.data_dir or args.data
    check_train_args(args, declared)
    return args


def parse_validate_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Options of validate.py; `args.explicit` holds the names of those that the command line gives."""
    parser = validate_parser()
    args = parser.parse_args(argv)
    args.explicit = explicit_options(parser, argv)
    args.data_dir = args.data_dir or args.data
    if args.batch_size < 1:
        parser.error(f'--batch-size must be 1 or more, got {args.batch_size}')
    _check_precision(args, parser.error)
    return args


def explicit_options(parser: argparse.ArgumentParser, argv: Optional[List[str]] = None) -> Set[str]:
    """Names of the options that the command line gives, defaults left out."""
    silent = copy.deepcopy(parser)
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    return set(vars(silent.parse_args(argv)))


def read_config(path: str, parser: argparse.ArgumentParser) -> Dict[str, Any]:
    """Options from a YAML file, their names and values checked against those that `parser` declares."""
    try:
        with open(path, encoding='utf-8') as f:
            config = yaml.safe_load(f) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f'--config {path}: {" ".join(str(error).split())}')
    if not isinstance(config, dict):
        parser.error(f'--config {path}: expected lines of "option: value", found a {type(config).__name__}')

    actions = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    options = {}
    for key, value in config.items():
        name = str(key).replace('-', '_')
        if name not in actions:
            nearest = difflib.get_close_matches(name, actions, n=1)
            hint = f', did you mean {nearest[0]}?' if nearest else ''
            parser.error(f"--config {path}: unknown option '{key}'{hint}")
        try:
            options[name] = _convert(actions[name], value)
        except (TypeError, ValueError) as error:
            parser.error(f'--config {path}: {key}: {error}')
    return options


def check_train_args(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse values and combinations that cannot be, by flag, value and remedy; `parser` as declared, without files."""
    error = parser.error
    for flag in ('batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'checkpoint_hist'):
        if getattr(args, flag) < 1:
            error(f'{_flag(flag)} must be 1 or more, got {getattr(args, flag)}')
    for flag in ('mixup', 'cutmix', 'lighting', 'cutout', 'workers'):
        if getattr(args, flag) < 0:
            error(f'{_flag(flag)} must be 0 or more, got {getattr(args, flag)}')
    for flag in ('mixup_prob', 'mixup_switch_prob', 'smoothing', 'hflip', 'vflip', 'reprob'):
        if not 0. <= getattr(args, flag) <= 1.:
            error(f'{_flag(flag)} must be between 0 and 1, got {getattr(args, flag)}')
    if args.eval_metric not in ('loss', 'top1', 'top5'):
        error(f"--eval-metric must be one of loss, top1, top5, got '{args.eval_metric}'")
    if args.train_crop_mode not in (None, *CROP_MODES):
        error(f"--train-crop-mode must be one of {', '.join(CROP_MODES)}, got '{args.train_crop_mode}'")
    if args.no_aug and (args.cutout or args.lighting or args.train_crop_mode == 'pad'):
        error('--no-aug turns augmentation off: drop it, or drop --cutout, --lighting and --train-crop-mode pad')
    _check_mixing(args, error)
    _check_precision(args, error)
    _check_agmax(args, parser)
    _check_hub(args, error)


def mixing(args: argparse.Namespace) -> bool:
    """Whether the options ask for MixUp or CutMix."""
    return args.mixup > 0. or args.cutmix > 0. or args.cutmix_minmax is not None


def _check_mixing(args: argparse.Namespace, error: Callable) -> None:
    if args.mixup_mode not in MIXUP_MODES:
        error(f"--mixup-mode must be one of {', '.join(MIXUP_MODES)}, got '{args.mixup_mode}'")
    if args.cutmix_minmax is not None and len(args.cutmix_minmax) != 2:
        error(f'--cutmix-minmax needs two values, got {len(args.cutmix_minmax)}')
    if mixing(args) and args.batch_size % 2:
        flag = '--mixup' if args.mixup > 0. else '--cutmix'
        size = args.batch_size
        error(f'{flag} needs an even batch, got --batch-size {size}: use {max(2, size - 1)} or {size + 1}')


def _check_precision(args: argparse.Namespace, error: Callable) -> None:
    if args.amp and args.model_dtype not in (None, 'float32'):
        error(f'--amp keeps float32 weights, got --model-dtype {args.model_dtype}: drop one of them')


def _check_agmax(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    error = parser.error
    if not args.agmax:
        for name in _AGMAX_OPTIONS:
            if getattr(args, name) != parser.get_default(name):
                error(f'{_flag(name)} needs --agmax')
        return
    if args.agmax_loss != 'mi' and args.agmax_units is not None:
        error(f'--agmax-units is for --agmax-loss mi alone: {args.agmax_loss} has no Q-network')
    if args.agmax_units is not None and args.agmax_units < 1:
        error(f'--agmax-units must be 1 or more, got {args.agmax_units}')
    if args.agmax_init_std is not None:
        if not args.agmax_init_std > 0.:
            error(f'--agmax-init-std must be above 0, got {args.agmax_init_std}')
        if args.pretrained or args.initial_checkpoint:
            flag = '--pretrained' if args.pretrained else '--initial-checkpoint'
            error(f'--agmax-init-std draws new weights over those of {flag}: drop one of them')
    if args.resplit:
        error('--resplit erases in half of a batch, which with --agmax is one view: drop it')


def _check_hub(args: argparse.Namespace, error: Callable) -> None:
    if not args.push_to_hub:
        for name in ('hub_private', 'hub_revision', 'hub_pr'):
            if getattr(args, name):
                error(f'{_flag(name)} needs --push-to-hub OWNER/NAME')
        return
    for flag, check, value in (('--push-to-hub', check_name, args.push_to_hub),
                               ('--hub-revision', check_revision, args.hub_revision)):
        try:
            check(value)
        except HubError as problem:
            error(f'{flag} {value}: {problem}')
    if args.hub_pr and args.hub_revision not in ('', 'main'):
        error('--hub-pr opens a pull request against main: drop it, or drop --hub-revision')


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-c', '--config', action='append', default=[])
    return parser


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _convert(action: argparse.Action, value: Any) -> Any:
    """A YAML value as the flag's own type."""
    if value is None and (action.default is None or action.default == ''):
        return value
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise ValueError(f'expected true or false, got {value!r}')
        return value
    if action.nargs == '*':
        if not isinstance(value, dict):
            raise ValueError(f'expected lines of "key: value", got {value!r}')
        return value
    if action.nargs in ('+', 3):
        if not isinstance(value, list):
            raise ValueError(f'expected a list, got {value!r}')
        return [_convert_scalar(action, item) for item in value]
    return _convert_scalar(action, value)


def _convert_scalar(action: argparse.Action, value: Any) -> Any:
    kind = action.type or str
    if isinstance(value, (bool, dict, list)) or value is None or (kind is str and not isinstance(value, str)):
        raise ValueError(f'expected {kind.__name__}, got {value!r}')
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f'expected {kind.__name__}, got {value!r}') from None
    if kind is int and converted != float(value):
        raise ValueError(f'expected int, got {value!r}')
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"expected one of {', '.join(map(str, action.choices))}, got {value!r}")
    return converted
