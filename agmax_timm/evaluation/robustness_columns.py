"""Metrics of robustness as columns of the results of validate.py."""
import logging
import os
import re
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.data import ImageNetInfo
from timm.task import evaluation_sample_limit
from torch.utils.data import Dataset

from ..assembly import datasets, loaders
from ..base.errors import DataError, OptionError
from ..base.text import one_line, quoted
from ..data.augmentation.mixup import TwoViewCollate
from ..data.augmentation.transforms import transforms_of
from ..data.sources.classes import class_names, class_to_idx, same_names
from ..options.evaluation import Robustness
from ..options.parsers import AnyOptions, saved_train_options
from .evaluated_model import build_loader, open_split
from .metrics import labels_of_data
from .passes import Evaluation
from .robustness.agreement import AgreementEvaluator
from .robustness.attacked import EPSILONS, Attack
from .robustness.corruptions import ALEXNET_ERRORS, SMALLEST, corrupt_rgb, corruption_names, find_corruptions, summarize
from .robustness.seeding import SeededDataset
from .robustness.stress import before_tensor, stress_transform

_logger = logging.getLogger('validate')


class Corruption(NamedTuple):
    """A corruption to evaluate. Without a path, images are corrupted while they are loaded."""
    name: str
    severity: int
    path: str | None = None


def measure(evaluation: Evaluation) -> dict[str, float]:
    """Return all metrics of robustness that the options ask for, in percent except agreement_kl."""
    options = evaluation.options
    columns: dict[str, float] = {}
    if options.agreement:
        columns.update(measure_agreement(evaluation))
    if options.corruptions or options.corruptions_dir:
        columns.update(measure_corruptions(evaluation))
    for kind in dict.fromkeys(options.stress):
        columns[f'{kind}_top1'] = measure_stress(evaluation, kind)
    if options.attack:
        columns.update(measure_attacks(evaluation))
    if columns:
        _logger.info(' * ' + ' '.join(f'{name} {value:.3f}' for name, value in columns.items()))
    return {name: round(value, 4) for name, value in columns.items()}


# ---- Agreement ----

