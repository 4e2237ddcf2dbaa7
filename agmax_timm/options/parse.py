"""From the command line and YAML files to checked options: every mistake is one line, before anything is built."""
import argparse
import copy
from typing import Any

from ..base.command_line import Parser
from .checks import check_train_args, check_validate_args, resolve_task
from .combinations import check_combinations
from .option_file import convert_options, read_mapping
from .parsers import train_parser, validate_parser
from .paths import timms_labels
from .without_effect import warn_of_idle


def parse_train_args(argv: list[str] | None = None) -> argparse.Namespace:
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
    _resolve_data(args, declared)
    resolve_task(args, given)
    check_train_args(args, declared)
    check_combinations(args, declared)
    warn_of_idle(args, declared, training=True)
    return args


def parse_validate_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of validate.py; `args.explicit` holds the names of those that the command line gives."""
    parser = validate_parser()
    args = parser.parse_args(argv)
    args.explicit = explicit_options(parser, argv)
    _resolve_data(args, parser)
    check_validate_args(args, parser)
    warn_of_idle(args, parser, training=False)
    for name in ('real_labels', 'valid_labels'):
        setattr(args, name, timms_labels(name, getattr(args, name)) or getattr(args, name))
    return args


def validate_options(**given: Any) -> argparse.Namespace:
    """Options of validate.py from a program: the defaults, but for those that are given."""
    args = argparse.Namespace(**{**vars(validate_parser().parse_args([])), **given})
    args.explicit = set(given)
    return args


def explicit_options(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> set[str]:
    """Names of the options that the command line gives, defaults left out."""
    silent = copy.deepcopy(parser)
    silent.print_help = parser.print_help  # with the defaults
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    return set(vars(silent.parse_args(argv)))


def read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options from a YAML file, their names and values checked against those that `parser` declares."""
    try:
        return convert_options(read_mapping(path), parser, f'--config {path}: ')
    except ValueError as error:
        parser.error(f'--config {path}: {error}')


def _resolve_data(args: argparse.Namespace, parser: Parser) -> None:
    """Take the data from --data-dir, or else from DIR, as timm does. An option file may have set one of them."""
    if args.data and args.data_dir and args.data != args.data_dir:
        parser.warn(f'{args.data!r} has no effect with --data-dir {args.data_dir!r}')
    args.data_dir = args.data_dir or args.data


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-c', '--config', action='append', default=[])
    return parser
