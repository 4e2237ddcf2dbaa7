"""From options to how weights change: learning rate, optimizer, their average, schedule."""
import argparse
import logging
from typing import Any

import torch
import torch.distributed as dist
from timm import utils
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask

from ..base.errors import OptionError
from ..base.text import one_line
from ..options.timm_names import REFUSED

_logger = logging.getLogger(__name__)


def set_learning_rate(args: argparse.Namespace, batch_size: float) -> None:
    """args.lr from --lr-base and the images of an update, where --lr is not given; batch_size images a process."""
    if args.lr is not None:
        return
    images = batch_size * args.world_size * args.grad_accum_steps
    if not args.lr_base_scale:
        args.lr_base_scale = 'sqrt' if any(name in args.opt.lower() for name in ('ada', 'lamb')) else 'linear'
    ratio = images / args.lr_base_size
    args.lr = args.lr_base * (ratio ** 0.5 if args.lr_base_scale == 'sqrt' else ratio)
    if utils.is_primary(args):
        _logger.info(f'Learning rate {args.lr:g}: {args.lr_base:g} at {args.lr_base_size} images, scaled '
                     f'{args.lr_base_scale} to {images:g} images an update.')


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    rates = [group['lr'] for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def build_optimizer(args: argparse.Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    kwargs = dict(args.opt_kwargs)
    try:
        if args.agmax and 'fallback_list' in kwargs:
            # Patterns of the model's own names, which with AgMax are under `model.`.
            kwargs['fallback_list'] = [*kwargs['fallback_list'], *(f'model.{name}' for name in kwargs['fallback_list'])]
        return create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **kwargs)
    except REFUSED as error:
        raise OptionError(
            f'--opt {args.opt}: {one_line(error)}: see timm.optim.list_optimizers() and --opt-kwargs') from error


def build_ema(args: argparse.Namespace, task: TrainingTask) -> None:
    """An EMA that starts from the same weights on every rank: DDP shares rank 0's with the model only later."""
    if not args.model_ema:
        return
    if args.distributed and not args.fsdp:
        for tensor in task.get_trainable_module().state_dict().values():
            dist.broadcast(tensor, 0)
    task.setup_ema(
        decay=args.model_ema_decay,
        use_warmup=args.model_ema_warmup,
        device='cpu' if args.model_ema_force_cpu else None,
    )


def build_scheduler(
        args: argparse.Namespace,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
) -> tuple[Any, int]:
    """timm's scheduler (None for --sched none), and the number of epochs with warm-up and cool-down."""
    try:
        return create_scheduler_v2(
            optimizer,
            **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
            updates_per_epoch=updates_per_epoch,
        )
    except REFUSED as error:
        raise OptionError(f'--sched {args.sched}: {one_line(error)}') from error


def advance_scheduler(scheduler: Any, epoch: int, num_updates: int | None = None) -> None:
    """Set the learning rate of an epoch that a run starts with; for a schedule by updates, num_updates before it."""
    if scheduler is None:
        return
    if num_updates:
        scheduler.step_update(num_updates)
    elif num_updates is None and epoch:
        scheduler.step(epoch)
