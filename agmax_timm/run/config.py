"""From the command line and YAML files to checked options: every mistake is one line, before anything is built."""
import argparse
import copy
import difflib
from typing import Any, Dict, List, Optional, Set

import yaml

from .checks import check_train_args, check_validate_args, resolve_task
from .combinations import check_combinations
from .options import train_parser, validate_parser


class OptionError(ValueError):
    """Options that turned out not to fit what was built; the message names the flag, the value and the remedy."""


def parse_train_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Options of train.py: defaults, then the files of -c in their order, then the command line.

    Exits with status 2 and one line for anything that is unknown, of the wrong type or impossible together.
    """
    parser, declared = train_parser(), train_parser()
    given = explicit_options(parser, argv)
    for path in _config_parser().parse_known_args(argv)[0].config:
        options = read_config(path, declared)
        parser.set_defaults(**options)
        given.update(options)
    args = parser.parse_args(argv)
    del args.config  # what remains is a YAML file of the same run
    args.data_dir = args.data_dir or args.data
    resolve_task(args, given)
    check_train_args(args, declared)
    check_combinations(args, declared)
    return args


def parse_validate_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Options of validate.py; `args.explicit` holds the names of those that the command line gives."""
    parser = validate_parser()
    args = parser.parse_args(argv)
    args.explicit = explicit_options(parser, argv)
    args.data_dir = args.data_dir or args.data
    check_validate_args(args, parser)
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


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-c', '--config', action='append', default=[])
    return parser


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
