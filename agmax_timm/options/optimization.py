"""Optimizer and schedule of the learning rate."""
from typing import Any

from .declare import above, above_to, at_least, between, from_to_below, group, one_of, option


@group
class Optimizer:
    """Optimizer."""
    opt: str = option('sgd', 'any of timm',
        metavar='NAME', resume='refused with optimizer', card=True, synonyms=('optim', 'optimizer'))
    opt_eps: float | None = option(None, "epsilon (default: the optimizer's)",
        metavar='EPS', check=at_least(0), synonyms=('eps',))
    opt_betas: list[float] | None = option(None, "betas (default: the optimizer's)",
        metavar='BETA', check=from_to_below(0, 1), synonyms=('betas',))
    opt_kwargs: dict[str, Any] = option(
        {}, 'further arguments of create_optimizer_v2, filter_bias_and_bn=False among them',
        metavar='KEY=VALUE')
    momentum: float = option(0.9, 'momentum', metavar='M', check=from_to_below(0, 1), card=True)
    weight_decay: float = option(2e-05, 'not of norms, biases',
        metavar='W', check=at_least(0), card=True, synonyms=('wd',))
    clip_grad: float | None = option(None, 'gradient clipping',
        metavar='NORM', check=above(0), card=True, synonyms=('max_grad_norm',))
    clip_mode: str = option('norm', 'norm, value or agc', check=one_of('norm', 'value', 'agc'), needs='clip_grad')
    layer_decay: float | None = option(None, 'learning rate decay a layer',
        metavar='D', check=above_to(0, 1), resume='refused with optimizer', card=True)
    layer_decay_min_scale: float = option(0, 'its smallest scale',
        metavar='S', check=between(0, 1), needs='layer_decay')
    layer_decay_no_opt_scale: float | None = option(None, 'below this scale, do not train',
        metavar='S', check=between(0, 1), needs='layer_decay')
    grad_accum_steps: int = option(1, 'batches an update',
        metavar='N', check=at_least(1), resume='refused within epoch', card=True,
        synonyms=('accumulate', 'gradient_accumulation_steps'), former=('iters_to_accum',))


@group
class Schedule:
    """Schedule of the learning rate."""
    epochs: int = option(300, 'passes over the data',
        metavar='N', check=at_least(1), resume='schedule', card=True, synonyms=('max_epochs', 'num_epochs'))
    start_epoch: int | None = option(None, '(default: 0, or where the checkpoint ended)',
        metavar='N', check=at_least(0), resume='ignored', recipe='left out')
    stop_epoch: int | None = option(None, 'stop after this many epochs, with the schedule of all of them',
        metavar='N', check=at_least(1), resume='ignored')
    sched: str = option('cosine', 'any of timm',
        metavar='NAME', resume='schedule', card=True, synonyms=('lr_scheduler', 'scheduler'))
    sched_on_updates: bool = option(False, 'step with every update', resume='schedule')
    lr: float | None = option(None, 'learning rate; wins over --lr-base',
        metavar='LR', check=at_least(0), resume='schedule', card=True, synonyms=('learning_rate',))
    lr_base: float = option(0.1, 'for --lr-base-size images an update',
        metavar='LR', check=at_least(0), resume='schedule')
    lr_base_size: int = option(256, 'images an update', metavar='N', check=at_least(1), resume='schedule')
    lr_base_scale: str = option('', 'linear or sqrt (default: by optimizer)',
        metavar='SCALE', check=one_of('', 'linear', 'sqrt'), resume='schedule')
    lr_noise: list[float] | None = option(None, 'epochs with noise, from and to',
        metavar='PCT', check=between(0, 1), counts=(1, 2), ascending=True, resume='schedule')
    lr_noise_pct: float = option(0.67, 'its limit',
        metavar='PCT', check=above_to(0, 1), needs='lr_noise', resume='schedule')
    lr_noise_std: float = option(1.0, 'its standard deviation',
        metavar='STD', check=at_least(0), needs='lr_noise', resume='schedule')
    lr_cycle_mul: float = option(1.0, 'length to the cycle before', metavar='M', check=above(0), resume='schedule')
    lr_cycle_decay: float = option(0.5, 'height to the cycle before', metavar='D', check=at_least(0), resume='schedule')
    lr_cycle_limit: int = option(1, 'number of cycles', metavar='N', check=at_least(1), resume='schedule')
    lr_k_decay: float = option(1.0, 'k-decay of cosine and poly', metavar='K', check=above(0), resume='schedule')
    lr_decay_fn: str | None = option(None, 'decay of wsd and rsqrt (default: 1-sqrt, linear)',
        metavar='NAME', check=one_of('', 'linear', '1-sqrt', 'cosine', 'power', 'exp'), resume='schedule')
    lr_stable_timescale: float | None = option(None, 'epochs, for rsqrt',
        metavar='N', check=above(0), resume='schedule')
    warmup_lr: float = option(1e-05, 'learning rate at the start', metavar='LR', check=at_least(0), resume='schedule')
    warmup_epochs: int = option(5, 'epochs to the full learning rate',
        metavar='N', check=at_least(0), resume='schedule', card=True)
    warmup_prefix: bool = option(False, 'warm up before the schedule, not within', resume='schedule')
    min_lr: float = option(0, 'learning rate at the end', metavar='LR', check=at_least(0), resume='schedule')
    cooldown_epochs: int = option(0, 'epochs at it after the schedule',
        metavar='N', check=at_least(0), resume='schedule')
    patience_epochs: int = option(10, 'for plateau', metavar='N', check=at_least(0), resume='schedule')
    decay_milestones: list[int] = option([90, 180, 270], 'for multistep',
        metavar='EPOCH', check=at_least(0), ascending=True, resume='schedule', former=('milestones',))
    decay_epochs: float = option(90, 'for step, wsd and rsqrt', metavar='N', check=above(0), resume='schedule')
    decay_rate: float = option(0.1, 'factor of a step',
        alias='--dr', metavar='RATE', check=at_least(0), resume='schedule')
