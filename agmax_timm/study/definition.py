"""Definition of a study, read from its file. docs/studies.md describes the format."""
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..base.command_line import Parser
from ..base.errors import OptionError
from ..base.text import nearest, quoted
from ..options.option_file import convert_options, read_mapping
from ..options.parsers import train_parser
from ..options.recipe_files import find_recipe
from .published import Published, read_published

_KEYS = ('title', 'data', 'base', 'augmentations', 'settings', 'methods', 'seeds', 'baseline', 'comparisons',
         'metric', 'epoch', 'published')
_EPOCHS = ('last', 'best')
# Options that a run of a study cannot set, and the key, flag or command to use instead.
_NOT_OF_RUNS = {'data': 'data', 'data_dir': 'data', 'seed': 'seeds', 'output': '--output', 'experiment': '--output',
                'resume': '--output', 'dry_run': '--dry-run', 'check_data': 'train.py --check-data',
                'push_to_hub': 'agmax_timm.publish', 'wandb_resume_id': 'another --output to begin anew',
                'start_epoch': 'another --output to begin anew', 'no_resume_opt': 'another --output to begin anew'}


@dataclass
class Level:
    """One value of an axis of the study: a name and its options."""
    name: str = ''
    options: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)  # recipe files and inline options, as text

    @property
    def folder(self) -> str:
        """Name of the folder of the level."""
        return re.sub(r'[^\w.]+', '-', self.name.lower()).strip('-.')


@dataclass
class Study:
    """Definition of a study. An axis that is missing in the file has one level without a name."""
    path: str
    title: str
    data: str  # data folder, '' for none
    base: Level
    augmentations: list[Level]
    settings: list[Level]
    methods: list[Level]
    seeds: list[int]
    baseline: str  # name of a method
    comparisons: list[tuple[str, str]]  # pairs of methods; results are first minus second
    metric: str
    epoch: str  # last or best
    published: Published  # empty without a file

    @property
    def decimals(self) -> int:
        """Number of decimals of the metric in tables and figures: two for percentages."""
        return 4 if self.metric == 'loss' else 2

    @property
    def metric_title(self) -> str:
        return f'{self.metric} (smaller is better)' if self.metric == 'loss' else self.metric


def read_study(path: str) -> Study:
    """Read STUDY.yaml. Paths in the file are relative to its folder.

    Raises:
        OptionError: The file or a recipe that it names has an invalid entry.
    """
    try:
        return _read(path)
    except ValueError as error:
        raise OptionError(f"'{path}': {error}") from error


def _read(path: str) -> Study:
    content = read_mapping(path)
    for key in content:
        if key not in _KEYS:
            raise OptionError(f"unknown key '{key}'{nearest(str(key), _KEYS)}: there are {', '.join(_KEYS)}")
    home, parser = os.path.dirname(path), train_parser()
    axes = {axis: _axis(content, f'{axis}s', home, parser) for axis in ('augmentation', 'setting', 'method')}
    if axes['method'] == [Level()]:
        raise OptionError('no methods: name at least one, as in "methods: {agmax: {agmax: true}}"')
    names = {axis: [level.name for level in levels] for axis, levels in axes.items()}
    methods = names['method']
    study = Study(
        path=path,
        title=_text(content, 'title') or os.path.splitext(os.path.basename(path))[0],
        data=_path(content, 'data', home),
        base=_level('base', '', content.get('base'), home, parser),
        augmentations=axes['augmentation'],
        settings=axes['setting'],
        methods=axes['method'],
        seeds=_seeds(content.get('seeds', [0])),
        baseline=_text(content, 'baseline') or methods[0],
        comparisons=_comparisons(content.get('comparisons', []), methods),
        metric=_text(content, 'metric') or 'top1',
        epoch=_text(content, 'epoch') or _EPOCHS[0],
        published=read_published(_path(content, 'published', home), names),
    )
    if study.baseline not in methods:
        raise OptionError(f"baseline: '{study.baseline}' is not a method{nearest(study.baseline, methods)}: "
                          f"there are {quoted(methods, len(methods))}")
    if study.epoch not in _EPOCHS:
        raise OptionError(f"epoch: must be {' or '.join(_EPOCHS)}, got '{study.epoch}'")
    return study


def _axis(content: dict[str, Any], section: str, home: str, parser: Parser) -> list[Level]:
    if section not in content:
        return [Level()]
    values = content[section]
    if not isinstance(values, dict) or not values:
        raise OptionError(f"{section}: expected lines of 'name: options', one or more, got {values!r:.60}")
    for name in values:
        if name is None or isinstance(name, bool):
            raise OptionError(f"{section}: YAML reads a name as {name}: put it in quotes, such as 'on'")
    levels = [_level(f"{section}: '{name}'", str(name), value, home, parser) for name, value in values.items()]
    folders: dict[str, str] = {}
    for level in levels:
        if not level.folder or len(level.folder) > 100:
            raise OptionError(f"{section}: '{level.name:.120}' cannot be the name of a folder: use letters and digits, "
                              '100 at most')
        if level.folder in folders:
            raise OptionError(f"{section}: '{level.name}' and '{folders[level.folder]}' would have the same folder, "
                              f"'{level.folder}': rename one")
        folders[level.folder] = level.name
    return levels


def _level(where: str, name: str, value: Any, home: str, parser: Parser) -> Level:
    """Return a level with the options of a recipe file, of a mapping, or of a list of both. Later ones win."""
    level, parts = Level(name), [] if value is None else value
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, str):
            source, path = part, os.path.normpath(os.path.join(home, part))
            with suppress(OptionError):  # a missing file is reported below, by its path
                path = path if os.path.isfile(path) else find_recipe(part)
        elif isinstance(part, dict):
            source, path = ', '.join(f'{key}: {option}' for key, option in part.items()), ''
        else:
            raise OptionError(f'{where}: expected the path of a recipe, or "option: value", got {part!r:.60}')
        try:
            options = convert_options(read_mapping(path) if path else part, parser)
        except ValueError as error:
            raise OptionError(f"{where}: {f'{path!r}: ' if path else ''}{error}") from error
        for option in options:
            if option in _NOT_OF_RUNS:
                raise OptionError(f"{where}: '{option}' cannot be an option of single runs: use "
                                  f'{_NOT_OF_RUNS[option]}')
        level.options.update(options)
        level.sources.append(source)
    return level


def _seeds(value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise OptionError(f'seeds: expected a list of one number or more, as [0, 1, 2], got {value!r:.60}')
    for seed in value:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise OptionError(f'seeds: expected whole numbers from 0 on, got {seed!r:.60}')
        if value.count(seed) > 1:
            raise OptionError(f'seeds: {seed} occurs twice: drop one of them')
    return value


def _comparisons(value: Any, methods: list[str]) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise OptionError(
            f'comparisons: expected a list of pairs of methods, as [[AgMax, baseline]], got {value!r:.60}')
    pairs = [(str(method), str(other)) for method, other in value]
    for name in (name for pair in pairs for name in pair):
        if name not in methods:
            raise OptionError(f"comparisons: '{name}' is not a method{nearest(name, methods)}: "
                              f"there are {quoted(methods, len(methods))}")
    return pairs


def _text(content: dict[str, Any], section: str) -> str:
    value = content.get(section)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise OptionError(f"{section}: expected a name, got {value!r:.60}")
    return '' if value is None else str(value)


def _path(content: dict[str, Any], section: str, home: str) -> str:
    value = content.get(section)
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{section}: expected a path, got {value!r:.60}")
    return os.path.normpath(os.path.join(home, value)) if value else ''
