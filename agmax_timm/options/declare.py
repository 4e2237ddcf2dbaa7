"""How an option is declared: one field of a frozen dataclass, with all that other modules need to know about it."""
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from ..base.command_line import flag_of

if sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:
    from typing_extensions import dataclass_transform

T = TypeVar('T')
_declared: dict[type, dict[str, 'Option']] = {}  # results of declared()
# Larger numbers overflow somewhere in torch, numpy or the operating system.
_LARGEST = {int: 2 ** 31 - 1, float: 3.4e38}

# What a checkpoint made with another value of an option means when a run is resumed from it.
RESUME = (
    'refused',  # the tensors of the checkpoint would not fit
    'refused with optimizer',  # unless --no-resume-opt
    'refused within epoch',  # the rest of the epoch would have other samples
    'refused as share',  # a share of the training images would have images that the run has trained on
    'schedule',  # another schedule of the learning rate; the change is logged
    'logged',
    'ignored',  # not compared
)
# How a recipe that is published holds an option: paths of files are reduced to their names.
RECIPE = ('value', 'file name', 'file name or numbers', 'left out')
# What an option decides in an evaluation. Those of the first two are taken from the run that wrote a checkpoint.
EVALUATION = (
    'input',  # the model and its input, which the config.json of a published model says as well
    'labels',  # how images and labels are read
    'precision',  # the last digits
    'compilation',  # the last digits, and speed
    'data',  # which data, and by which loader
    'machine',  # where the data is, and how it is loaded
    '',
)


@dataclass(frozen=True)
class Check:
    """A condition on the value of an option, or on each of several values.

    Attributes:
        words: Text after "must be" in an error message, such as "1 or more".
        holds: Whether a number is valid.
        names: Valid words, None for numbers.
        bounded: Whether `holds` limits the number from above.
    """
    words: str
    holds: Callable[[Any], bool] = lambda value: True
    names: tuple[str, ...] | None = None
    bounded: bool = False


POSITIVE = Check('above 0', lambda value: value > 0)
BELOW_1 = Check('0 or more and below 1', lambda value: 0 <= value < 1, bounded=True)
INSIDE_0_1 = Check('above 0 and below 1', lambda value: 0 < value < 1, bounded=True)


def at_least(least: int) -> Check:
    return Check(f'{least} or more', lambda value: value >= least)


def between(least: float, most: float, unit: str = '') -> Check:
    return Check(f'between {least} and {most}{unit}', lambda value: least <= value <= most, bounded=True)


def above_to(bound: int, most: int, unit: str = '') -> Check:
    return Check(f'above {bound} and at most {most}{unit}', lambda value: bound < value <= most, bounded=True)


def one_of(*names: str) -> Check:
    """Return a check for words that timm or PIL knows. '' among them leaves the choice to the library."""
    listed = ', '.join(filter(None, names)) + (" or ''" if '' in names else '')
    return Check(f'one of {listed}' if len(names) > 1 else listed, names=names)


def any_number(reason: str) -> Check:
    """Return a check for any finite number. The reason says why there is no range."""
    return Check('a number')


@dataclass
class Option:
    """The declaration of an option. Name, kind, number of values and default are those of the field.

    Attributes:
        help: What the option does, as a phrase that can be read alone.
        kind: Type of the value, or of each of several.
        several: Whether the value is a list.
        metavar: Name of the value in the help.
        short: Short flag, such as '-b'.
        alias: Second long flag.
        long: Long flag, if it is not made from the name; '' for a positional argument.
        choices: Valid words.
        check: Condition on the value, for numbers and for words that other libraries define.
        counts: Smallest and largest number of values.
        ascending: Whether several values must be sorted.
        convert: Function from text or a number to the value, in place of the type of the field.
        nargs: Number of values as in argparse, where the type of the field does not say it.
        const: Value of the flag without a value, for nargs '?'.
        exclusive: Name of a set of options of which only one can be given.
        yields: Whether an abbreviation of both this option and one of timm's means timm's.
        needs: Conditions (see has_effect). The option has no effect unless all of them hold.
        requires: Condition. The option is refused unless it holds.
        unless: Options. If one of them is given, this one has no effect.
        kinds: Kinds of data that take the option, see data_kinds.kind_of; empty for all.
        affects_result: Whether the option can change a result. Monitoring, saving, publishing and speed cannot.
        resume: One of RESUME. By default 'ignored' if the option does not affect the result, else 'logged'.
        recipe: One of RECIPE.
        evaluation: One of EVALUATION.
        card: Whether the model card lists the value.
        is_file: Whether the value is the path of a file to be read.
        synonyms: Names in other programs, with '_' for '-'. After a space, the value that the name implies.
        former: Names in earlier versions of timm, accepted in files of options.
    """
    help: str
    name: str = ''
    kind: type = str
    several: bool = False
    default: Any = None
    metavar: str | None = None
    short: str = ''
    alias: str = ''
    long: str | None = None
    choices: tuple[str, ...] | None = None
    check: Check | None = None
    counts: tuple[int, int] | None = None
    ascending: bool = False
    convert: Callable[[Any], Any] | None = None
    nargs: int | str | None = None
    const: str | None = None
    exclusive: str = ''
    yields: bool = False
    needs: tuple[str, ...] = ()
    requires: str = ''
    unless: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    affects_result: bool = True
    resume: str = ''
    recipe: str = 'value'
    evaluation: str = ''
    card: bool = False
    is_file: bool = False
    synonyms: tuple[str, ...] = ()
    former: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """Flags as in argparse; none for a positional argument."""
        return [flag for flag in (self.short, self.long, self.alias) if flag]

    @property
    def flag(self) -> str:
        """Long flag of the option; for a positional argument, the flag of the same name."""
        return self.long or flag_of(self.name)

    def words(self, value: Any) -> list[str]:
        """Return the words of a command line that set the option to a value."""
        if self.kind is bool:
            return [self.flag]
        if isinstance(value, dict):
            return [self.flag, *(f'{key}={item!r}' for key, item in value.items())]
        if isinstance(value, (list, tuple)):
            return [self.flag, *map(str, value)]
        value = str(value)
        return [f'{self.flag}={value}'] if value.startswith('-') else [self.flag, value]


