"""argparse: methods and attributes with a leading underscore, and how it reads values."""
import argparse
from contextlib import suppress

import pytest


def test_the_actions_of_a_parser():
    """Option files, --help and the names of known flags: base/command_line.py and options/ go through
    ArgumentParser._actions."""
    parser = argparse.ArgumentParser()
    added = [parser.add_argument('-b', '--batch-size', type=int), parser.add_argument_group('g').add_argument('--lr')]
    assert parser._actions[1:] == added
    assert (added[0].dest, added[0].option_strings) == ('batch_size', ['-b', '--batch-size'])


def test_abbreviations_are_found_by_one_method():
    """Abbreviated flags of timm's, such as --check for --checkpoint: Parser in base/command_line.py leaves our own
    flags out of what _get_option_tuples() returns."""
    class OnlyFirst(argparse.ArgumentParser):
        def _get_option_tuples(self, option_string):
            matches = super()._get_option_tuples(option_string)
            return [match for match in matches if match[0].dest != 'check_data']

    for kind, works in (OnlyFirst, True), (argparse.ArgumentParser, False):
        parser = kind(exit_on_error=False)
        parser.add_argument('--checkpoint')
        parser.add_argument('--check-data', action='store_true')
        if works:
            assert parser.parse_args(['--check', 'x']).checkpoint == 'x'
        else:
            with pytest.raises((argparse.ArgumentError, SystemExit)):
                parser.parse_args(['--check', 'x'])


def test_help_texts_come_from_one_method():
    """Defaults in --help: the formatter in base/command_line.py adds them in _get_help_string()."""
    class Shouting(argparse.HelpFormatter):
        def _get_help_string(self, action):
            return action.help.upper()

    parser = argparse.ArgumentParser(formatter_class=Shouting)
    parser.add_argument('--lr', help='learning rate')
    assert 'LEARNING RATE' in parser.format_help()


def test_two_dashes_as_a_value():
    """A flag without its value: Parser.parse_args in base/command_line.py looks for the empty list or the string that
    argparse makes of --flag=--."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--size', nargs='+')
    with suppress(argparse.ArgumentError, SystemExit):  # from a version that refuses it
        assert parser.parse_args(['--size=--']).size in ([], ['--'])


def test_groups_share_a_base_class():
    """Flags that several commands share: functions in base/ and options/ annotate a parser or group by this class."""
    parser = argparse.ArgumentParser()
    for container in parser, parser.add_argument_group(), parser.add_mutually_exclusive_group():
        assert isinstance(container, argparse._ActionsContainer)
