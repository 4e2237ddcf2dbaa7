"""From the command line and YAML files to checked options: every mistake is one line, before anything is built."""
import argparse
import copy
import reprlib
from collections import Counter
from typing import Any, Dict, List, Optional, Set

import yaml

from ..command_line import is_plain, nearest
from .flags.checks import check_train_args, check_validate_args, resolve_task
from .flags.combinations import check_combinations
from .flags.paths import timms_labels
from .options import train_parser, validate_parser

_LONGEST = 100_000  # characters of a file: all options there are take a tenth of it
_SCALARS = tuple(f'tag:yaml.org,2002:{kind}' for kind in ('str', 'int', 'float', 'bool', 'null'))


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
    for name in ('real_labels', 'valid_labels'):
        setattr(args, name, timms_labels(name, getattr(args, name)) or getattr(args, name))
    return args


def validate_options(**given: Any) -> argparse.Namespace:
    """Options of validate.py from a program: the defaults, but for those that are given."""
    args = argparse.Namespace(**{**vars(validate_parser().parse_args([])), **given})
    args.explicit = set(given)
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
        return convert_options(read_mapping(path), parser)
    except ValueError as error:
        parser.error(f'--config {path}: {error}')


def read_mapping(path: str) -> Dict[Any, Any]:
    """The lines of "key: value" of a YAML file of plain values, none where it is empty.

    Raises:
        ValueError: it cannot be read, or is another kind of file.
    """
    try:
        with open(path, encoding='utf-8-sig') as f:
            text = f.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f'longer than {_LONGEST} characters, so not a file of options')
        config = yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError('nested too deeply, so not a file of options') from None
    except OSError as error:
        raise ValueError(error.strerror or error) from error
    except (OverflowError, yaml.YAMLError) as error:
        raise ValueError(error) from error
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise ValueError(f'expected lines of "option: value", found a {type(config).__name__}')
    return config


def convert_options(config: Dict[Any, Any], parser: argparse.ArgumentParser) -> Dict[str, Any]:
    """Options by their names in `parser`, values of its flags' own types.

    Raises:
        ValueError: an option that it does not declare, one that is there twice, or a value that is none of it.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    options = {}
    for key, value in config.items():
        name = reprlib.repr(key) if not isinstance(key, str) else key.replace('-', '_')
        if name not in actions:
            raise ValueError(f"unknown option '{name}'{nearest(name, actions)}")
        if name in options:
            raise ValueError(f'{key} is there twice: drop one of them')
        try:
            options[name] = _convert(actions[name], value)
        except ValueError as error:
            raise ValueError(f'{key}: {error}') from error
    return options


class _Loader(yaml.SafeLoader):
    """YAML of plain values, where a key that is there twice is an error: which of its values was meant?"""

    def flatten_mapping(self, node):
        names = Counter(key.value for key, _ in node.value if key.tag in _SCALARS)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f'{twice[0]!r} is there twice: drop one of them')
        super().flatten_mapping(node)
        if len(node.value) > _LONGEST:  # merged over and over
            raise ValueError('more entries than a file of options has')


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-c', '--config', action='append', default=[])
    return parser


def _convert(action: argparse.Action, value: Any) -> Any:
    """A YAML value as the flag's own type."""
    if value is None and (action.default is None or action.default == ''):
        return action.default
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise _expected('true or false', value)
        return value
    if action.nargs == '*':
        if not isinstance(value, dict) or not is_plain(value):
            raise _expected('lines of "key: value"', value)
        return value
    if action.nargs in ('+', 3):
        if not isinstance(value, list):
            raise _expected('a list', value)
        if action.nargs == 3 and len(value) != 3:
            raise _expected('three values', value)
        if not value and action.default != []:
            raise _expected('one value or more', value)
        return [_convert_scalar(action, item) for item in value]
    return _convert_scalar(action, value)


def _convert_scalar(action: argparse.Action, value: Any) -> Any:
    kind = action.type or str
    if not isinstance(value, (int, float, str)) or isinstance(value, bool) or (
            kind is str and not isinstance(value, str)):
        raise _expected(kind.__name__ + (' in quotes' if kind is str else ''), value)
    try:
        converted = kind(value)
    except (ValueError, OverflowError):
        raise _expected(kind.__name__, value) from None
    if isinstance(value, float) and converted != value and kind is int:
        raise _expected('int', value)
    if action.choices is not None and converted not in action.choices:
        raise _expected(f"one of {', '.join(map(str, action.choices))}", value)
    return converted


def _expected(what: str, value: Any) -> ValueError:
    """Values may be huge: YAML's references make much of little."""
    return ValueError(f'expected {what}, got {reprlib.repr(value)}')
