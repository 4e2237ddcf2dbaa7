"""--check-data: read every image once, and print and write all problems of the data. No GPU is needed."""
import csv
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import TextIOWrapper
from typing import NamedTuple, cast

import numpy as np
from timm.data import ImageDataset
from tqdm import tqdm

from ..assembly.datasets import open_split
from ..assembly.known_classes import classes_in, classes_of, map_of_model
from ..assembly.model import create_named_model
from ..assembly.model_input import input_channels
from ..base.atomic_write import replacing
from ..base.errors import DataError
from ..data.sources.checks import (
    check_different,
    check_folders,
    check_labels,
    describe_left_out,
    describe_nested,
    labels_of_model,
)
from ..data.sources.classes import ModelClasses, check_evaluation, class_names, class_outputs, summary
from ..data.sources.labels import check_column
from ..data.sources.scan import Inventory, duplicates, scan
from ..evaluation import bulk
from ..evaluation.evaluated_model import adopt_options
from ..evaluation.metrics import labels_of_data
from ..options.data_kinds import in_sequence, split_name
from ..options.parsers import AnyOptions, TrainOptions, ValidateOptions
from ..options.quantities import share_of
from ..training.output.run_folder import OTHER_OUTPUT, check_writable, resolve_resume, writing
from ..weights.checkpoint import saved_options

MOST_LINES = 10
FILE = 'data-check.csv'


class Problem(NamedTuple):
    """A row of data-check.csv. Without a path, the problem concerns the whole split."""
    split: str
    path: str
    problem: str


