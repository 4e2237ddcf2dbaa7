"""All options of train.py and of validate.py, in the order of their help, and the parsers of their command lines."""
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ..base.command_line import Parser
from .agmax import AgMax, RememberedPredictions
from .augmentation import Augmentation, Mixing, Resolutions
from .data import DataSet, Input, NaFlex, TrainData, TrainNaFlex, ValidationData, ValidationInput
from .declare import Option, declared, group, groups_of
from .device import TrainDevice, ValidationDevice
from .evaluation import Labels, Results, Robustness
from .key_values import KeyValues
from .loss import Loss, Task
from .model import BatchNorm, Distillation, Ema, TrainModel, ValidationModel
from .optimization import Optimizer, Schedule
from .recipe_files import ListRecipes
from .run import Hub, Run, Tracking


@group
class TrainOptions(
        AgMax, RememberedPredictions, DataSet, TrainData, TrainModel, Input, Augmentation, Mixing, Task, Loss,
        Optimizer, Schedule, Ema, Run, Tracking, Hub, TrainDevice, BatchNorm, Distillation, Resolutions, TrainNaFlex):
    """The options of train.py. Names and defaults are those of timm's script.

    Attributes:
        given: Names of the options that the user gave. Defaults of others may follow from other options.
    """
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)


@group
class ValidateOptions(
        DataSet, ValidationData, ValidationModel, ValidationInput, ValidationDevice, Task, Labels, Robustness, Results,
        NaFlex):
    """The options of validate.py.

    Attributes:
        given: Names of the options that the user gave. Other values may be taken from a checkpoint.
    """
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)


AnyOptions = TrainOptions | ValidateOptions


def saved_train_options(saved: Mapping[str, Any]) -> TrainOptions:
    """Return the options that any version of train.py saved. Unknown ones are dropped, missing ones have defaults."""
    return TrainOptions(**{name: saved[name] for name in declared(TrainOptions) if name in saved})


def train_parser() -> Parser:
    """Return the parser of train.py."""
    parser = Parser(usage='train.py [DIR] [OPTION ...]', description='Train a timm model, with AgMax or without.')
    parser.add_argument('-c', '--config', action='append', default=[], metavar='FILE',
                        help='YAML file of options, or name of a recipe; if repeated, later files override earlier '
                        'ones, and flags override files')
    parser.add_argument('--list-recipes', action=ListRecipes, help='list the recipes that come with the package')
    _add_options(parser, TrainOptions)
    return parser


def validate_parser() -> Parser:
    """Return the parser of validate.py."""
    parser = Parser(usage='validate.py [DIR] [OPTION ...]',
                    description='Evaluate a timm model, a checkpoint of train.py, or many of them.')
    _add_options(parser, ValidateOptions)
    return parser


def _add_options(parser: Parser, options: type) -> None:
    """Add the flags of all groups of a command to a parser."""
    for part in groups_of(options):
        container: Any = parser.add_argument_group((part.__doc__ or '').partition('\n')[0].removesuffix('.'))
        targets = {'': container}
        for declaration in declared(part).values():
            if declaration.exclusive not in targets:
                targets[declaration.exclusive] = container.add_mutually_exclusive_group()
            add_option(targets[declaration.exclusive] if declaration.flags else parser, declaration)


def add_option(container: Any, declaration: Option) -> None:
    """Add the flag of one option to a parser or a group of it."""
    kind = declaration.kind
    if kind is bool:
        arguments: dict[str, Any] = dict(action='store_true')
    else:
        arguments = dict(
            type=declaration.convert or (None if kind in (str, dict) else kind), metavar=declaration.metavar,
            choices=declaration.choices, const=declaration.const,
            nargs=declaration.nargs or ('*' if kind is dict else '+' if declaration.several else None),
            **dict(action=KeyValues) if kind is dict else {})
    if declaration.flags:
        arguments.update(dest=declaration.name)
    action = container.add_argument(
        *(declaration.flags or [declaration.name]), default=declaration.default, help=declaration.help, **arguments)
    action.yields, action.synonyms = declaration.yields, declaration.synonyms
