"""From options to what an update minimises: the criterion, and timm's task or ours around it."""
import argparse
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from timm import utils
from timm.loss import create_classification_loss, load_class_stats, resolve_class_weights
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
    TrainingTask,
)

from ..base.errors import OptionError
from ..base.text_file import without_mark
from ..distillation import AgMaxDistillationTask
from ..options.checks import loss_name, mixing
from ..task import AgMaxTask
from .model import Precision

_logger = logging.getLogger(__name__)


def build_task(args: argparse.Namespace, model: nn.Module, device: torch.device, precision: Precision) -> TrainingTask:
    """What one update computes: timm's classification or distillation, or AgMax with either."""
    criterion = build_criterion(args)
    common = dict(device=device, dtype=precision.model_dtype, verbose=utils.is_primary(args))
    try:
        if args.agmax:
            return _agmax_task(args, model, criterion, common)
        if args.kd_model_name:
            return _distillation_task(args, model, criterion, common)
    except ValueError as error:
        raise OptionError(f"{f'--kd-model-name {args.kd_model_name}' if args.kd_model_name else '--agmax'}: "
                          f'{error}') from error
    except (RuntimeError, OSError) as error:  # the teacher could not be made, or takes more memory than there is
        if not args.kd_model_name and args.agmax_units is None:
            raise
        flag = f'--kd-model-name {args.kd_model_name}' if args.kd_model_name else f'--agmax-units {args.agmax_units}'
        raise OptionError(f'{flag}: {error}') from error
    if args.task == 'multilabel':
        return MultiLabelClassificationTask(model, criterion, threshold=args.multilabel_threshold, **common)
    return ClassificationTask(model, criterion, **common)


def build_criterion(args: argparse.Namespace) -> nn.Module:
    """timm's loss of the options.

    Raises:
        OptionError: weights or statistics of other classes, options of another loss.
    """
    multi_label = args.task == 'multilabel'
    name = loss_name(args)
    try:
        stats = _read_by(load_class_stats, args.class_stats)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise OptionError(f'--class-stats {args.class_stats}: {error}') from error
    try:
        weights = {
            kind: _class_weights(args, f'loss_{kind}', kind, stats) for kind in ('class_weight', 'pos_weight')}
        if name == 'db' and stats is not None:
            weights.update(class_counts=_per_class(args, 'class_stats', stats[0]), num_samples=stats[1])
        return create_classification_loss(
            name,
            multi_label=multi_label,
            smoothing=args.smoothing,
            soft_targets=mixing(args),
            jsd_splits=args.aug_splits,
            **weights,
            **_options_of(args, 'bce_target_thresh', 'bce_sum', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip',
                          'poly_epsilon', 'poly_gamma', 'poly_alpha', 'twoway_tp', 'twoway_tn', 'db_neg_scale',
                          'db_init_bias', 'db_focal_gamma'),
        )
    except (ValueError, OSError) as error:
        raise OptionError(f'--loss {name}: {error}') from error


def _read_by(read: Callable, value: Any, *args) -> Any:
    """Return read(value, *args); if value is a file, `read` gets the path of a copy without byte-order mark."""
    if not isinstance(value, str) or not os.path.isfile(value):
        return read(value, *args)
    with without_mark(value) as path:
        return read(path, *args)


def _class_weights(args: argparse.Namespace, flag: str, kind: str, stats: Any) -> Any:
    weights = _read_by(
        resolve_class_weights, getattr(args, flag), kind, stats, args.loss_weight_power, args.loss_weight_beta,
        args.loss_weight_max)
    return _per_class(args, flag, weights) if torch.is_tensor(weights) else weights


def _per_class(args: argparse.Namespace, flag: str, values: torch.Tensor) -> torch.Tensor:
    if len(values) != args.num_classes:
        raise OptionError(f"--{flag.replace('_', '-')} has {len(values)} entries, the model {args.num_classes} classes")
    return values


def _options_of(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _distillation_task(
        args: argparse.Namespace,
        model: nn.Module,
        criterion: nn.Module,
        common: dict[str, Any],
) -> TrainingTask:
    common = dict(common, criterion=criterion, **_options_of(args, 'distill_loss_weight', 'task_loss_weight'))
    if args.kd_distill_type == 'feature':
        return FeatureDistillationTask(
            model,
            args.kd_model_name,
            student_feature_dim=args.kd_student_feature_dim,
            teacher_feature_dim=args.kd_teacher_feature_dim,
            **common,
        )
    if args.kd_distill_type == 'token':
        return TokenDistillationTask(
            model,
            args.kd_model_name,
            distill_type=args.kd_token_distill_type,
            temperature=args.kd_temperature,
            **common,
        )
    return LogitDistillationTask(
        model,
        args.kd_model_name,
        loss_type=args.kd_loss_type,
        temperature=args.kd_temperature,
        **common,
    )


def _agmax_task(args: argparse.Namespace, model: nn.Module, criterion: nn.Module, common: dict) -> AgMaxTask:
    images = args.batch_size * args.world_size
    if args.agmax_loss == 'mi' and images < 2:
        raise OptionError(f'--agmax needs 2 images or more in a batch, got --batch-size {args.batch_size}: over 1 '
                          'image the marginal is the prediction itself')
    if args.grad_accum_steps > 1 and args.agmax_loss == 'mi' and utils.is_primary(args):
        _logger.warning(
            f'--grad-accum-steps {args.grad_accum_steps}: the marginals of AgMax are those of each batch of '
            f'{images} images, not of the {args.grad_accum_steps} batches of an update.')
    common = dict(
        common,
        criterion=criterion,
        kind=args.agmax_loss,
        weight=args.agmax_weight,
        divergence_weight=args.agmax_divergence_weight,
        hidden=args.agmax_units,
        init_std=args.agmax_init_std,
    )
    if not args.kd_model_name:
        return AgMaxTask(model, **common)
    return AgMaxDistillationTask(
        model,
        args.kd_model_name,
        loss_type=args.kd_loss_type,
        temperature=args.kd_temperature,
        mean=args.mean,
        std=args.std,
        **_options_of(args, 'distill_loss_weight', 'task_loss_weight'),
        **common,
    )
