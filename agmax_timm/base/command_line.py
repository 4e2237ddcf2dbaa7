"""The parser of every command: errors of one line, defaults as they are typed. Imports neither torch nor timm."""
import argparse
import sys
from typing import NoReturn

from .processes import is_first_process
from .text import nearest, one_line

# Options of other programs that a launcher has, not a command of this package.
_OF_LAUNCHER = {'gpus': 'torchrun --nproc-per-node', 'num_gpus': 'torchrun --nproc-per-node'}


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
            hint = self.did_you_mean(flag) if flag.startswith('-') else ''
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        for action in self._actions:  # argparse takes --flag=-- for no value at all
            if getattr(namespace, action.dest, None) == [] != action.default and action.nargs != '*':
                self.error(f"argument {'/'.join(action.option_strings)}: expected a value, got --")
        return namespace

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {one_line(message)} (--help lists all flags)\n')

    def _get_option_tuples(self, option_string: str):
        """Return the flags that an abbreviation may stand for. --check is timm's --checkpoint, not --check-data.

        A synonym of another flag is no abbreviation of ours: --val-split of validate.py is not --val-split-seed.
        """
        matches = super()._get_option_tuples(option_string)
        timms = [match for match in matches if not getattr(match[0], 'yields', False)]
        name = option_string.partition('=')[0].lstrip('-').replace('-', '_')
        is_synonym = any(name in getattr(action, 'synonyms', ()) for action in self._actions)
        return timms or ([] if is_synonym else matches)

    def did_you_mean(self, name: str) -> str:
        """Return ', did you mean X?' for an unknown flag, or an unknown option of a file; '' if none is similar.

        The attribute `synonyms` of an action has the names of the option in other programs. They are tried first.
        """
        known: list[str] = []
        meant: dict[str, str] = {}  # by synonym
        for action in self._actions:
            names = [flag for flag in action.option_strings if flag.startswith('--')]
            if not name.startswith('-'):
                names = [action.dest] if action.dest not in ('help', 'config') else []
            known += names
            for synonym, _, value in (text.partition(' ') for text in getattr(action, 'synonyms', ()) if names):
                meant.setdefault(synonym, f'{names[0]} {value}'.rstrip())
        hint = {**_OF_LAUNCHER, **meant}.get(name.lstrip('-').replace('-', '_'))
        return f', did you mean {hint}?' if hint else nearest(name, known)

    def warn(self, message: str) -> None:
        """Print a warning about an option, before the log exists. Only the first of several processes prints it."""
        if is_first_process():
            print(f"{self.prog}: warning: {one_line(message)}", file=sys.stderr)


def flag_of(name: str) -> str:
    """Return the flag of an option: '--batch-size' for 'batch_size'."""
    return '--' + name.replace('_', '-')
