"""Option files: lines of "option: value" in YAML. Each value has the type of its option."""
import argparse
import re
import reprlib
from collections import Counter
from typing import Any

import yaml

from ..base.command_line import Parser
from ..base.text_file import read_text
from .declare import Option, by_any_name
from .former_names import with_todays_names
from .key_values import is_plain
from .parsers import TrainOptions

_LONGEST = 100_000  # characters of a file; a file of all options has a tenth
_EXPONENTIAL = re.compile(r'[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+')
_SCALARS = tuple(f'tag:yaml.org,2002:{kind}' for kind in ('str', 'int', 'float', 'bool', 'null'))


def read_mapping(path: str) -> dict[Any, Any]:
    """Return the lines "key: value" of a YAML file of plain values. Empty for an empty file.

    Raises:
        ValueError: The file cannot be read, or has another content.
    """
    try:
        text = read_text(path, _LONGEST + 1)
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


def convert_options(config: dict[Any, Any], parser: Parser, where: str = '') -> dict[str, Any]:
    """Convert the keys and values of a file to options of train.py. Warn of names that timm no longer has.

    Args:
        where: Start of the warnings, such as the path of the file.

    Raises:
        ValueError: An option is unknown, is given twice, or has an invalid value.
    """
    known, options = by_any_name(TrainOptions), {}
    for key, value in with_todays_names(config, lambda line: parser.warn(where + line)).items():
        name = reprlib.repr(key) if not isinstance(key, str) else key.replace('-', '_')
        if name not in known:
            raise ValueError(f"unknown option '{name}'{parser.did_you_mean(name)}")
        option = known[name]
        if option.name in options:
            raise ValueError(f"'{key}' occurs twice: drop one of them")
        try:
            options[option.name] = _convert(option, value)
        except ValueError as error:
            raise ValueError(f"'{key}': {error}") from error
    return options


def as_yaml(value: Any) -> str:
    """Return the value of an option as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=1e9).replace('\n...', '').strip()


class _Loader(yaml.SafeLoader):
    """A loader of plain values. A key that occurs twice is an error, because one of its values would be ignored."""

    def flatten_mapping(self, node):
        names = Counter(key.value for key, _ in node.value if key.tag in _SCALARS)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f'{twice[0]!r} occurs twice: drop one of them')
        super().flatten_mapping(node)
        if len(node.value) > _LONGEST:  # by repeated merge keys
            raise ValueError('more entries than a file of options has')


def _convert(option: Option, value: Any) -> Any:
    """Convert a YAML value to the type of an option."""
    if value is None and (option.default is None or option.default == ''):
        return option.default
    if option.kind is bool:
        if not isinstance(value, bool):
            raise _expected('true or false', value)
        return value
    if option.kind is dict:
        if not isinstance(value, dict) or not is_plain(value):
            raise _expected('lines of "key: value"', value)
        return _with_numbers(value)
    if option.several:
        if not isinstance(value, list):
            raise _expected('a list', value)
        if option.nargs == 3 and len(value) != 3:
            raise _expected('three values', value)
        if not value and option.default != []:
            raise _expected('one value or more', value)
        return [_convert_scalar(option, item) for item in value]
    return _convert_scalar(option, value)


def _with_numbers(value: Any) -> Any:
    """Return a nested value in which 1e-8 is a number, as on the command line. YAML takes it for a word."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENTIAL.fullmatch(value) else value


def _convert_scalar(option: Option, value: Any) -> Any:
    kind: Any = option.convert or option.kind
    if not isinstance(value, (int, float, str)) or isinstance(value, bool) or (
            kind is str and not isinstance(value, str)):
        raise _expected(kind.__name__ + (' in quotes' if kind is str else ''), value)
    try:
        converted = kind(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    except (ValueError, OverflowError):
        raise _expected(kind.__name__, value) from None
    if isinstance(value, float) and isinstance(converted, int) and converted != value:
        raise _expected(kind.__name__, value)
    if option.choices is not None and converted not in option.choices:
        raise _expected(f"one of {', '.join(option.choices)}", value)
    return converted


def _expected(what: str, value: Any) -> ValueError:
    """Return an error that shows the beginning of the value, because YAML references can expand to huge values."""
    return ValueError(f'expected {what}, got {reprlib.repr(value)}')
