"""Create learning rate, optimizer, EMA and learning-rate schedule from options."""
import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask

from ..base.distributed import is_distributed, world_size
from ..base.errors import OptionError
from ..base.text import one_line
from ..options.derived import ranking_metric
from ..options.parsers import TrainOptions
from ..options.timm_names import REFUSED

_logger = logging.getLogger(__name__)


def with_learning_rate(options: TrainOptions, batch_size: float) -> TrainOptions:
    """Return options with `lr`. Without --lr, it is --lr-base scaled by the number of images of an update.

    Args:
        batch_size: Number of images of a batch on each process.
    """
    if options.lr is not None:
        return options
    images = batch_size * world_size() * options.grad_accum_steps
    scale = options.lr_base_scale
    if not scale:
        scale = 'sqrt' if any(name in options.opt.lower() for name in ('ada', 'lamb')) else 'linear'
    ratio = images / options.lr_base_size
    lr = options.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    _logger.info(f'Learning rate {lr:g}: {options.lr_base:g} at {options.lr_base_size} images, scaled {scale} to '
                 f'{images:g} images per update.')
    return replace(options, lr=lr, lr_base_scale=scale)


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    rates = [group['lr'] for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def build_optimizer(options: TrainOptions, task: TrainingTask) -> torch.optim.Optimizer:
    """Return timm's optimizer that the options ask for.

    Raises:
        OptionError: timm refuses the options, or the optimizer does not work on several processes.
    """
    kwargs = dict(options.opt_kwargs)
    if is_distributed() and 'kron' in options.opt.lower():
        kwargs.setdefault('deterministic', True)  # else ranks draw their own numbers, and their weights drift apart
    try:
        if 'fallback_list' in kwargs:
            patterns = kwargs['fallback_list']
            patterns = [patterns] if isinstance(patterns, str) else list(patterns)  # timm takes a text by its letters
            # The patterns match names of the model, which have the prefix `model.` with AgMax.
            kwargs['fallback_list'] = patterns + [f'model.{name}' for name in patterns if options.agmax]
        module: Any = task.get_trainable_module()
        optimizer = create_optimizer_v2(module, **optimizer_kwargs(cfg=options), **kwargs)
    except REFUSED as error:
        raise OptionError(
            f"--opt '{options.opt}': {one_line(error)}: see timm.optim.list_optimizers() and --opt-kwargs") from error
    if is_distributed() and getattr(optimizer, 'is_second_order', False):
        raise OptionError(f"--opt '{options.opt}' needs second derivatives, which DistributedDataParallel does not "
                          'support: train with one process, or use another optimizer')
    return optimizer


def build_ema(options: TrainOptions, task: TrainingTask) -> None:
    """Create the EMA, from the weights of rank 0. DDP broadcasts the weights only later."""
    if not options.model_ema:
        return
    if is_distributed() and not options.fsdp:
        module: Any = task.get_trainable_module()
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)
    task.setup_ema(
        decay=options.model_ema_decay,
        use_warmup=options.model_ema_warmup,
        device=torch.device('cpu') if options.model_ema_force_cpu else None,
    )


def build_scheduler(options: TrainOptions, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Any, int]:
    """Return timm's scheduler (None for --sched none), and the number of epochs with warm-up and cool-down."""
    try:
        return create_scheduler_v2(
            optimizer,
            **scheduler_kwargs(options, decreasing_metric=ranking_metric(options) == 'loss'),
            updates_per_epoch=updates_per_epoch,
        )
    except REFUSED as error:
        raise OptionError(f"--sched '{options.sched}': {one_line(error)}") from error
