"""Create the criterion and the training task from options."""
import logging
from typing import Any

import torch
import torch.nn as nn
from timm.loss import create_classification_loss
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
    TrainingTask,
)

from ..base.distributed import is_primary, world_size
from ..base.errors import OptionError
from ..base.text import one_line
from ..distillation import AgMaxDistillationTask
from ..loss import ranks_of_marginal
from ..network import init_normal
from ..options.declare import picked
from ..options.derived import batch_sizes, loss_name, mixing, remembers
from ..options.parsers import TrainOptions
from ..remembered import AgMaxMemoryTask
from ..task import AgMaxTask
from .class_weights import class_weights, per_class, read_class_stats, weighted_cross_entropy
from .model import Precision, create_named_model

_logger = logging.getLogger(__name__)


def build_task(options: TrainOptions, model: nn.Module, device: torch.device, precision: Precision,
               dataset: Any = None) -> TrainingTask:
    """Return timm's task for classification or distillation, or the AgMax task for either.

    Args:
        dataset: Training data, for --class-stats auto and --agmax-teacher memory.
    """
    common: dict[str, Any] = dict(criterion=build_criterion(options, dataset), device=device,
                                  dtype=precision.model_dtype, verbose=is_primary())
    if options.agmax and options.agmax_loss == 'mi':
        _check_marginals(options)
        _logger.info(f'Marginals of AgMax: {describe_marginals(options)}')
    method = '--agmax-teacher memory' if remembers(options) else '--agmax' if options.agmax else ''
    if method:
        default = '' if options.smoothing or 'smoothing' in options.given else f', the default with {method}'
        _logger.info(f'Label smoothing: {options.smoothing:g}{default}')
    teacher = None
    if options.kd_model_name:
        teacher = create_named_model(
            options.kd_model_name, '--kd-model-name', pretrained=True, num_classes=model.num_classes,
            in_chans=getattr(model, 'in_chans', 3), device=device, dtype=precision.model_dtype)
    try:
        if options.agmax:
            return _agmax_task(options, model, teacher, common)
        if remembers(options):
            return AgMaxMemoryTask(
                model, num_images=len(dataset), num_classes=options.num_classes,
                weight=options.agmax_teacher_weight, momentum=options.agmax_teacher_momentum,
                topk=options.agmax_teacher_topk, **common)
        if teacher is not None:
            return _distillation_task(options, model, teacher, common)
    except ValueError as error:
        flag = f"--kd-model-name '{options.kd_model_name}'" if options.kd_model_name else method
        raise OptionError(f"{flag}: {str(error).replace('topk', '--agmax-teacher-topk')}") from error
    except RuntimeError as error:  # not enough memory for the remembered predictions or the Q-network
        if remembers(options):
            classes = options.agmax_teacher_topk or options.num_classes or 0
            raise OptionError(f'--agmax-teacher memory: no memory for {classes} predictions of each of {len(dataset)} '
                              f'images ({one_line(error, 200)}): use a smaller --agmax-teacher-topk') from error
        if options.agmax_units is None:
            raise
        raise OptionError(f'--agmax-units {options.agmax_units}: {error}') from error
    if options.task == 'multilabel':
        return MultiLabelClassificationTask(model, threshold=options.multilabel_threshold, **common)
    return ClassificationTask(model, **common)


def build_criterion(options: TrainOptions, dataset: Any = None) -> nn.Module:
    """Return timm's loss that the options ask for, or torch's cross-entropy with weights of the classes.

    Args:
        dataset: Training data, for --class-stats auto.

    Raises:
        OptionError: Class weights or statistics do not fit the classes, or an option belongs to another loss.
    """
    name = loss_name(options)
    stats = read_class_stats(options, dataset)
    weights = {kind: class_weights(options, kind, stats) for kind in ('class_weight', 'pos_weight')}
    if name == 'ce' and weights['class_weight'] is not None:
        return weighted_cross_entropy(options, weights['class_weight'], stats)
    try:
        if name == 'db' and stats is not None:
            weights.update(class_counts=per_class(options, 'class_stats', stats[0]), num_samples=stats[1])
        return create_classification_loss(
            name,
            multi_label=options.task == 'multilabel',
            smoothing=options.smoothing,
            soft_targets=mixing(options),
            jsd_splits=options.aug_splits,
            **weights,
            **(picked(options, 'bce_target_thresh', 'bce_sum') if name == 'bce' else {}),
            **picked(options, 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'poly_epsilon', 'poly_gamma', 'poly_alpha',
                     'twoway_tp', 'twoway_tn', 'db_neg_scale', 'db_init_bias', 'db_focal_gamma'),
        )
    except (ValueError, OSError) as error:
        raise OptionError(f'--loss {name}: {error}') from error


