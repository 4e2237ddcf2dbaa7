"""The command line's parser: errors of one line, defaults that say something. Imports nothing heavy: --help is fast."""
import argparse
import os
import sys
from typing import Union

YIELDING = ('check_data',)  # flags of ours that begin as one of timm's does


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Name the defaults that say something."""

    def _get_help_string(self, action: argparse.Action):
        return super()._get_help_string(action) if action.default else action.help


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of all flags before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {message} (--help lists all flags)\n')

    def _get_option_tuples(self, option_string: str):
        """The flags that an abbreviation may stand for: --check is timm's --checkpoint, as it is without ours."""
        matches = super()._get_option_tuples(option_string)
        return [match for match in matches if match[0].dest not in YIELDING] or matches

    def warn(self, message: str) -> None:
        """Tell of an option before there is a log: the first of several processes does."""
        if os.environ.get('RANK', '0') == '0':
            print(f'{self.prog}: warning: {message}', file=sys.stderr)


def flag_of(name: str) -> str:
    """The flag of an option: '--batch-size' of 'batch_size'."""
    return '--' + name.replace('_', '-')


def interval(value: Union[int, str]) -> Union[int, str]:
    """Type of a number of updates, an int, or of seconds, as given: '600s'."""
    text = str(value)
    if text.endswith('s') and float(text[:-1]) > 0.:
        return text
    return int(value)


class KeyValues(argparse.Action):
    """timm.utils.ParseKwargs, imported only where the flag is used."""

    def __call__(self, parser, namespace, values, option_string=None):
        from timm.utils import ParseKwargs
        broken = [value for value in values if value and '=' not in value]
        if broken:
            parser.error(f"{option_string} takes KEY=VALUE, got '{broken[0]}'")
        ParseKwargs(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)
