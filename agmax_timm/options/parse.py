"""From the command line and YAML files to checked options. Every mistake is reported as one line.

The checks are imported after the command line is parsed, because --help does not need them.
"""
import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..base.command_line import Parser
from ..base.processes import cores
from .data_kinds import DATASETS, kind_of
from .declare import declared
from .parsers import AnyOptions, TrainOptions, ValidateOptions, train_parser, validate_parser

_NOT_GIVEN = object()
_DATA = ('data', 'data_dir')


def parse_train_args(argv: list[str] | None = None) -> TrainOptions:
    """Return the options of train.py. The files of -c override the defaults, and the command line overrides the files.

    Exits with status 2 and one line for an unknown option, an invalid value, or options that exclude each other.
    """
    parser = train_parser()
    on_command_line = given_options(parser, argv)
    from .checks import check_train_args
    from .derived import resolve_defaults
    given: dict[str, Any] = {}
    for path in on_command_line.pop('config', ()):
        _override(given, read_config(path, parser))
    _override(given, on_command_line)
    options = resolve_defaults(_with_data(TrainOptions(**given, given=frozenset(given)), parser))
    _refuse(check_train_args(options), parser)
    _warn(options, parser)
    return options


def parse_validate_args(argv: list[str] | None = None) -> ValidateOptions:
    """Return the options of validate.py. Their attribute `given` has the names on the command line."""
    parser = validate_parser()
    options = _with_data(validate_options(**given_options(parser, argv)), parser)
    from .checks import check_validate_args
    from .paths import timms_labels
    _refuse(check_validate_args(options), parser)
    _warn(options, parser)
    files = {name: timms_labels(name, getattr(options, name)) for name in ('real_labels', 'valid_labels')}
    return replace(options, **{name: path for name, path in files.items() if path})


def _override(given: dict[str, Any], newer: dict[str, Any]) -> None:
    """Update options by newer ones. A newer DIR or --data-dir replaces both, because args.yaml of a run has both."""
    if not newer.keys().isdisjoint(_DATA):
        for name in _DATA:
            given.pop(name, None)
    given.update(newer)


def _refuse(problems: Iterator[str], parser: Parser) -> None:
    """Exit with the first problem, if any."""
    for problem in problems:
        parser.error(problem)


def _warn(options: AnyOptions, parser: Parser) -> None:
    """Warn of options without effect, and of more loader workers than cores."""
    from .without_effect import warn_of_idle
    warn_of_idle(options, parser)
    if options.workers > max(cores(), declared(type(options))['workers'].default):
        parser.warn(f'--workers {options.workers} is more than the {cores()} cores of this process, and may be slower '
                    f'than --workers {cores()}')


def validate_options(**given: Any) -> ValidateOptions:
    """Return options of validate.py for a program. Options that are not given have their defaults."""
    return ValidateOptions(**given, given=frozenset(given))


def given_options(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> dict[str, Any]:
    """Return the options on the command line, without defaults."""
    unset = argparse.Namespace(**{
        action.dest: _NOT_GIVEN for action in parser._actions if action.dest not in ('help', 'config')})
    values = vars(parser.parse_args(argv, unset))
    return {name: value for name, value in values.items()
            if value is not _NOT_GIVEN and (name, value) != ('data', None)}


def read_config(path: str, parser: Parser) -> dict[str, Any]:
    """Return the options in a YAML file. Exit with one line if a name or a value is invalid."""
    from .option_file import convert_options, read_mapping
    from .recipe_files import find_recipe
    try:
        return convert_options(read_mapping(find_recipe(path)), parser, f"--config '{path}': ")
    except ValueError as error:
        parser.error(f"--config '{path}': {error}")


def _with_data(options: Any, parser: Parser) -> Any:
    """Return options whose data_dir is the data. As in timm, train.py prefers --data-dir, and validate.py DIR."""
    data, data_dir = options.data, options.data_dir or options.data
    if data and data != data_dir:
        pair = repr(data), f'--data-dir {data_dir!r}'
        ignored, used = pair if isinstance(options, TrainOptions) else reversed(pair)
        parser.warn(f'{ignored} has no effect with {used}')
        data_dir = data_dir if isinstance(options, TrainOptions) else data
    options = replace(options, data_dir=data_dir)
    kind = kind_of(options)
    if options.dataset and kind in ('folder', 'tar'):
        parser.warn(f"--dataset '{options.dataset}' has no effect, as in timm: the data is a folder or a tar file. For "
                    f"a data set of this name, use 'TYPE/{options.dataset}' with a type of {', '.join(DATASETS)}")
    if data_dir and kind == 'demo':
        parser.warn(f'{data_dir!r} has no effect with --dataset demo, whose images are built in: leave one of them out')
    return options
