"""Optimizer and schedule of the learning rate."""
from typing import Any

from .declare import BELOW_1, POSITIVE, above_to, at_least, between, group, one_of, option

_SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none')


@group
class Optimizer:
    """Optimizer."""
    opt: str = option('sgd', 'name of the optimizer in timm',
        metavar='NAME', resume='refused with optimizer', card=True, synonyms=('optim', 'optimizer'))
    opt_eps: float | None = option(None, "epsilon of the optimizer (default: the optimizer's)",
        metavar='EPS', check=at_least(0), synonyms=('eps',))
    opt_betas: list[float] | None = option(None, "betas of the optimizer (default: the optimizer's)",
        metavar='BETA', check=BELOW_1, synonyms=('betas',))
    opt_kwargs: dict[str, Any] = option(
        {}, 'further arguments of create_optimizer_v2, such as filter_bias_and_bn=False',
        metavar='KEY=VALUE', resume='refused with optimizer')
    momentum: float = option(0.9, 'momentum of the optimizer', metavar='M', check=BELOW_1, card=True)
    weight_decay: float = option(2e-05, 'weight decay of all weights but biases and normalization layers',
        metavar='W', check=at_least(0), card=True, synonyms=('wd',))
    clip_grad: float | None = option(
        None, 'largest norm or value of the gradients, by --clip-mode (default: no clipping)',
        metavar='NORM', check=POSITIVE, card=True, synonyms=('max_grad_norm',))
    clip_mode: str = option('norm', 'kind of gradient clipping: norm, value or agc',
        check=one_of('norm', 'value', 'agc'), needs='clip_grad')
    layer_decay: float | None = option(
        None, 'factor of the learning rate from each layer to the one before it (default: 1)',
        metavar='D', check=above_to(0, 1), resume='refused with optimizer', card=True)
    layer_decay_min_scale: float = option(0, 'smallest factor of --layer-decay',
        metavar='S', check=between(0, 1), needs='layer_decay', resume='refused with optimizer')
    layer_decay_no_opt_scale: float | None = option(None, 'factor of --layer-decay below which layers are not trained',
        metavar='S', check=between(0, 1), needs='layer_decay', resume='refused with optimizer')
    grad_accum_steps: int = option(1, 'number of batches in an update',
        metavar='N', check=at_least(1), resume='refused within epoch', card=True,
        synonyms=('accumulate', 'gradient_accumulation_steps'), former=('iters_to_accum',))


