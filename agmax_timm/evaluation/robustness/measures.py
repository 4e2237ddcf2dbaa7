"""What validate.py measures of a model beside its plain accuracy, as columns of its results."""
import argparse
import copy
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from timm import utils
from timm.data import ImageNetInfo
from timm.task import evaluation_sample_limit
from torch.utils.data import Dataset

from ...assembly import loaders
from ...assembly.model import Precision
from ...base.errors import DataError, OptionError
from ...base.text import one_line
from ...data.augment import replace_transforms, transforms_of
from ...data.mixup import TwoViewCollate
from ...data.sources.classes import class_names, same_names
from ...options.parsers import train_parser
from .. import bulk
from ..evaluate import evaluate
from ..inference import Subject
from ..log import log_steps
from ..metrics import create_evaluator, labels_of_data
from .agreement import AgreementEvaluator
from .attacked import EPSILONS, Attack
from .corruptions import ALEXNET_ERRORS, SMALLEST, Corrupt, corruption_names, find_corruptions, summarize
from .seeding import SeededDataset
from .stress import before_tensor, stress_transform

_logger = logging.getLogger('validate')


class Corruption(NamedTuple):
    """A corruption to evaluate; without a path it is made as images are read."""
    name: str
    severity: int
    path: str | None = None


@dataclass
class Evaluation:
    """A model, the data that it is evaluated on, and how."""
    args: argparse.Namespace
    subject: Subject
    dataset: Dataset
    device: torch.device
    precision: Precision

    def run(
            self,
            name: str,
            dataset: Dataset | None = None,
            change: Callable[[Any], Any] | None = None,
            perturb: Callable | None = None,
            **data_config,
    ) -> dict[str, float]:
        """Metrics of one pass.

        Args:
            name: Of the log lines.
            dataset: Other images; None: those of the data.
            change: From the transform of evaluation to another one, whose draws are then those of the sample.
            perturb: See evaluate.
            **data_config: In place of the model's own.
        """
        args, dataset = self.args, dataset or self.dataset
        source = SeededDataset(dataset, args.seed) if change is not None else dataset
        loader = loaders.build_eval_loader(
            args, source, {**self.subject.data_config, **data_config}, self.device, self.precision, args.batch_size,
            crop_border_pixels=args.crop_border_pixels, tf_preprocessing=args.tf_preprocessing)
        if change is not None:
            replace_transforms(source, [change(transform) for transform in transforms_of(source)])
        evaluator = create_evaluator(args, dataset, loader, self.subject.num_classes, self.device)
        return self.evaluate(name, loader, evaluator, perturb)

    def evaluate(
            self,
            name: str | None,
            loader: Any,
            evaluator: Any,
            perturb: Callable | None = None,
    ) -> dict[str, float]:
        """The same with a loader and an evaluator; without a name there are no log lines."""
        args = self.args
        return evaluate(
            self.subject.model, loader, args, self.device, self.precision, args.log_freq,
            on_log=log_steps(name) if name and utils.is_primary(args) else None,
            evaluator=bulk.TogetherEvaluator(evaluator, args) if args.distributed else evaluator,
            perturb=perturb)


def check(args: argparse.Namespace) -> None:
    """Raise OptionError for corruptions that cannot be had, before a model is built."""
    list_corruptions(args)


def measure(
        evaluation: Evaluation,
        open_split: Callable[[argparse.Namespace, dict[str, Any]], Dataset],
        run_options: dict[str, Any],
) -> dict[str, float]:
    """All that the options ask for, in percent but for agreement_kl.

    Args:
        open_split: Opens the data that options name, for the data configuration of a model.
        run_options: Options of the run that wrote the checkpoint, where they are known.
    """
    args = evaluation.args
    columns: dict[str, float] = {}
    if args.task == 'multilabel':  # a checkpoint of such a task, without the flags
        if any((args.agreement, args.corruptions, args.corruptions_dir, args.stress, args.attack, args.calibration)):
            raise OptionError('--corruptions, --stress, --agreement, --calibration and --attack are for one class an '
                              'image, the checkpoint is of --task multilabel: drop them')
        return columns
    if args.agreement:
        columns.update(measure_agreement(evaluation, run_options))
    if args.corruptions or args.corruptions_dir:
        columns.update(measure_corruptions(evaluation, open_split))
    for kind in dict.fromkeys(args.stress):
        columns[f'{kind}_top1'] = measure_stress(evaluation, kind)
    if args.attack:
        columns.update(measure_attacks(evaluation))
    if columns:
        _logger.info(' * ' + ' '.join(f'{name} {value:.3f}' for name, value in columns.items()))
    return OrderedDict((name, round(value, 4)) for name, value in columns.items())


