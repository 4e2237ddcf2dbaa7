"""One epoch of training. The host waits for the device only where a value is read."""
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...assembly.loaders import prepare_batch
from ...base.distributed import world_size
from ...data.loading.device import Input
from ...data.loading.workers import batches_of
from ...data.sources.shards import check_delivered
from .finite_check import CheckResult
from .losses import NonFiniteError, RunningLosses, Update
from .step import Step


@dataclass
class Span:
    """A period of training: its start, images and updates of all ranks, and seconds of waiting for data."""
    images: int = 0
    updates: int = 0
    data_seconds: float = 0.
    start: float = field(default_factory=time.perf_counter)

    def add(self, images: int, updates: int, data_seconds: float) -> None:
        self.images += images
        self.updates += updates
        self.data_seconds += data_seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


@dataclass
class Progress:
    """Position in an epoch: losses of the last batch and their means, the time since the last log and in total."""
    epoch: int
    update_index: int
    updates_per_epoch: int
    last: dict[str, float]
    mean: dict[str, float]
    lap: Span
    total: Span
    input: Input
    target: torch.Tensor


def train_one_epoch(
        epoch: int,
        step: Step,
        loader,
        scheduler: Any = None,
        on_log: Callable[[Progress], None] | None = None,
        on_update: Callable[[int, CheckResult], None] | None = None,
        losses: RunningLosses | None = None,
        first_batch: int = 0,
        updates_per_epoch: int | None = None,
) -> tuple[dict[str, float], float]:
    """Train for one pass over the loader, or for the rest of one.

    Args:
        on_log: Function that is called with a Progress at log intervals and after the last update, on every rank.
        on_update: Function that is called after each update, with the number of batches done and the check's result.
        losses: Losses of the epoch so far, if first_batch is above 0.
        first_batch: Number of the first batch of the loader in the epoch.
        updates_per_epoch: Number of updates of a whole epoch, if the loader has another number.

    Returns:
        Mean losses by name, 'loss' first, then its parts; images of all ranks per second, 0 if no batch was left.

    Raises:
        NonFiniteError: At the next log interval after a loss that is NaN or infinite.
        DamagedError: More images than --max-damaged cannot be decoded.
    """
    training, options = step.training, step.training.options
    losses = losses or RunningLosses(training.device)
    num_batches, accumulate = len(loader), options.grad_accum_steps
    num_updates = math.ceil(num_batches / accumulate)
    update, done = Update(epoch, first_batch), first_batch
    lap, total = Span(), Span()
    step.begin_epoch()
    begin = time.perf_counter()
    for input, target, *further in batches_of(loader):
        input, target = prepare_batch(options, input, target, training.device, training.precision)
        waited, index = time.perf_counter() - begin, done // accumulate
        end = min((index + 1) * accumulate, num_batches)  # of the update; the last one may have fewer batches
        done += 1
        step.accumulate(update, input, target, end - update.first_batch, done == end, further)
        for span in (lap, total):
            span.add(update.losses[-1].images * world_size() // max(1, options.aug_splits), done == end, waited)
        if done == end:
            checked, updates = step.make(update), epoch * (updates_per_epoch or num_updates) + index + 1
            _count(step, update, checked, losses, updates)
            if on_log and losses.count and (index % options.log_interval == 0 or done == num_batches):
                last, mean = losses.read(f'by update {index} of epoch {epoch}')
                on_log(Progress(epoch, index, num_updates, last, mean, lap, total, input, target))
                lap = Span()
            if scheduler is not None and checked.made:
                scheduler.step_update(num_updates=updates)
            if on_update:
                on_update(done, checked)
            update = Update(epoch, done)
        begin = time.perf_counter()
    step.finish()
    check_delivered(done, num_batches)
    if not losses.count:
        raise NonFiniteError(f'every update of epoch {epoch} was broken and left out. Try a smaller --lr')
    return losses.read(f'in epoch {epoch}')[1], total.images / total.seconds


def _count(step: Step, update: Update, checked: CheckResult, losses: RunningLosses, updates: int) -> None:
    """Add an update to the mean losses and the EMA. One that was left out moves no EMA."""
    training = step.training
    if not checked.broken:
        for batch_losses in update.losses:
            losses.update(batch_losses)
    if checked.made:
        training.task.update_ema(step=updates)
    if training.options.synchronize_step:
        synchronize(training.device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that is queued."""
    if device.type != 'cpu':
        torch.accelerator.synchronize()