@group
class Schedule:
    """Schedule of the learning rate."""
    epochs: int = option(300, 'number of epochs, without cool-down',
        metavar='N', check=at_least(1), resume='schedule', card=True, synonyms=('max_epochs', 'num_epochs'))
    start_epoch: int | None = option(None, 'first epoch (default: 0, or the next one of the checkpoint)',
        metavar='N', check=at_least(0), resume='ignored', recipe='left out')
    stop_epoch: int | None = option(None, 'stop after this number of epochs, with the learning rates of all --epochs',
        metavar='N', check=at_least(1), resume='ignored')
    sched: str = option('cosine', f"learning-rate schedule: {', '.join(_SCHEDULES[:-1])} or {_SCHEDULES[-1]}",
        metavar='NAME', check=one_of(*_SCHEDULES), resume='schedule', card=True, synonyms=('lr_scheduler', 'scheduler'))
    sched_on_updates: bool = option(False, 'change the learning rate with every update instead of every epoch',
        resume='schedule')
    lr: float | None = option(None, 'learning rate; overrides --lr-base',
        metavar='LR', check=at_least(0), resume='schedule', card=True, synonyms=('learning_rate',))
    lr_base: float = option(
        0.1, 'learning rate for --lr-base-size images in an update, scaled to the images of the run',
        metavar='LR', check=at_least(0), unless='lr', resume='schedule')
    lr_base_size: int = option(256, 'number of images in an update for which --lr-base holds',
        metavar='N', check=at_least(1), unless='lr', resume='schedule')
    lr_base_scale: str = option(
        '', 'scaling of --lr-base with the images in an update: linear or sqrt (default: sqrt if the name of '
        'the optimizer has ada or lamb, else linear)',
        metavar='SCALE', check=one_of('', 'linear', 'sqrt'), unless='lr', resume='schedule')
    lr_noise: list[float] | None = option(
        None, 'begin and end of a period with noise on the learning rate, as shares of the epochs',
        metavar='PCT', check=between(0, 1), counts=(1, 2), ascending=True, resume='schedule')
    lr_noise_pct: float = option(0.67, 'largest noise relative to the learning rate',
        metavar='PCT', check=above_to(0, 1), needs='lr_noise', resume='schedule')
    lr_noise_std: float = option(1.0, 'standard deviation of the noise',
        metavar='STD', check=at_least(0), needs='lr_noise', resume='schedule')
    lr_cycle_mul: float = option(1.0, 'length of a cycle relative to the one before',
        metavar='M', check=POSITIVE, needs='sched cosine tanh poly', resume='schedule')
    lr_cycle_decay: float = option(0.5, 'largest learning rate of a cycle relative to the one before',
        metavar='D', check=at_least(0), needs='sched cosine tanh poly', resume='schedule')
    lr_cycle_limit: int = option(1, 'number of cycles of the schedule',
        metavar='N', check=at_least(1), needs='sched cosine tanh poly', resume='schedule')
    lr_k_decay: float = option(1.0, 'k of k-decay, for the schedules cosine and poly',
        metavar='K', check=POSITIVE, needs='sched cosine poly', resume='schedule')
    lr_decay_fn: str | None = option(None, 'shape of the decay of wsd (default: 1-sqrt) and rsqrt (default: linear)',
        metavar='NAME', check=one_of('', 'linear', '1-sqrt', 'cosine', 'power', 'exp'), needs='sched wsd rsqrt',
        resume='schedule')
    lr_stable_timescale: float | None = option(None, 'timescale of rsqrt in epochs',
        metavar='N', check=POSITIVE, needs='sched rsqrt', resume='schedule')
    warmup_lr: float = option(1e-05, 'learning rate at the start of the warm-up',
        metavar='LR', check=at_least(0), resume='schedule')
    warmup_epochs: int = option(5, 'number of epochs of warm-up; 0: none',
        metavar='N', check=at_least(0), resume='schedule', card=True)
    warmup_prefix: bool = option(False, 'add the warm-up before the schedule instead of replacing its first epochs',
        resume='schedule')
    min_lr: float = option(0, 'smallest learning rate of the schedule',
        metavar='LR', check=at_least(0), needs='sched cosine tanh plateau poly wsd rsqrt', resume='schedule')
    cooldown_epochs: int = option(0, 'number of epochs after the schedule, at its last learning rate',
        metavar='N', check=at_least(0), needs='sched cosine tanh poly wsd rsqrt', resume='schedule')
    patience_epochs: int = option(
        10, 'number of epochs without a better metric before plateau lowers the learning rate',
        metavar='N', check=at_least(0), resume='schedule')
    decay_milestones: list[int] = option([90, 180, 270], 'epochs in which multistep lowers the learning rate',
        metavar='EPOCH', check=at_least(0), ascending=True, needs='sched multistep', resume='schedule',
        former=('milestones',))
    decay_epochs: float = option(90, 'number of epochs between two decays of step, or of the decay of wsd and rsqrt',
        metavar='N', check=POSITIVE, needs='sched step wsd rsqrt', resume='schedule')
    decay_rate: float = option(
        0.1, 'factor by which step, multistep and plateau lower the learning rate; exponent of poly',
        alias='--dr', metavar='RATE', check=at_least(0), needs='sched step multistep plateau poly', resume='schedule')
