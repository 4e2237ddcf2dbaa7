"""The published form of a run's options: a recipe for any machine, without names of persons and folders."""
import os
import re
from typing import Any

from .declare import Option, by_any_name
from .parsers import TrainOptions
from .without_effect import reset_idle

# The source that an option may name in front of a folder.
_SOURCE = re.compile(r'(?:local-dir|file):(?://)?|(?:hfds|hfids|tfds|wds|torch)/', re.IGNORECASE)
_ABSOLUTE = re.compile(r'~|[/\\]|[A-Za-z]:[/\\]')
_NAME = r'''[^\s/\\'",;|<>]+'''
_IN_TEXT = re.compile(rf'(?<![\w./\\~])(?<!:(?=//))(?:~|[A-Za-z]:)?[/\\](?:{_NAME}[/\\])*({_NAME})')
_SECRETS = {
    re.compile(r'\bhf_[A-Za-z0-9]{16,}\b'): 'TOKEN',
    re.compile(r'(?<=://)[^/\s@]+@'): '',
    re.compile(r'(bearer\s+|(?:token|key|secret|password)=)[^\s&\'"]+', re.IGNORECASE): r'\1TOKEN',
}


def recipe(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that repeat a run on any machine, as a file for train.py -c.

    Options that are not set are left out, and so are those of the machine, the process and the person. Options with no
    effect have their defaults. Paths of files are reduced to the file name. To repeat the run, put these files into the
    working folder.

    Args:
        options: Options of a run. Options that train.py does not have are left out.
    """
    known = by_any_name(TrainOptions)
    return reset_idle({
        known[name].name: _portable_option(known[name], value) for name, value in sorted(options.items())
        if name in known and known[name].recipe != 'left out' and value is not None})


def portable(value: Any) -> Any:
    """Remove the folders of a machine and secrets from a value of an option, also inside lists and dictionaries.

    An absolute path is reduced to its last name: `hfds//home/ann/birds` becomes `hfds/./birds`.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(portable, value))
    if not isinstance(value, str):
        return value
    match = _SOURCE.match(value)
    source = match[0] if match else ''
    rest = value[len(source):]
    of_data = source.endswith('/') and not source.endswith('//')
    if _ABSOLUTE.match(rest) or (source and (os.path.exists(rest) or not of_data)):
        here = './' if of_data else ''  # without it, the rest would be the name of a data set on the Hub
        return source.removesuffix('//') + here + last_name(rest)
    return redact(value)


def redact(text: str) -> str:
    """Return a text with absolute paths reduced to their last name, and secrets replaced."""
    text = _IN_TEXT.sub(r'\1', text.replace('file://', ''))
    for pattern, replacement in _SECRETS.items():
        text = pattern.sub(replacement, text)
    return text


def last_name(path: str) -> str:
    """Return the last name of a path in the form of any operating system."""
    return re.split(r'[/\\]', path.rstrip('/\\'))[-1]


def _portable_option(option: Option, value: Any) -> Any:
    names_file = option.recipe == 'file name or numbers' and isinstance(value, str) and re.search(r'[/\\]', value)
    if option.recipe == 'file name' or names_file:
        return last_name(value)
    return portable(value)
