"""Evaluation of one model from options to results."""
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..assembly import datasets
from ..assembly import model as build
from ..assembly.job_start import begin_job
from ..base.errors import OptionError
from ..options import timm_names
from ..options.parsers import ValidateOptions
from ..options.paths import CLASSES_OF_MODEL
from ..weights.checkpoint import saved_options
from . import bulk, robustness_columns
from .evaluated_model import EvaluatedModel, open_data, options_of_run, prepare
from .log import finite
from .passes import Evaluation

_METRICS: dict[str, dict[str, str | None]] = {  # name of the complement to 100 by metric
    'classification': {'top1': 'top1_err', 'top5': 'top5_err'},
    'multilabel': {'map': None, 'micro_f1': None, 'macro_f1': None, 'sample_f1': None},
}

_logger = logging.getLogger('validate')


def start(options: ValidateOptions) -> torch.device:
    """Set up logging, the process group and the device, once for all models. Check first that the data exists."""
    begin_job()
    of_one = options.checkpoint and not bulk.names_several(options.checkpoint)
    found = replace(options, **options_of_run(options, saved_options(options.checkpoint))) if of_one else options
    if of_one or not options.checkpoint or 'split' in options.given:  # several runs may have held out shares
        datasets.check_roots(found, found.split)
    timm_names.check_device(options.device)
    timm_names.check_compiler(options)
    robustness_columns.list_corruptions(options)  # check them before a model is created
    return build.init_device(options.device)


def validate_model(options: ValidateOptions, device: torch.device) -> dict[str, Any]:
    """Evaluate one model on a device that start() returned.

    Returns:
        Top-1 and top-5 accuracy and error in percent (mAP and F1 with --task multilabel), further metrics that the
        options ask for, the mean loss, and properties of the model and its input.
    """
    subject = prepare(options, device)
    options = subject.options
    dataset = open_data(subject, _logger, f'--class-map {CLASSES_OF_MODEL} numbers the classes as the model does')
    evaluation = Evaluation(subject, dataset)
    try:
        metrics = evaluation.run('Test')
    except ZeroDivisionError as error:
        if not options.crop_border_pixels:
            raise
        raise OptionError(
            f'--crop-border-pixels {options.crop_border_pixels} leaves nothing of an image: use fewer') from error
    results = summarize(options, subject, metrics)
    results.update(robustness_columns.measure(evaluation))
    return finite(results)  # JSON has no NaN


def summarize(options: ValidateOptions, subject: EvaluatedModel, metrics: dict[str, float]) -> dict[str, Any]:
    """Return the results with timm's keys in timm's order, then further metrics, the loss and the checkpoint."""
    results: dict[str, Any] = dict(model=options.model)
    for name, complement in _METRICS[options.task].items():
        results[name] = round(metrics[name], 4)
        if complement is not None:
            results[complement] = round(100 - metrics[name], 4)
    results.update((name, round(value, 4)) for name, value in metrics.items() if name not in (*results, 'loss'))
    results.update(
        param_count=round(subject.param_count / 1e6, 2),
        img_size=subject.data_config['input_size'][-1],
        crop_pct=subject.data_config['crop_pct'],
        interpolation=subject.data_config['interpolation'],
        loss=metrics['loss'],
    )
    if not math.isfinite(metrics['loss']):
        _logger.warning(f"The loss of '{options.model}' is {metrics['loss']}: 'loss' is null in the results.")
    if options.checkpoint:
        results['checkpoint'] = options.checkpoint
    _logger.info(' * ' + ' '.join(_metric_texts(results, options.task, metrics)))
    return results


def _metric_texts(results: dict[str, Any], task: str, metrics: dict[str, float]) -> Iterator[str]:
    """Yield the text of each metric in timm's format: Acc@1 and Acc@5 with their complements."""
    titles = {'top1': 'Acc@1', 'top5': 'Acc@5'}
    for name in metrics:
        if name != 'loss':
            complement = _METRICS[task].get(name)
            yield f'{titles.get(name, name)} {results[name]:.3f}' + (
                f' ({results[complement]:.3f})' if complement else '')