# ---- Agreement ----

def measure_agreement(evaluation: Evaluation, run_options: dict[str, Any]) -> dict[str, float]:
    """'agreement' in percent and 'agreement_kl' in nats, of two views of each image by the training transform."""
    evaluation = copy.copy(evaluation)
    args = evaluation.args = copy.copy(evaluation.args)
    args.no_prefetcher = True  # erasing is then a step of the transform, and drawn by sample as the others
    dataset = SeededDataset(evaluation.dataset, args.seed)
    config = evaluation.subject.data_config
    views = _training_transform(evaluation, run_options)
    loader = loaders.build_eval_loader(
        args, dataset, config, evaluation.device, evaluation.precision, max(1, args.batch_size // 2))
    dataset.transform = views
    loader.collate_fn = TwoViewCollate()
    evaluator = AgreementEvaluator(
        evaluation.device, evaluation_sample_limit(loader), labels_of_data(args, evaluation.subject.num_classes))
    return evaluation.evaluate(None, loader, evaluator)


def _training_transform(evaluation: Evaluation, run_options: dict[str, Any]) -> Any:
    """Two views by the augmentation of the run, without mixing, or by timm's default."""
    args = train_parser().parse_args([])
    vars(args).update((name, value) for name, value in run_options.items() if name in args)
    vars(args).update(  # what makes a transform is left
        agmax=True, batch_size=1, workers=0, distributed=False, no_prefetcher=True, pin_mem=False, image_memory='0',
        augment_backend='timm', mixup=0., cutmix=0., cutmix_minmax=None, aug_splits=0, aug_repeats=0,
        train_img_sizes=None, naflex_loader=False, use_multi_epochs_loader=False)
    loader = loaders.build_train_loader(
        args, evaluation.dataset, evaluation.subject.data_config, torch.device('cpu'), evaluation.precision)
    return transforms_of(loader.dataset)[0]


# ---- Corruptions ----

def list_corruptions(args: argparse.Namespace) -> list[Corruption]:
    """The corruptions that the options ask for.

    Raises:
        OptionError: no such corruption, no folder of corrupted images, or the package is not what it should be.
    """
    folder, severities = args.corruptions_dir, sorted(set(args.severities))
    if folder:
        if not os.path.isdir(folder):
            raise OptionError(f'--corruptions-dir {folder}: no such folder')
        found = find_corruptions(folder)
        if not found:
            raise OptionError(f'--corruptions-dir {folder} has no folders NAME/1 to NAME/5')
        unclear = [name for name in found if re.fullmatch(r'.*_[1-5]', name)]
        if unclear:
            raise OptionError(f"--corruptions-dir {folder}: results call severities NAME_1 to NAME_5, as the "
                              f"corruption '{unclear[0]}' is called: rename its folder")
        names = _chosen(args.corruptions or ['all'], list(found), folder)
        listed = [Corruption(name, severity, found[name][severity])
                  for name in names for severity in severities if severity in found[name]]
        if not listed:
            raise OptionError(f"--severities {' '.join(map(str, severities))}: --corruptions-dir {folder} has none of "
                              f"them for {', '.join(names)}")
        return listed
    if not args.corruptions:
        return []
    try:
        names = _chosen(args.corruptions, corruption_names(), 'imagecorruptions-imaug')
    except ImportError as error:
        raise OptionError(f"--corruptions without --corruptions-dir needs pip install 'agmax_timm[robust]': "
                          f'{one_line(error)}') from error
    return [Corruption(name, severity) for name in names for severity in severities]


def _chosen(words: list[str], known: list[str], where: str) -> list[str]:
    """The names that words stand for, each once."""
    subsets = {'all': known, 'common': [name for name in known if name in ALEXNET_ERRORS]}
    names = list(dict.fromkeys(name for word in words for name in subsets.get(word, [word])))
    for name in names:
        if name not in known:
            raise OptionError(f"--corruptions {name}: {where} has {', '.join(known)}")
    return names


def measure_corruptions(evaluation: Evaluation, open_split: Callable) -> dict[str, float]:
    """Top-1 error of each corruption and severity, 'NAME_SEVERITY_err', then the means, see summarize."""
    args, config = evaluation.args, evaluation.subject.data_config
    listed = list_corruptions(args)
    if not args.corruptions_dir:
        _check_images(args, config)
    errors = {}
    for name, severity, path in listed:
        title = f'{name} {severity}'
        if path is None:
            corrupt = Corrupt(name, severity)
            metrics = evaluation.run(title, change=partial(before_tensor, step=corrupt))
        else:
            dataset = _open_corrupted(evaluation, open_split, path)
            # As published: such images are cropped already.
            metrics = evaluation.run(title, dataset, crop_pct=1.)
        errors[name, severity] = 100. - metrics['top1']
    columns = {f'{name}_{severity}_err': error for (name, severity), error in errors.items()}
    return {**columns, **summarize(errors, imagenet_c=_of_imagenet(evaluation.dataset) and all(
        path is not None for _, _, path in listed))}


def _check_images(args: argparse.Namespace, config: dict[str, Any]) -> None:
    mode = loaders.image_mode(args, config)
    if mode != 'RGB':
        raise OptionError(f'--corruptions are for RGB images, the model takes {mode}: drop it')
    if min(config['input_size'][1:]) < SMALLEST:
        raise OptionError(f"--corruptions are for {SMALLEST} pixels and more, the model takes "
                          f"{' x '.join(map(str, config['input_size'][1:]))}: use a larger --img-size, or drop it")


def _open_corrupted(evaluation: Evaluation, open_split: Callable, path: str) -> Dataset:
    args = copy.copy(evaluation.args)
    if args.class_map and isinstance(args.class_map, str):
        class_map = os.path.join(args.data_dir or '', args.class_map)
        if os.path.exists(class_map):
            args.class_map = os.path.abspath(class_map)
    args.dataset, args.data_dir, args.split, args.input_key, args.target_key = '', path, '', None, None
    dataset = open_split(args, evaluation.subject.data_config)
    expected, found = class_names(evaluation.dataset), class_names(dataset)
    if expected is not None and not (found and same_names(found, expected)):
        raise DataError(f'--corruptions-dir: {path} has other classes than the data, so other labels: give both the '
                        'same')
    return dataset


def _of_imagenet(dataset: Dataset) -> bool:
    """Whether the classes are ImageNet's; those of corrupted images are the same."""
    return class_names(dataset) == sorted(ImageNetInfo().label_names())


# ---- Stress and attacks ----

def measure_stress(evaluation: Evaluation, kind: str) -> float:
    config = evaluation.subject.data_config
    metrics = evaluation.run(f'Stress by {kind}', change=lambda transform: stress_transform(
        kind, transform, config['input_size'][1:], config['interpolation']))
    return metrics['top1']


def measure_attacks(evaluation: Evaluation) -> dict[str, float]:
    """Top-1 accuracy of each bound, 'ATTACK_NORM_EPS_top1', as for instance 'pgd_linf_4_top1'."""
    args = evaluation.args
    for parameter in evaluation.subject.model.parameters():
        parameter.requires_grad_(False)  # gradients of the images alone
    columns = {}
    for epsilon in dict.fromkeys(args.attack_eps or EPSILONS[args.attack_norm]):
        name = f'{args.attack}_{args.attack_norm}_{epsilon:g}'
        attack = Attack(args, evaluation.subject, evaluation.device, evaluation.precision, epsilon)
        columns[f'{name}_top1'] = evaluation.run(name, perturb=attack)['top1']
    return columns
