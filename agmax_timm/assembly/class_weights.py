"""Weights of the classes in the loss, and the cross-entropy that takes them."""
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from timm.loss import load_class_stats, resolve_class_weights
from torch.nn import functional as F

from ..base.command_line import flag_of
from ..base.errors import OptionError
from ..base.text_file import without_mark
from ..data.loading.balance import labels_of
from ..options.derived import loss_name, mixing, pos_weight
from ..options.model import Model
from ..options.parsers import TrainOptions

Stats = tuple[torch.Tensor, int]
BY_FREQUENCY = ('inv_freq', 'effective_num')  # kinds of weights of the classes


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """torch's weighted cross-entropy, divided by the number of images instead of the sum of their weights.

    The loss is thus the same on one rank and on several, and with class indices and soft targets.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        target = target.to(dtype) if target.is_floating_point() else target
        assert self.weight is not None
        return F.cross_entropy(input.to(dtype), target, self.weight.to(dtype), label_smoothing=self.label_smoothing,
                               reduction='sum') / len(target)


def read_class_stats(options: TrainOptions, dataset: Any) -> Stats | None:
    """Return the number of images of each class [K] and of all images, from --class-stats.

    Args:
        dataset: Training data, counted for --class-stats auto.

    Raises:
        OptionError: The file cannot be used, or the data has a class that the model lacks.
        DataError: The data has no index of its classes.
    """
    if options.class_stats == 'auto':
        counts = np.bincount(labels_of(dataset), minlength=options.num_classes or 0)
        return torch.from_numpy(per_class(options, 'class_stats', counts)).float(), int(counts.sum())
    try:
        return _read_without_mark(load_class_stats, options.class_stats)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise OptionError(f"--class-stats '{options.class_stats}': {error}") from error


def class_weights(options: TrainOptions, kind: str, stats: Stats | None) -> Any:
    """Return the weights that the options ask for: one number, one for each class, or None.

    Args:
        kind: 'class_weight' or 'pos_weight'.

    Raises:
        OptionError: The value is no weight, or does not fit the classes.
    """
    value, flag = options.loss_class_weight, flag_of(f'loss_{kind}')
    if kind == 'pos_weight':
        value = pos_weight(options)
    if value in (*BY_FREQUENCY, 'neg_pos') and stats is None:
        raise OptionError(f"{flag} '{value}' needs the number of images of each class: add --class-stats auto, or a "
                          'file')
    # weighted_cross_entropy() limits the weights after it has scaled them.
    largest = None if kind == 'class_weight' and loss_name(options) == 'ce' else options.loss_weight_max
    try:
        weights = _read_without_mark(resolve_class_weights, value, kind, stats, options.loss_weight_power,
                                     options.loss_weight_beta, largest)
    except (ValueError, TypeError, OSError) as error:
        method = 'neg_pos' if kind == 'pos_weight' else ' or '.join(BY_FREQUENCY)
        raise OptionError(f"{flag} '{value}': {error}: give {method}, a number for each class, or a file of numbers"
                          ) from error
    if kind == 'class_weight' and weights is not None and not torch.as_tensor(weights).any():
        raise OptionError(f"{flag} '{value}' leaves nothing of the loss: give weights above 0")
    return per_class(options, f'loss_{kind}', weights) if torch.is_tensor(weights) else weights


def weighted_cross_entropy(options: TrainOptions, weights: Any, stats: Stats | None) -> nn.Module:
    """Return the cross-entropy with these weights, one number or one per class.

    Weights by frequency are scaled so that the mean weight of an image is 1. Then those above --loss-weight-max are
    set to it.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32).expand(options.num_classes or 0).clone()
    if stats is not None and options.loss_class_weight in BY_FREQUENCY:
        weights = weights * stats[0].sum() / (weights * stats[0]).sum()
        if options.loss_weight_max is not None:
            weights = weights.clamp(max=options.loss_weight_max)
    smoothing = 0. if mixing(options) else options.smoothing  # mixed targets are smoothed already
    return WeightedCrossEntropy(weights, label_smoothing=smoothing)


def per_class(options: Model, flag: str, values: Any) -> Any:
    """Return the values if there is one for each class."""
    if len(values) != options.num_classes:
        raise OptionError(f'{flag_of(flag)} has {len(values)} entries, the model {options.num_classes} classes')
    return values


def _read_without_mark(read: Callable, value: Any, *args) -> Any:
    """Return read(value, *args). If `value` is a file, pass a copy without byte-order mark."""
    if not isinstance(value, str) or not os.path.isfile(value):
        return read(value, *args)
    with without_mark(value) as path:
        return read(path, *args)
