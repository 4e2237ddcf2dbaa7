"""Report of a run: read its folder, evaluate its best weights, and write report.html."""
import logging
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from timm import utils

from ..assembly import datasets, loaders
from ..assembly import model as build
from ..base import atomic_write
from ..base.errors import DataError, OptionError, as_user_error
from ..base.text import one_line
from ..data.pictures import ToPicture, label_text
from ..data.sources.classes import MovedClassError, class_names, summary
from ..evaluation.analysis import Analysis
from ..evaluation.evaluate import outputs_of
from ..evaluation.evaluated_model import EvaluatedModel, build_loader, open_split, prepare
from ..evaluation.log import log_steps
from ..evaluation.metrics import create_evaluator, set_targets
from ..evaluation.outcomes import Mistake, Outcomes
from ..options import timm_names
from ..options.changed_options import changed_options, train_command
from ..options.data_kinds import split_name
from ..options.declare import declared
from ..options.parse import read_config, validate_options
from ..options.parsers import ValidateOptions, saved_train_options, train_parser
from ..options.recipe import portable, recipe, redact
from ..training.output import log, run_folder
from ..weights.card import dataset_of
from ..weights.checkpoint import choose_ema, describe_weights, find_file, saved_metadata, saved_options
from ..weights.measured import describe_input
from .page import Report, render

_logger = logging.getLogger('train')

FILE = 'report.html'
_MOST_VIEWS = 8


@dataclass
class _Run:
    """Content of the folder of a run."""
    folder: str
    given: dict[str, Any]  # options of args.yaml
    options: dict[str, Any]  # options of the best checkpoint, completed by defaults
    checkpoint: str
    metadata: dict[str, Any]  # metadata of the checkpoint
    use_ema: bool
    metrics: dict[str, float]  # metrics of the weights during training; empty if there are none


@dataclass
class _Evaluation:
    """Results of the best weights on the validation data."""
    metrics: dict[str, float]
    images: int
    subject: EvaluatedModel
    class_names: list[str] | None
    analysis: Analysis | None = None  # only for one class per image
    mistakes: list[tuple[Mistake, str]] = field(default_factory=list)  # with file names


def make_report(
        run_dir: str,
        data_dir: str | None = None,
        device: str = 'cuda',
        workers: int | None = None,
        in_run: bool = False,
        on_batch: Callable[[], None] = lambda: None,
        use_ema: bool | None = None,
) -> str:
    """Write report.html into the folder of a run.

    Args:
        data_dir: Folder of the data; None for the run's own.
        device: Device of the evaluation; the CPU is used if there is no CUDA.
        workers: Number of loader processes; None for that of the run.
        in_run: Whether the caller is rank 0 of the run itself, whose device is already set up.
        on_batch: Called after each batch of the evaluation.
        use_ema: Whether to evaluate the EMA of the weights; None for the weights that the run ranked its epochs by.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: The best checkpoint does not exist or cannot be read.
        OptionError: The folder has no run, or the model cannot be created.
        DataError: The data does not exist, or is not that of the run.
        OSError: The page cannot be written.
    """
    run = _read_run(run_dir, data_dir, use_ema)
    options = _evaluation_options(run, device, workers)
    if not in_run:
        timm_names.check_device(device)
    evaluation_device = torch.device(device) if in_run else build.init_device(device, single_process=True)
    evaluation = _evaluate(options, evaluation_device, on_batch) if run.options['val_split'] else None
    if evaluation is not None:
        _check_measured(run, evaluation)
    text = render(_collect(run, evaluation, evaluation_device))
    path = os.path.join(run_dir, FILE)
    with atomic_write.replacing(path, 'w', encoding='utf-8', errors='backslashreplace') as f:  # any bytes in names
        f.write(text)
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