def measure_agreement(evaluation: Evaluation) -> dict[str, float]:
    """Return 'agreement' in percent and 'agreement_kl' in nats for two training views of each image."""
    options = evaluation.options
    # Without the prefetcher, random erasing is part of the transform, and is seeded by sample like its other steps.
    subject = replace(evaluation.subject, options=replace(
        options, no_prefetcher=True, batch_size=max(1, options.batch_size // 2)))
    dataset, views = SeededDataset(evaluation.dataset, options.seed), _training_transform(evaluation)
    loader = build_loader(subject, dataset)
    dataset.transform = views
    loader.collate_fn = TwoViewCollate()
    evaluator = AgreementEvaluator(
        subject.device, evaluation_sample_limit(loader), labels_of_data(options, subject.num_classes))
    return replace(evaluation, subject=subject).evaluate('', loader, evaluator)


def _training_transform(evaluation: Evaluation) -> Any:
    """Return the two-view transform of the run without mixing, or timm's default if the run is unknown."""
    options = replace(  # only options of the transform keep their values
        saved_train_options(evaluation.subject.run_options),
        agmax=True, batch_size=1, workers=0, no_prefetcher=True, pin_mem=False, image_memory='0',
        augment_backend='timm', mixup=0., cutmix=0., cutmix_minmax=None, aug_splits=0, aug_repeats=0,
        train_img_sizes=None, naflex_loader=False, use_multi_epochs_loader=False, balanced_sampling=False)
    loader = loaders.build_train_loader(
        options, evaluation.dataset, evaluation.subject.data_config, torch.device('cpu'),
        evaluation.subject.precision)
    return transforms_of(loader.dataset)[0]


# ---- Corruptions ----

def list_corruptions(options: Robustness) -> list[Corruption]:
    """Return the corruptions that the options ask for.

    Raises:
        OptionError: A corruption or the folder does not exist, or the package is missing or the wrong one.
    """
    severities = sorted(set(options.severities))
    if options.corruptions_dir:
        return _list_in(options.corruptions_dir, options.corruptions or ['all'], severities)
    if not options.corruptions:
        return []
    try:
        names = _expand_names(options.corruptions, corruption_names(), 'imagecorruptions-imaug')
    except ImportError as error:
        raise OptionError(f"--corruptions without --corruptions-dir needs pip install 'agmax_timm[robust]': "
                          f'{one_line(error)}') from error
    return [Corruption(name, severity) for name in names for severity in severities]


def _list_in(folder: str, words: list[str], severities: list[int]) -> list[Corruption]:
    """Return the corruptions in --corruptions-dir that have these names and severities."""
    if not os.path.isdir(folder):
        raise OptionError(f"--corruptions-dir '{folder}': no such folder")
    found = find_corruptions(folder)
    if not found:
        raise OptionError(f"--corruptions-dir '{folder}' has no folders NAME/1 to NAME/5")
    unclear = [name for name in found if re.fullmatch(r'.*_[1-5]', name)]
    if unclear:
        raise OptionError(f"--corruptions-dir '{folder}': the name '{unclear[0]}' looks like a severity in the "
                          'results, NAME_1 to NAME_5: rename the folder')
    names = _expand_names(words, list(found), folder)
    listed = [Corruption(name, severity, found[name][severity])
              for name in names for severity in severities if severity in found[name]]
    if not listed:
        raise OptionError(f"--severities {' '.join(map(str, severities))}: --corruptions-dir '{folder}' has none of "
                          f'them for {quoted(names)}')
    return listed


def _expand_names(words: list[str], known: list[str], where: str) -> list[str]:
    """Return the names of corruptions without duplicates; `all` and `common` stand for several names."""
    subsets = {'all': known, 'common': [name for name in known if name in ALEXNET_ERRORS]}
    names = list(dict.fromkeys(name for word in words for name in subsets.get(word, [word])))
    if not names:
        raise OptionError(f"--corruptions common: '{where}' has none of the {len(ALEXNET_ERRORS)} common ones, "
                          f'only {quoted(known)}: name some of them, or use --corruptions all')
    for name in names:
        if name not in known:
            raise OptionError(f"--corruptions '{name}': '{where}' has {', '.join(map(repr, known))}")
    return names


def measure_corruptions(evaluation: Evaluation) -> dict[str, float]:
    """Return the top-1 error of each corruption and severity, 'NAME_SEVERITY_err', and the means of summarize()."""
    options, config = evaluation.options, evaluation.subject.data_config
    listed = list_corruptions(options)
    if not options.corruptions_dir:
        _check_images(options, config)
    errors = {}
    for name, severity, path in listed:
        title = f'{name} {severity}'
        if path is None:
            corrupt = partial(corrupt_rgb, name=name, severity=severity)
            metrics = evaluation.run(title, change=partial(before_tensor, step=corrupt))
        else:
            dataset = _open_corrupted(evaluation, path)
            # The images are already cropped, as those of ImageNet-C.
            metrics = evaluation.run(title, dataset, crop_pct=1.)
        errors[name, severity] = 100. - metrics['top1']
    columns = {f'{name}_{severity}_err': error for (name, severity), error in errors.items()}
    known = class_to_idx(evaluation.dataset)
    of_imagenet = all(known.get(name) == index for index, name in enumerate(sorted(ImageNetInfo().label_names())))
    return {**columns, **summarize(errors, imagenet_c=of_imagenet and bool(options.corruptions_dir))}


def _check_images(options: AnyOptions, config: dict[str, Any]) -> None:
    mode = datasets.image_mode(options, config)
    if mode != 'RGB':
        raise OptionError(f"--corruptions are for RGB images, the model takes '{mode}': drop it")
    if min(config['input_size'][1:]) < SMALLEST:
        raise OptionError(f"--corruptions are for {SMALLEST} pixels and more, the model takes "
                          f"{' x '.join(map(str, config['input_size'][1:]))}: use a larger --img-size, or drop it")


def _open_corrupted(evaluation: Evaluation, path: str) -> Dataset:
    options = evaluation.options
    class_map = options.class_map
    if options.class_map and isinstance(options.class_map, str):
        file = os.path.join(options.data_dir or '', options.class_map)
        class_map = os.path.abspath(file) if os.path.exists(file) else class_map
    options = replace(
        options, dataset='', data_dir=path, split='', input_key=None, target_key=None, class_map=class_map)
    dataset = open_split(options, evaluation.subject.data_config)
    expected, found = class_names(evaluation.dataset), class_names(dataset)
    if expected is not None and not (found and same_names(found, expected)):
        raise DataError(f"--corruptions-dir: '{path}' has other classes than the data, so other labels: give both the "
                        'same')
    return dataset


# ---- Stress and attacks ----

def measure_stress(evaluation: Evaluation, kind: str) -> float:
    config = evaluation.subject.data_config
    metrics = evaluation.run(f'Stress by {kind}', change=lambda transform: stress_transform(
        kind, transform, config['input_size'][1:], config['interpolation']))
    return metrics['top1']


def measure_attacks(evaluation: Evaluation) -> dict[str, float]:
    """Return the top-1 accuracy for each bound as 'ATTACK_NORM_EPS_top1', such as 'pgd_linf_4_top1'."""
    options = evaluation.options
    for parameter in evaluation.subject.model.parameters():
        parameter.requires_grad_(False)  # only gradients of the images are needed
    columns = {}
    for epsilon in dict.fromkeys(options.attack_eps or EPSILONS[options.attack_norm]):
        name = f'{options.attack}_{options.attack_norm}_{epsilon:g}'
        attack = Attack(evaluation.subject, epsilon, labels_of_data(options, evaluation.subject.num_classes))
        columns[f'{name}_top1'] = evaluation.run(name, perturb=attack)['top1']
    return columns
