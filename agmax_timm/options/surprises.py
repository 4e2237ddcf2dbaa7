"""Warnings about options without the expected effect in a run. Most depend on its length and learning rate.

without_effect.py has the warnings that follow from the options alone.
"""
import math
from collections.abc import Iterator

from ..base.command_line import flag_of
from .declare import has_effect
from .derived import mixing
from .parsers import TrainOptions


def surprises_of_run(
        options: TrainOptions,
        updates_per_epoch: int,
        epochs: int,
        evaluations: int,
        distributed: bool,
) -> Iterator[str]:
    """Yield the warnings of a run.

    Args:
        options: Options with the learning rate of the run.
        epochs: Number of epochs of the whole run.
        evaluations: Number of evaluations of the whole run.
    """
    if options.warmup_epochs >= options.epochs and not options.warmup_prefix and options.sched != 'none':
        yield (f'--warmup-epochs {options.warmup_epochs} is all of --epochs {options.epochs}: the learning rate only '
               'rises, as in timm. Reduce --warmup-epochs')
    lr = options.lr or 0.
    if options.min_lr > lr and has_effect(options, 'min_lr'):
        yield f'--min-lr {options.min_lr:g} is above the learning rate of {lr:g}, which never falls. Reduce --min-lr'
    if options.warmup_epochs and options.warmup_lr > lr and options.sched != 'none':
        yield (f'--warmup-lr {options.warmup_lr:g} is above the learning rate of {lr:g}: warm-up lowers it. Reduce '
               '--warmup-lr')
    if options.model_ema and not options.model_ema_warmup:
        updates = epochs * updates_per_epoch
        share = options.model_ema_decay ** (updates - 1)  # timm's average begins with the weights of the first update
        if updates > 1 and share > 0.1:
            yield (f'--model-ema-decay {options.model_ema_decay:g} is slow for {updates} updates: {share:.0%} of the '
                   f'average at the end are the first weights. Use {_decay_for(updates):g}, or --model-ema-warmup')
    if mixing(options) and options.mixup_off_epoch >= epochs:
        yield f'--mixup-off-epoch {options.mixup_off_epoch} has no effect: the run has {epochs} epochs'
    late = [epoch for epoch in options.save_epochs if epoch > epochs]
    if late:
        yield f"--save-epochs {' '.join(map(str, late))} has no effect: the run has {epochs} epochs"
    if options.early_stop and options.early_stop >= evaluations:
        yield f'--early-stop {options.early_stop} has no effect: the run has {evaluations} evaluations'
    if options.balanced_sampling and options.loss_class_weight in ('inv_freq', 'effective_num'):
        yield (f"--loss-class-weight '{options.loss_class_weight}' and --balanced-sampling each favour rare classes: "
               'use one of them')
    for name in ('sync_bn', 'no_ddp_bb'):
        if getattr(options, name) and not distributed:
            yield f'{flag_of(name)} has no effect with one process'


def _decay_for(updates: int) -> float:
    """Return the decay with which the first weights are at most 1 % of the final average; 1 - decay has two digits."""
    rate = 1. - 0.01 ** (1. / (updates - 1))
    digits = 1 - math.floor(math.log10(rate))
    return 1. - math.ceil(rate * 10 ** digits) / 10 ** digits
