"""The evaluation of one model, from its options to the results."""
import argparse
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from timm import utils
from torch.utils.data import Dataset

from ..assembly import loaders
from ..assembly import model as build
from ..assembly.console import begin_log
from ..base.errors import DataError, OptionError
from ..data.sources.classes import MovedClassError, summary
from ..data.sources.shards import open_dataset
from ..options import timm_names
from ..options.kinds import OF_EVALUATION, OF_INPUT
from ..options.paths import CLASSES_OF_MODEL
from ..weights.checkpoint import saved_options
from . import bulk
from .evaluate import evaluate
from .inference import Subject, build_subject
from .log import finite, log_steps
from .metrics import create_evaluator, set_targets
from .robustness import measures

_METRICS = {  # and what their complements to 100 are called
    'classification': {'top1': 'top1_err', 'top5': 'top5_err'},
    'multilabel': {'map': None, 'micro_f1': None, 'macro_f1': None, 'sample_f1': None},
}

_logger = logging.getLogger('validate')


def validate(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate one model as the options say.

    Returns:
        Top-1 and top-5 accuracy and error in percent (mAP and F1 of --task multilabel), what other metrics the options
        ask for, mean loss, and what was evaluated.
    """
    return validate_model(args, start(args))


def start(args: argparse.Namespace) -> torch.device:
    """Set up logging, processes and device, once for all models. Checks first that the data exists."""
    begin_log()
    loaders.check_roots(args, args.split)
    timm_names.check_device(args.device)
    timm_names.check_compiler(args)
    measures.check(args)
    if args.checkpoint and not os.path.isdir(args.checkpoint):
        saved_options(args.checkpoint)
    return build.init_device(args)


def validate_model(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What validate does for one model, on a device that is ready."""
    subject, precision, run_options = prepare(args, device)
    dataset = open_split(args, subject.data_config)
    _logger.info(summary({args.split: dataset}))
    try:
        set_targets(args, dataset, subject.num_classes, subject.classes)
    except MovedClassError as error:
        raise DataError(f'{error}: --class-map {CLASSES_OF_MODEL} numbers the classes as the model does') from error
    loader = build_loader(args, dataset, subject, device, precision)
    evaluator = create_evaluator(args, dataset, loader, subject.num_classes, device)
    try:
        metrics = evaluate(
            subject.model, loader, args, device, precision, args.log_freq,
            on_log=log_steps('Test') if utils.is_primary(args) else None,
            evaluator=bulk.TogetherEvaluator(evaluator, args) if args.distributed else evaluator)
    except ZeroDivisionError as error:
        if not args.crop_border_pixels:
            raise
        raise OptionError(
            f'--crop-border-pixels {args.crop_border_pixels} leaves nothing of an image: use fewer') from error
    results = summarize(args, subject, metrics)
    evaluation = measures.Evaluation(args, subject, dataset, device, precision)
    results.update(measures.measure(evaluation, open_split, run_options))
    return finite(results)  # JSON has no word for others than null


def prepare(args: argparse.Namespace, device: torch.device) -> tuple[Subject, build.Precision, dict[str, Any]]:
    """The model that the options name, its numbers, and the options of the run that wrote its checkpoint, which
    complete those that were given."""
    run_options = saved_options(args.checkpoint) if args.checkpoint else {}
    adopt_options(args, run_options)
    precision = build.build_precision(args, device)
    utils.random_seed(args.seed)
    return build_subject(args, device, precision), precision, run_options


def build_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        subject: Subject,
        device: torch.device,
        precision: build.Precision,
):
    """Images in the order of the data set, as the model is to see them."""
    return loaders.build_eval_loader(
        args, dataset, subject.data_config, device, precision, args.batch_size, subject.patch_size,
        args.crop_border_pixels, args.tf_preprocessing)


def open_split(args: argparse.Namespace, data_config: dict[str, Any]) -> Dataset:
    return open_dataset(
        args.dataset,
        root=args.data_dir,
        split=args.split,
        download=args.dataset_download,
        class_map=args.class_map,
        num_samples=args.num_samples,
        input_key=args.input_key,
        input_img_mode=loaders.image_mode(args, data_config),
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed,
        **(dict(load_bytes=True) if args.tf_preprocessing else {}),
        **(dict(target_format=args.target_format) if args.target_format else {}),
    )


def summarize(args: argparse.Namespace, subject: Subject, metrics: dict[str, float]) -> dict[str, Any]:
    """The results: timm's keys in timm's order, then the loss and the checkpoint."""
    results = OrderedDict(model=args.model)
    for name, complement in _METRICS[args.task].items():
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
        _logger.warning(f"The loss of {args.model} is {metrics['loss']}: 'loss' is null in the results.")
    if args.checkpoint:
        results['checkpoint'] = args.checkpoint
    _logger.info(' * ' + ' '.join(_shown(results, args.task, metrics)))
    return results


def _shown(results: dict[str, Any], task: str, metrics: dict[str, float]) -> Iterator[str]:
    """Each metric as timm logs it: Acc@1 and Acc@5 with their complements."""
    titles = {'top1': 'Acc@1', 'top5': 'Acc@5'}
    for name in metrics:
        if name != 'loss':
            complement = _METRICS[task].get(name)
            yield f'{titles.get(name, name)} {results[name]:.3f}' + (
                f' ({results[complement]:.3f})' if complement else '')


def adopt_options(args: argparse.Namespace, saved: dict[str, Any]) -> None:
    """Evaluate a checkpoint as the run that wrote it did, but for what the command line says."""
    if not saved:
        return
    explicit = set(args.explicit)
    if explicit & {'img_size', 'input_size', 'in_chans'}:
        explicit |= {'img_size', 'input_size', 'in_chans'}
    adopted = {name: saved[name] for name in (*OF_INPUT, *OF_EVALUATION) if name in saved and name not in explicit}
    if 'batch_size' not in explicit:
        adopted['batch_size'] = saved.get('validation_batch_size') or saved.get('batch_size') or args.batch_size
    adopted['use_train_size'] = True
    if saved.get('naflex_loader') and not args.naflex_loader:
        _logger.warning('The run was evaluated with --naflex-loader, this is not: images are made to be of one size')
    changed = {name: value for name, value in adopted.items() if value != getattr(args, name)}
    if changed:
        _logger.info('From the checkpoint: ' + ', '.join(
            f'{name} of {len(value)} names' if name == 'class_map' and isinstance(value, dict) else f'{name} {value}'
            for name, value in changed.items()))
    vars(args).update(adopted)
