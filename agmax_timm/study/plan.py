"""Runs of a study, with options that train.py's parser accepts, a folder and a command line."""
import contextlib
import io
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import yaml

from ..base.command_line import flag_of
from ..base.errors import OptionError
from ..base.pipes import print_message
from ..base.text import quoted
from ..options.data_kinds import kind_of
from ..options.declare import declared
from ..options.derived import METRICS, with_given_loss
from ..options.option_file import read_mapping
from ..options.parse import parse_train_args
from ..options.parsers import TrainOptions
from .definition import Level, Study


@dataclass
class Cell:
    """A cell of the results table: the runs that differ only in their seeds."""
    augmentation: str
    setting: str
    method: str
    options: dict[str, Any]
    sources: list[str]
    folder: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Names of augmentation, setting and method."""
        return self.augmentation, self.setting, self.method

    @property
    def group(self) -> str:
        """Names of augmentation and setting."""
        return ', '.join(filter(None, (self.augmentation, self.setting)))

    @property
    def name(self) -> str:
        return ', '.join(filter(None, (self.group, self.method)))

    @property
    def options_path(self) -> str:
        return os.path.join(self.folder, 'options.yaml')

    @property
    def recipe(self) -> str:
        """Text of the recipe file (for -c) of the runs."""
        return ''.join(f'# {source}\n' for source in self.sources) + yaml.safe_dump(
            self.options, default_flow_style=False, sort_keys=False)


@dataclass
class Run:
    """One training run."""
    cell: Cell
    seed: int
    data: str
    options: TrainOptions

    @property
    def name(self) -> str:
        return f'{self.cell.name}, seed {self.seed}'

    @property
    def folder(self) -> str:
        return os.path.join(self.cell.folder, f'seed-{self.seed}')

    @property
    def log_path(self) -> str:
        """File for the output of the process. The log of the run is in its folder."""
        return f'{self.folder}.log'

    def command(self, device: str = '') -> list[str]:
        return [sys.executable, '-m', 'agmax_timm.study.train', *_arguments(
            self.cell, self.seed, self.data, self.cell.options_path), *(['--device', device] if device else [])]


def make_runs(study: Study, data: str, output: str) -> list[Run]:
    """Return the runs of a study, ordered by seed, so that the whole table is filled before the second seed starts.

    Args:
        data: Folder of the data, '' for none.

    Raises:
        OptionError: train.py refuses the options of a run.
    """
    cells = [_cell(study, levels, output)
             for levels in product(study.augmentations, study.settings, study.methods)]
    warnings: dict[str, list[str]] = {}  # names of the cells with a warning
    parsed = [_parse(study, cell, data, warnings) for cell in cells]
    for warning, names in warnings.items():
        print_message(f'warning: {quoted(names, 2)}: {warning}')
    return [Run(cell, seed, data, _with_seed(cell, options, seed))
            for seed in study.seeds for cell, options in zip(cells, parsed)]


def check_unchanged(study: Study, runs: list[Run]) -> None:
    """Raise OptionError if the folder of a run contains a run with other options. Warn of another folder of data."""
    moved = False
    for run in runs:
        path = os.path.join(run.folder, 'args.yaml')
        if not os.path.exists(path):
            continue
        try:
            before = with_given_loss(read_mapping(path))
        except ValueError as error:
            raise OptionError(f"'{path}': {error}: remove '{run.folder}', or give another --output") from error
        trained_on, present = before.get('data_dir') or '', run.options.data_dir or ''
        if not moved and os.path.abspath(str(trained_on)) != os.path.abspath(present):
            moved = True
            print_message(f"warning: '{run.folder}' was trained on the data in '{trained_on}', the study now has "
                          f"'{present}': if these are other images, give another --output")
        for name, option in declared(TrainOptions).items():
            value = getattr(run.options, name)
            if option.affects_result and name in before and before[name] != value:
                raise OptionError(f"'{study.path}': '{run.folder}' was trained with {flag_of(name)} "
                                  f'{before[name]!r}, the study now has {value!r}: remove that folder, or give '
                                  'another --output')


def _cell(study: Study, levels: tuple[Level, Level, Level], output: str) -> Cell:
    options: dict[str, Any] = {}
    for level in (study.base, *levels):
        options.update(level.options)
    augmentation, setting, method = levels
    return Cell(
        augmentation.name,
        setting.name,
        method.name,
        options=options,
        sources=[source for level in (study.base, *levels) for source in level.sources],
        folder=os.path.join(output, *(level.folder for level in levels if level.folder)),
    )


def _parse(study: Study, cell: Cell, data: str, warnings: dict[str, list[str]]) -> TrainOptions:
    """Parse and check the options of a cell as train.py does, with the largest seed. Collect its warnings."""
    stderr = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'options.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(cell.recipe)
        try:
            with contextlib.redirect_stderr(stderr):
                options = parse_train_args(_arguments(cell, max(study.seeds), data, path))
        except SystemExit:
            line = stderr.getvalue().strip().splitlines()[-1]
            message = line.partition('error: ')[2].removesuffix(' (--help lists all flags)')
            raise OptionError(f"'{study.path}': '{cell.name}': {message}") from None
    for line in stderr.getvalue().splitlines():
        if 'warning: ' in line:
            warnings.setdefault(line.partition('warning: ')[2], []).append(cell.name)
    metrics = METRICS[options.task]
    if study.metric not in metrics:
        raise OptionError(f"'{study.path}': metric: must be one of {', '.join(metrics)}, got '{study.metric}'")
    if not options.val_split:
        raise OptionError(f"'{study.path}': '{cell.name}': val_split is '': a study compares metrics of validation "
                          'data')
    if not options.data_dir and kind_of(options) in ('folder', 'tar'):
        raise OptionError(f"'{study.path}': no data: give its folder with --data DIR, or 'dataset: demo' in base")
    return options


def _with_seed(cell: Cell, options: TrainOptions, seed: int) -> TrainOptions:
    """Return the options of a cell with another seed. It is also that of a held-out share, unless the study has one."""
    if options.val_split_seed is not None and cell.options.get('val_split_seed') is None:
        options = replace(options, val_split_seed=seed)
    return replace(options, seed=seed, experiment=f'seed-{seed}')


def _arguments(cell: Cell, seed: int, data: str, options_path: str) -> list[str]:
    """Return the command line of train.py."""
    return [*([data] if data else []), '-c', options_path, '--seed', str(seed), '--output', cell.folder,
            '--experiment', f'seed-{seed}', '--resume', 'auto']