def check(options: AnyOptions) -> int:
    """Check both splits of train.py, or the split of validate.py, for the models that the options name.

    Write data-check.csv into the current folder, or into --output of train.py.

    Returns:
        Exit status: 0 without problems, else 1.
    """
    folder, remedy = '', 'run this command in a folder that can be written'
    if isinstance(options, TrainOptions):
        folder, remedy = options.output, OTHER_OUTPUT
    path = os.path.join(folder, FILE)
    cast(TextIOWrapper, sys.stdout).reconfigure(errors='backslashreplace')  # file names may contain any bytes
    with writing(folder, remedy):
        check_writable(folder)  # before all images are read
    options, models = _models(options)
    splits = [options.split] if isinstance(options, ValidateOptions) else [options.train_split, options.val_split]
    problems = check_data(options, list(dict.fromkeys(filter(None, splits))), models)
    with writing(folder, remedy):
        os.makedirs(folder or '.', exist_ok=True)
        with replacing(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:
            writer = csv.writer(f)
            writer.writerow(Problem._fields)
            writer.writerows(problems)
    print(f'{len(problems)} problem(s), see {path}')
    return int(bool(problems))


def check_data(
        options: AnyOptions,
        splits: list[str],
        models: Sequence[ModelClasses] = (),
) -> list[Problem]:
    """Print what each split holds.

    Args:
        models: Classes of the models that are to be evaluated or trained on the data.

    Returns:
        Samples that cannot be decoded, samples with the bytes of another, class folders without an image, classes that
        differ between splits, and classes that a model has at another index.

    Raises:
        DataError: No such data, or data without an index of files.
    """
    datasets = [_open(options, split) for split in splits]
    if len(datasets) == 2 and share_of(splits[1]) is None:
        check_different(*datasets)
    splits = [split_name(vars(options), split) for split in splits]
    print(summary(dict(zip(splits, datasets))))
    inventories = []
    problems: list[Problem] = []
    for split, dataset in zip(splits, datasets):
        inventories.append(_scan(split, dataset, options.workers))
        print('\n'.join(describe(inventories[-1], len(class_names(dataset) or ()))))
        if describe_nested(dataset):
            print(f'  {describe_nested(dataset)}')
        problems += [Problem(split, inventories[-1].path(index), reason)
                     for index, reason in inventories[-1].damaged.items()]
    problems += _class_problems(options, splits, datasets, models)
    copies = list(duplicates(inventories))
    leaks = sum(copy.leak for copy in copies)
    print(f'duplicates: {len(copies) - leaks} within a split, {leaks} across splits')
    problems += [Problem(copy.split, copy.path, f'same bytes as {copy.original} ({copy.original_split})')
                 for copy in copies]
    return problems


def _open(options: AnyOptions, split: str) -> ImageDataset:
    dataset = None if in_sequence(options) else open_split(options, split)
    if not isinstance(dataset, ImageDataset):
        raise DataError(f"--check-data reads folders, tar files and hfds/, got --dataset '{options.dataset}'")
    if options.task != 'multilabel':
        check_column(dataset)
    return dataset


def _scan(split: str, dataset: ImageDataset, workers: int) -> Inventory:
    inventory = Inventory(split, dataset.reader)
    with tqdm(total=len(dataset), desc=split, unit='image', file=sys.stderr, dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:
        for findings in scan(dataset.reader, workers):
            for finding in findings:
                inventory.add(finding)
            bar.update(len(findings))
            bar.set_postfix(damaged=len(inventory.damaged), refresh=False)
    return inventory


def describe(inventory: Inventory, num_classes: int) -> list[str]:
    """Return lines about a split: images, classes, images per class, sizes, modes, first damaged images."""
    counts = [inventory.classes[index] for index in range(num_classes)] or list(inventory.classes.values())
    modes = ', '.join(f'{mode} {count}' for mode, count in inventory.modes.most_common())
    lines = [f'{inventory.split}: {len(inventory.reader)} images, {len(counts)} classes, '
             f'{_spread(counts)} images per class']
    if inventory.widths:
        lines.append(f'  width {_spread(inventory.widths)}, height {_spread(inventory.heights)}')
        lines.append(f'  modes: {modes}; rotated by EXIF: {inventory.rotated}'
                     + (', see --exif-orientation' if inventory.rotated else ''))
    lines.append(f'  damaged: {len(inventory.damaged)}')
    shown = list(inventory.damaged.items())[:MOST_LINES]
    lines += [f'    {inventory.path(index)}: {reason}' for index, reason in shown]
    if len(inventory.damaged) > MOST_LINES:
        lines.append(f'    and {len(inventory.damaged) - MOST_LINES} more')
    return lines


def _spread(values) -> str:
    if not len(values):
        return 'no'
    values = np.asarray(values)
    return f'{values.min()} to {values.max()} (median {np.median(values):g})'


def _models(options: AnyOptions) -> tuple[AnyOptions, list[ModelClasses]]:
    """Return the options, completed by those of a checkpoint, and the classes of the models that they name."""
    if isinstance(options, TrainOptions):
        checkpoint = resolve_resume(options).resume or options.initial_checkpoint
        found = [classes_in(checkpoint)] if checkpoint else []
        if options.pretrained and not checkpoint:
            found.append(_classes_of_name(options))
        if options.kd_model_name and options.kd_distill_type != 'feature':
            teacher = create_named_model(options.kd_model_name, '--kd-model-name', num_classes=options.num_classes)
            found.append(classes_of(teacher, options.kd_model_name))
        return options, [classes for classes in found if classes is not None]
    jobs = bulk.list_jobs(options)
    if jobs is not None:
        found = [classes_in(job.checkpoint) for job in jobs if job.checkpoint]
    elif options.checkpoint:
        options = adopt_options(options, saved_options(options.checkpoint))
        found = [classes_in(options.checkpoint)]
    elif 'model' in options.given:
        found = [_classes_of_name(options)]
    else:
        found = []
    options = replace(options, class_map=map_of_model(options, found[0] if found else None))
    return options, [classes for classes in found if classes is not None]


def _classes_of_name(options: AnyOptions) -> ModelClasses | None:
    """Return the classes of --model without loading its weights."""
    model = create_named_model(
        options.model, num_classes=options.num_classes, in_chans=input_channels(options), global_pool=options.gp,
        **options.model_kwargs)
    return classes_of(model, options.model)


def _class_problems(
        options: AnyOptions,
        splits: list[str],
        datasets: list[ImageDataset],
        models: Sequence[ModelClasses],
) -> list[Problem]:
    """Return problems with folders and classes, which training would refuse or warn about."""
    evaluated = isinstance(options, ValidateOptions)
    problems = [Problem(split, '', problem) for split, dataset in zip(splits, datasets)
                for problem in (*_messages(check_labels, dataset, options.num_classes, evaluated),
                                describe_left_out(dataset), *_model_problems(options, dataset, models)) if problem]
    if not options.class_map:
        empty = [Problem(split, '', problem) for split, dataset in zip(splits, datasets)
                 for problem in _messages(check_folders, dataset, None)]
        differing = _messages(check_folders, *datasets) if len(datasets) == 2 and not empty else []
        problems += empty + [Problem(splits[1], '', problem) for problem in differing]
    for problem in problems:
        print(f'{problem.split}: {problem.problem}')
    return problems


def _model_problems(options: AnyOptions, dataset: ImageDataset, models: Sequence[ModelClasses]) -> list[str]:
    problems = []
    for classes in models:
        outputs = len(classes.names)
        labels = labels_of_data(options, outputs) if isinstance(options, ValidateOptions) else None
        problems += _messages(check_evaluation, classes, class_outputs(dataset, labels), outputs)
        known = labels_of_model(dataset, classes, outputs, labels)
        if known < outputs:  # otherwise the check by --num-classes reports them
            problems += _messages(check_labels, dataset, known, True)
    return problems


def _messages(check: Callable, *args) -> list[str]:
    """Return the error message of a check in a list, which is empty if the check passes."""
    try:
        check(*args)
    except DataError as error:
        return [str(error)]
    return []