def _distillation_task(
        options: TrainOptions, model: nn.Module, teacher: nn.Module, common: dict[str, Any]) -> TrainingTask:
    common = dict(common, **picked(options, 'distill_loss_weight', 'task_loss_weight'))
    task: Any
    if options.kd_distill_type == 'feature':
        task = FeatureDistillationTask(
            model, teacher, student_feature_dim=options.kd_student_feature_dim,
            teacher_feature_dim=options.kd_teacher_feature_dim, **common)
    elif options.kd_distill_type == 'token':
        task = TokenDistillationTask(
            model, teacher, distill_type=options.kd_token_distill_type, temperature=options.kd_temperature, **common)
    else:
        task = LogitDistillationTask(
            model, teacher, loss_type=options.kd_loss_type, temperature=options.kd_temperature, **common)
    for name, given in (('student_mean', options.mean), ('student_std', options.std)):
        if given is not None:  # timm takes the values of the student's pretrained_cfg
            values = getattr(task, name)
            given = given if len(given) > 1 else given * values.numel()
            setattr(task, name, values.new_tensor(given).view(1, -1, 1, 1))
    return task


def _agmax_task(options: TrainOptions, model: nn.Module, teacher: Any, common: dict) -> AgMaxTask:
    common = dict(
        common,
        kind=options.agmax_loss,
        weight=options.agmax_weight,
        divergence_weight=options.agmax_divergence_weight,
        divergence_reduction=options.agmax_divergence_reduction,
        marginal_images=options.agmax_marginal_images,
        hidden=options.agmax_units,
    )
    task = AgMaxTask(model, **common) if teacher is None else AgMaxDistillationTask(
        model,
        teacher,
        loss_type=options.kd_loss_type,
        temperature=options.kd_temperature,
        mean=options.mean,
        std=options.std,
        **picked(options, 'distill_loss_weight', 'task_loss_weight'),
        **common,
    )
    qnet = task.trainable_module.qnet
    if options.init_std is not None and qnet is not None:  # the model has its weights, which are those of the baseline
        init_normal(qnet, options.init_std)
    return task


def describe_marginals(options: TrainOptions) -> str:
    """Return the number of images in a marginal of AgMax, and the images and classes that its strength depends on."""
    images, ranks = options.agmax_marginal_images, world_size()
    batch = 'several sizes' if options.naflex_loader else ' or '.join(
        f'{size * ranks} images' for size in batch_sizes(options)[1])
    return (f"over {'all images' if images is None else f'groups of {images} images'}; a batch has {batch} on {ranks} "
            f'rank(s), {options.num_classes} classes')


def _check_marginals(options: TrainOptions) -> None:
    images = options.agmax_marginal_images
    flag, sizes = batch_sizes(options)
    for size in sizes:
        if size * world_size() < 2:
            raise OptionError(f'--agmax needs 2 images or more in a batch, got {flag} {size}: over 1 image the '
                              'marginal is the prediction itself')
        if images is not None:
            try:
                ranks_of_marginal(images, size)
            except ValueError as error:
                raise OptionError(str(error).replace('marginal_images', '--agmax-marginal-images')) from error
    if images is None and options.grad_accum_steps > 1 and is_primary():
        _logger.warning(
            f'--grad-accum-steps {options.grad_accum_steps}: the marginals of AgMax are those of each batch, not of '
            f'the {options.grad_accum_steps} batches of an update.')