def _curves(summary: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the curves of a summary.csv; none if the file is missing or damaged."""
    try:
        return log.read_curves(summary) if os.path.isfile(summary) else {}
    except (ValueError, KeyError, TypeError) as error:
        _logger.warning(f'{summary} is damaged, the page is without curves: {one_line(error)}')
        return {}


def _read_run(run_dir: str, data_dir: str | None, use_ema: bool | None) -> _Run:
    path = os.path.join(run_dir, 'args.yaml')
    if not os.path.isfile(path):
        raise OptionError(f'{run_dir} is no folder of a run: it has no args.yaml')
    given, checkpoint = read_config(path, train_parser()), find_file(run_dir)
    options = {**vars(train_parser().parse_args([])), **saved_options(checkpoint)}
    if data_dir is not None:
        options['data_dir'] = data_dir
    use_ema = choose_ema(options, use_ema)
    _logger.info(f'{checkpoint}: {describe_weights(options, use_ema)}')
    metadata = saved_metadata(checkpoint)
    metrics = (metadata.get('metrics') or {}).get('ema' if use_ema else 'raw') or {}
    return _Run(run_dir, given, options, checkpoint, metadata, use_ema, metrics)


def _evaluation_options(run: _Run, device: str, workers: int | None) -> ValidateOptions:
    saved = run.options
    options = {name: saved[name] for name, option in declared(ValidateOptions).items()
               if option.evaluation in ('data', 'machine', 'precision') and name in saved}
    if workers is not None:
        options['workers'] = workers
    return validate_options(
        **options, checkpoint=run.checkpoint, use_ema=run.use_ema, split=saved['val_split'],
        num_samples=saved['val_num_samples'], device=device)


@torch.inference_mode()
def _evaluate(options: ValidateOptions, device: torch.device, on_batch: Callable[[], None]) -> _Evaluation:
    """Evaluate the checkpoint as validate.py does, and analyse the predictions."""
    subject = prepare(options, device)
    options = subject.options
    dataset = open_split(options, subject.data_config)
    _logger.info(summary({split_name(vars(options), options.split): dataset}))
    try:
        set_targets(options, dataset, subject.num_classes, subject.classes)
    except MovedClassError as error:
        raise DataError(f'{error}: give the data of the run, with the classes that it had') from error
    loader = build_loader(subject, dataset)
    evaluator = create_evaluator(options, dataset, loader, subject.num_classes, device)
    to_picture = ToPicture(subject.data_config, subject.patch_size, options.naflex_patchify_channels_first)
    outcomes = Outcomes(to_picture) if options.task == 'classification' else None
    outputs, images = outputs_of(subject.model, loader, options, device, subject.precision), 0
    for index, (input, output, target) in enumerate(outputs):
        images += len(output)
        evaluator.update(output, target)
        if outcomes is not None:
            outcomes.update(input, output, target)
        if index % options.log_freq == 0:
            log_steps('Report')(index, len(loader), evaluator.summary())
        on_batch()
    evaluation = _Evaluation(evaluator.compute(), images, subject, class_names(dataset))
    if outcomes is not None:
        evaluation.analysis = outcomes.analyse(subject.num_classes)
        evaluation.mistakes = [(mistake, _file_name(dataset, mistake.index)) for mistake in outcomes.mistakes]
    return evaluation


def _file_name(dataset: Any, index: int) -> str:
    """Return the name of a file of the data, or '' if samples have no names or no order."""
    try:
        return dataset.reader.filename(index)
    except (AttributeError, AssertionError, NotImplementedError):
        return ''


def training_views(
        saved: dict[str, Any],
        data_config: dict[str, Any],
        device: torch.device,
        class_names: list[str] | None = None,
        patch_size: tuple[int, int] | None = None,
) -> list[tuple[list[Image.Image], str]]:
    """Return images of a training batch, each with its views and their labels.

    Args:
        saved: Options of the run.
        data_config: Input size and normalisation.
        patch_size: Patch size of the model. Without it, a run with the NaFlex loader has no views.

    Raises:
        DataError: The training data does not exist, or is the validation data.
        OptionError: The options do not fit the data.
    """
    if saved['naflex_loader'] and patch_size is None:
        return []
    # Load one batch of one size in this process. Repeated augmentation needs several processes.
    options = replace(
        saved_train_options(saved), workers=0, batch_size=min(saved['batch_size'], 2 * _MOST_VIEWS),
        train_img_sizes=None, aug_repeats=0, use_multi_epochs_loader=False, image_memory='0', dataset_download=False)
    utils.random_seed(options.seed)
    dataset, _ = datasets.build_datasets(options, data_config)
    loader = loaders.build_train_loader(options, dataset, data_config, device, build.Precision(), patch_size)
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


def _collect(run: _Run, evaluation: _Evaluation | None, device: torch.device) -> Report:
    """Gather the content of the page."""
    saved, dataset = run.options, dataset_of(run.options)
    report = Report(
        title=os.path.basename(os.path.abspath(run.folder)),
        about=f"{portable(saved['model'])}{f' on {dataset[1]}' if dataset else ''}"
              f"{', with AgMax' if saved['agmax'] else ''}, {saved['epochs']} epochs.",
        headline=_headline(evaluation) if evaluation else [],
        notes=_notes(run, evaluation) if evaluation else ['The run has no validation data: nothing was evaluated.'],
        command=train_command(run.given, saved.get('world_size') or 1),
        changed=changed_options(run.given),
        options=recipe(run.given),
        versions=dict(run.metadata.get('versions') or {}),
        curves=_curves(run_folder.summary_path(run.folder)),
        class_names=run.metadata.get('class_names'),
    )
    data_config, patch_size = run.metadata.get('data_config'), None
    if evaluation is not None:
        report.analysis, report.mistakes = evaluation.analysis, evaluation.mistakes
        report.class_names = report.class_names or evaluation.class_names
        data_config, patch_size = evaluation.subject.data_config, evaluation.subject.patch_size
    try:
        if data_config:
            report.views = training_views(saved, data_config, device, report.class_names, patch_size)
    except (DataError, OptionError) as error:
        report.notes.append(f'No training images are shown: {redact(str(error))}')
    return report


def _check_measured(run: _Run, evaluation: _Evaluation) -> None:
    """Raise DataError if the metric differs from that of training by more than numerical error."""
    saved = run.options
    name = 'map' if saved['task'] == 'multilabel' else 'top1'
    before = run.metrics.get(name)
    # Without --dist-bn, each rank evaluated with its own batch norm statistics.
    unequal_ranks = (saved.get('world_size') or 1) > 1 and not saved['dist_bn']
    if before is None or saved['tta'] or unequal_ranks:
        return
    now = evaluation.metrics[name]
    tolerance = max(1., 2 * 100. / max(1, evaluation.images))  # one point, or two images
    if abs(now - before) > tolerance:
        raise DataError(f"{run.checkpoint} has {name} {now:.4g} on {saved['data_dir'] or saved['dataset']}, split "
                        f"{saved['val_split']}, and training measured {before:.4g}: give the data of the run, with the "
                        'labels that it had')


def _headline(evaluation: _Evaluation) -> list[tuple[str, str]]:
    titles = {'top1': 'top-1 (%)', 'top5': 'top-5 (%)', 'map': 'mAP (%)', 'micro_f1': 'micro F1 (%)',
              'macro_f1': 'macro F1 (%)', 'sample_f1': 'sample F1 (%)', 'loss': 'loss'}
    cards = [(title, f'{evaluation.metrics[name]:.4g}' if name == 'loss' else f'{evaluation.metrics[name]:.2f}')
             for name, title in titles.items()
             if name in evaluation.metrics and (name != 'top5' or evaluation.subject.num_classes > 5)]
    if evaluation.analysis is not None:
        cards += [('macro F1 (%)', f"{100 * evaluation.analysis.per_class.average('macro')[2]:.2f}"),
                  ('calibration error (%)', f'{100 * evaluation.analysis.calibration.error:.2f}')]
    return [*cards, ('images', f'{evaluation.images:,}'),
            ('parameters', f'{evaluation.subject.param_count / 1e6:.2f} M')]


def _notes(run: _Run, evaluation: _Evaluation) -> list[str]:
    measured = ', '.join(f'{name} {value:.4g}' for name, value in run.metrics.items())
    return [f'Measured with {os.path.basename(run.checkpoint)}, {describe_weights(run.options, run.use_ema)}, on the '
            f"split {split_name(run.options, portable(run.options['val_split']))}, "
            f'{describe_input(run.options, evaluation.subject.data_config)}.',
            *([f'Training measured of these weights: {measured}.'] if measured else [])]
