"""Options of several KEY=VALUE, and values that options in YAML can have."""
import argparse
from typing import Any


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
                parser.error(f"{option_string} '{key}' takes a number, a word, or a list of these, got {value!r}")


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
