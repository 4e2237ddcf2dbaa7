"""Report of a run: read its folder, evaluate its best weights, and write report.html."""
import logging
import os
import shlex
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from timm import utils

from ..assembly import datasets, loaders
from ..assembly import model as build
from ..base.atomic_write import write_text
from ..base.errors import UserError, as_user_error
from ..base.random_state import kept_random_state
from ..base.text import one_line
from ..data.pictures import ToPicture, label_text
from ..options.changed_options import changed_options, train_command
from ..options.data_kinds import split_name
from ..options.parsers import saved_train_options
from ..options.recipe import portable, recipe, redact
from ..weights.card import dataset_of
from ..weights.checkpoint import describe_weights
from ..weights.measured import describe_input
from .page import Report, render
from .run import ReportedRun, RunResults, evaluate_run, read_run

_logger = logging.getLogger('train')

FILE = 'report.html'
_MOST_VIEWS = 8
# Errors in opening and decoding images. PIL raises SyntaxError for damaged PNG files.
_UNREADABLE = (UserError, OSError, EOFError, SyntaxError, tarfile.TarError, Image.DecompressionBombError, MemoryError)


def make_report(
        run_dir: str,
        data_dir: str | None = None,
        device: str = 'cuda',
        workers: int | None = None,
        in_run: bool = False,
        on_batch: Callable[[], None] = lambda: None,
        use_ema: bool | None = None,
        path: str | None = None,
) -> str:
    """Write the report of a run.

    Args:
        data_dir: Folder of the data; None for the run's own.
        device: Device of the evaluation; the CPU is used if there is no CUDA.
        workers: Number of loader processes; None for that of the run.
        in_run: Whether the caller is rank 0 of the run itself, whose device is already set up.
        on_batch: Called after each batch of the evaluation.
        use_ema: Whether to evaluate the EMA of the weights; None for the weights that the run ranked its epochs by.
        path: Path of the page; None for report.html in the folder of the run.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: The best checkpoint does not exist or cannot be read.
        OptionError: The folder has no run, or the model cannot be created.
        DataError: The data does not exist, or is not that of the run.
        OSError: The page cannot be written.
    """
    run = read_run(run_dir, data_dir, use_ema)
    evaluation = evaluate_run(run, device, workers, in_run, on_batch)
    path = path or os.path.join(run_dir, FILE)
    write_text(path, render(_collect(run, evaluation)))
    return path


def report_at_end(run_dir: str, device: str, on_batch: Callable[[], None]) -> None:
    """Write the report of the run of this process. Errors are logged, not raised."""
    try:
        _logger.info(f'Report: {make_report(run_dir, device=device, in_run=True, on_batch=on_batch)}')
    except Exception as error:
        known = as_user_error(error)
        command = shlex.join(['python', '-m', 'agmax_timm.report', run_dir])
        _logger.error(f'Training is complete, but without a report: {one_line(known or error)}; to make it: {command}',
                      exc_info=known is None)


def training_views(
        saved: dict[str, Any],
        data_config: dict[str, Any],
        class_names: list[str] | None = None,
        patch_size: tuple[int, int] | None = None,
) -> list[tuple[list[Image.Image], str]]:
    """Return images of a training batch, each with its views and their labels.

    They are drawn with the seed of the run. Afterwards, the random state of the process on the CPU is as before.

    Args:
        patch_size: Patch size of the model. Without it, a run with the NaFlex loader has no views.

    Raises:
        DataError: The training data does not exist, or is the validation data.
        OptionError: The options do not fit the data.
    """
    if saved['naflex_loader'] and patch_size is None:
        return []
    # Load one batch of one size in this process. Repeated augmentation needs several processes. The batch has twice as
    # many images as are shown, because timm mixes the first image with the last: no two shown images are partners.
    options = replace(
        saved_train_options(saved), workers=0, batch_size=min(saved['batch_size'], 2 * _MOST_VIEWS),
        train_img_sizes=None, aug_repeats=0, use_multi_epochs_loader=False, image_memory='0', dataset_download=False,
        agmax_teacher='none')
    with kept_random_state():
        utils.random_seed(options.seed)
        dataset, _ = datasets.build_datasets(options, data_config)
        loader = loaders.build_train_loader(
            options, dataset, data_config, torch.device('cpu'), build.Precision(), patch_size)
        input, target = next(iter(loader))
    to_picture = ToPicture(data_config, patch_size, options.naflex_patchify_channels_first)
    views = 2 if options.agmax else max(1, options.aug_splits)
    images = len(target) // views
    shown = []
    for first in range(min(images, _MOST_VIEWS)):
        places = range(first, len(target), images)
        labels = dict.fromkeys(label_text(target[i], class_names) for i in places)
        shown.append(([to_picture(input, i) for i in places], ' | '.join(labels)))
    return shown


def _trained(spent: dict[str, str]) -> str:
    speed = f", with {spent['images/s']} images/s in the last epoch" if 'images/s' in spent else ''
    return f"Trained in {spent['wall time']} on {spent['device']}{speed}, until {spent['date']}."


def _collect(run: ReportedRun, evaluation: RunResults | None) -> Report:
    """Gather the content of the page."""
    saved, dataset = run.options, dataset_of(run.options)
    report = Report(
        title=os.path.basename(os.path.abspath(run.folder)),
        about=f"{portable(saved['model'])}{f' on {dataset[1]}' if dataset else ''}"
              f"{', with AgMax' if saved['agmax'] else ''}"
              f"{', with remembered predictions' if saved.get('agmax_teacher') == 'memory' else ''}"
              f", {saved['epochs']} epochs, counted from 0.",
        trained=_trained(run.spent) if run.spent else '',
        headline=_headline(run, evaluation) if evaluation else [],
        notes=_notes(run, evaluation) if evaluation else ['The run has no validation data: nothing was evaluated.'],
        command=train_command(run.given, saved.get('world_size') or 1),
        changed=changed_options(run.given),
        options=recipe(run.given),
        versions=dict(run.metadata.get('versions') or {}),
        curves=run.curves,
        class_names=run.metadata.get('class_names'),
    )
    data_config, patch_size = run.metadata.get('data_config'), None
    if evaluation is not None:
        report.analysis, report.mistakes = evaluation.analysis, evaluation.mistakes
        report.class_names = report.class_names or evaluation.class_names
        data_config, patch_size = evaluation.subject.data_config, evaluation.subject.patch_size
    try:
        if data_config:
            report.views = training_views(saved, data_config, report.class_names, patch_size)
    except _UNREADABLE as error:
        report.notes.append(f'No training images are shown: {redact(one_line(as_user_error(error) or error))}')
    return report


def _headline(run: ReportedRun, evaluation: RunResults) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page by title. The metric of the task is first, see RunResults.values."""
    epoch = [] if run.epoch is None else [('best epoch', str(run.epoch))]
    first, *others = evaluation.values.items()
    return [first, *epoch, *others, ('images', f'{evaluation.images:,}'),
            ('parameters', f'{evaluation.subject.param_count / 1e6:.2f} M')]


def _notes(run: ReportedRun, evaluation: RunResults) -> list[str]:
    measured = ', '.join(f'{name} {value:.4g}' for name, value in evaluation.shown(run.metrics).items())
    return [f'Measured with {os.path.basename(run.checkpoint)}, {describe_weights(run.options, run.use_ema)}, on the '
            f"split {split_name(run.options, portable(run.options['val_split']))}, "
            f'{describe_input(run.options, evaluation.subject.data_config)}.',
            *([f'Metrics of these weights in training: {measured}.'] if measured else [])]