def option(default: Any, help: str, **about: Any) -> Any:
    """Declare an option as a field of a group.

    Args:
        help, **about: Attributes of Option. One condition or option can be given without its tuple.
    """
    about.update({name: (about[name],) for name in ('needs', 'unless') if isinstance(about.get(name), str)})
    about.setdefault('resume', 'logged' if about.get('affects_result', True) else 'ignored')
    value: Any = dict(default_factory=default.copy) if isinstance(default, (list, dict)) else dict(default=default)
    return field(**value, metadata={'option': Option(help, **about)})


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def group(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass of options, without unused methods, which would slow down --help."""
    return dataclass(frozen=True, eq=False, repr=False)(cls)


def declared(options: type) -> dict[str, Option]:
    """Return the options of a group or of all groups of a command, by name, in the order of the help."""
    if options not in _declared:
        _declared[options] = {field.name: _complete(field) for group in groups_of(options) for field in fields(group)
                              if 'option' in field.metadata}
    return _declared[options]


def values(options: Any) -> dict[str, Any]:
    """Return the values of all options of a command by their names."""
    return picked(options, *declared(type(options)))


def by_any_name(options: type) -> dict[str, Option]:
    """Return the options by their names and by those of their second flags, some of which are earlier names."""
    return {name: option for option in declared(options).values() for name in (
        option.name, *(flag[2:].replace('-', '_') for flag in option.flags if flag.startswith('--')))}


def picked(source: Any, *names: str) -> dict[str, Any]:
    """Return some values of options or of a dict by their names, as keyword arguments."""
    return {name: source[name] if isinstance(source, dict) else getattr(source, name) for name in names}


def groups_of(options: type) -> tuple[Any, ...]:
    """Return the groups of a command in the order of the help. For a group, return the group itself."""
    return options.__bases__ if len(options.__bases__) > 1 else (options,)


def has_effect(options: Any, condition: str) -> bool:
    """Test a condition: an option is on ('reprob'), or has one of the values after its name ('sched step poly').

    What the option itself needs must hold too.
    """
    name, *values = condition.split()
    value = getattr(options, name)
    return (value in values if values else bool(value)) and all(
        has_effect(options, needed) for needed in declared(type(options))[name].needs)


def refused(options: Any, group: type) -> Iterator[Option]:
    """Yield the options of a group that differ from their defaults although what they require does not hold."""
    for name, option in declared(group).items():
        if option.requires and getattr(options, name) != option.default and not has_effect(options, option.requires):
            yield option


def _complete(field: Any) -> Option:
    """The declaration of a field, with the name, type and default that the field itself has."""
    kind = field.type
    if isinstance(kind, UnionType):
        kind = next(member for member in get_args(kind) if member is not NoneType)
    several = get_origin(kind) is list
    if several:
        kind, = get_args(kind)
    declaration = field.metadata['option']
    default = field.default if field.default is not MISSING else field.default_factory()
    long = flag_of(field.name) if declaration.long is None else declaration.long
    return replace(declaration, name=field.name, kind=get_origin(kind) or kind, several=several, default=default,
                   long=long)


def problems(options: Any) -> Iterator[str]:
    """Yield one line for each invalid value: the flag, what it must be, and the value."""
    for name, declaration in declared(type(options)).items():
        value = getattr(options, name)
        if value is not None:
            yield from _problems(declaration, value)


def _problems(declaration: Option, value: Any) -> Iterator[str]:
    flag, check = declaration.flag, declaration.check
    if check is not None and check.names is not None:
        if value not in check.names:
            yield f'{flag} must be {check.words}, got {value!r}'
    elif check is not None:
        each = ' each' if declaration.several else ''
        for number in value if declaration.several else (value,):
            if not math.isfinite(number) or not check.holds(number):
                yield f'{flag} must be {check.words}{each}, got {number}'
            if not check.bounded and abs(number) > (largest := _LARGEST[type(number)]):
                yield f'{flag} must be at most {largest}{each}, got {number}'
    if declaration.counts is not None:
        least, most = declaration.counts
        if not least <= len(value) <= most:
            yield f"{flag} needs {'two values' if least == most else 'one value or two'}, got {len(value)}"
    if declaration.ascending and list(value) != sorted(value):
        yield f"{flag} must go from small to large, got {' '.join(map(str, value))}"
