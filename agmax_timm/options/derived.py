"""Values that follow from several options."""
from dataclasses import replace
from typing import Any

from .agmax import RememberedPredictions
from .augmentation import Mixing
from .parsers import TrainOptions
from .quantities import share_of

# Metrics of an evaluation, by task.
METRICS = {
    'classification': ('loss', 'top1', 'top5'),
    'multilabel': ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1'),
}
# Losses that take weights, by task. With one class per image, class_weights.py adds them to ce.
WEIGHTED: dict[str, dict[str, tuple[str, ...]]] = {
    'classification': {'loss_class_weight': ('ce', 'bce'), 'loss_pos_weight': ('bce',)},
    'multilabel': {'loss_class_weight': ('bce', 'asl'), 'loss_pos_weight': ('bce', 'asl')},
}


def defaults_by_method(task: str, agmax: bool) -> dict[str, Any]:
    """Return the defaults that differ with --task multilabel and with AgMax, which was published without smoothing.

    Several labels per image are ranked by mAP and not smoothed.
    """
    if task == 'multilabel':
        return {'eval_metric': 'map', 'smoothing': 0.}
    return {'smoothing': 0.} if agmax else {}


def resolve_defaults(options: TrainOptions) -> TrainOptions:
    """Return the options with the values that follow from other options. Those that the user gave stay."""
    defaults = defaults_by_method(options.task, options.agmax or remembers(options))
    resolved = {name: value for name, value in defaults.items() if name not in options.given}
    if share_of(options.val_split) is not None and options.val_split_seed is None:
        resolved['val_split_seed'] = options.seed
    return replace(options, **resolved)


def loss_name(options: TrainOptions) -> str:
    """Return the name of the loss. Without --loss, it follows from other options."""
    if options.loss:
        return options.loss
    if options.jsd_loss:
        return 'jsd'
    return 'bce' if options.bce_loss or options.task == 'multilabel' else 'ce'


def pos_weight(options: TrainOptions) -> str:
    """Return the weight of positive targets, of --loss-pos-weight or --bce-pos-weight; '' for none."""
    value = options.loss_pos_weight or options.bce_pos_weight
    return str(value) if value and takes_pos_weight(options) else ''


def with_given_loss(saved: dict[str, Any]) -> dict[str, Any]:
    """Return saved options without values of --loss and --loss-pos-weight that follow from other options.

    Earlier versions saved them with --bce-loss, --jsd-loss and --bce-pos-weight.
    """
    given = dict(saved)
    if given.get('jsd_loss') and given.get('loss') == 'jsd' or given.get('bce_loss') and given.get('loss') == 'bce':
        given['loss'] = None
    if given.get('bce_pos_weight') and given.get('loss_pos_weight') == str(given['bce_pos_weight']):
        given['loss_pos_weight'] = ''
    return given


def takes_pos_weight(options: TrainOptions) -> bool:
    """Whether the loss takes a weight of positive targets."""
    return loss_name(options) in WEIGHTED[options.task]['loss_pos_weight']


def ranking_metric(options: TrainOptions) -> str:
    """Return the metric that ranks the checkpoints, and that a plateau schedule follows."""
    return options.eval_metric if options.val_split else 'loss'


def mixing(options: Mixing) -> bool:
    """Whether the options ask for MixUp or CutMix."""
    return options.mixup > 0. or options.cutmix > 0. or options.cutmix_minmax is not None


def batch_sizes(options: TrainOptions) -> tuple[str, list[int]]:
    """Return the numbers of images in a training batch of a process, and their flag before them."""
    if options.train_img_sizes and options.train_batch_sizes:
        return '--train-batch-sizes', options.train_batch_sizes
    return '--batch-size', [options.batch_size]


def remembers(options: RememberedPredictions) -> bool:
    """Whether the options ask for the agreement with remembered predictions."""
    return options.agmax_teacher == 'memory'
