"""One epoch of training. The host waits for the device only where a value is read."""
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..assembly.loaders import prepare_batch
from ..base.distributed import is_distributed, world_size
from ..data.device import Input
from ..data.sources.decoding import check_damage
from ..data.sources.shards import check_delivered
from ..data.workers import batches_of
from .guards.finite_check import CheckResult
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
        step: Object that makes the updates.
        on_log: Function that is called with a Progress at log intervals and after the last update, on every rank.
        on_update: Function that is called after each update, with the number of batches done and the check's result.
        losses: Losses of the epoch so far, if first_batch is above 0.
        first_batch: Number of the first batch of the loader in the epoch.
        updates_per_epoch: Number of updates of a whole epoch, if the loader has another number.

    Returns:
        Mean losses by name, 'loss' first, then its parts; images of all ranks per second.

    Raises:
        NonFiniteError: At the next log interval after a loss that is NaN or infinite.
        DamagedError: More images than --max-damaged cannot be decoded.
    """
    losses = losses or RunningLosses(step.device, is_distributed())
    return _Epoch(epoch, step, loader, scheduler, on_log, on_update, losses, first_batch, updates_per_epoch).train()


@dataclass
class _Epoch:
    """An epoch in progress; see train_one_epoch."""
    number: int
    step: Step
    loader: Any
    scheduler: Any
    on_log: Callable[[Progress], None] | None
    on_update: Callable[[int, CheckResult], None] | None
    losses: RunningLosses
    first_batch: int
    updates_per_epoch: int | None

    def __post_init__(self) -> None:
        self.num_batches = len(self.loader)
        self.accumulate = self.step.options.grad_accum_steps
        self.num_updates = math.ceil(self.num_batches / self.accumulate)
        self.lap, self.total = Span(), Span()

    def train(self) -> tuple[dict[str, float], float]:
        update = Update(self.number, self.first_batch)
        done = self.first_batch  # batches of the epoch
        self.step.begin_epoch()
        for done, (input, target, waited) in enumerate(self._batches(), self.first_batch + 1):
            complete = done == self.num_batches or done % self.accumulate == 0
            self.step.accumulate(update, input, target, self._size(done - 1), last=complete)
            self._count(update.losses[-1].images, complete, waited)
            if complete:
                self._after_update(update, self.step.make(update), done, input, target)
                update = Update(self.number, done)
        return self._finish(done)

    def _batches(self) -> Iterator[tuple[Input, torch.Tensor, float]]:
        """Batches on the device, each with the seconds that this process waited for it."""
        begin = time.perf_counter()
        for input, target in batches_of(self.loader):
            input, target = prepare_batch(self.step.options, input, target, self.step.device, self.step.precision)
            yield input, target, time.perf_counter() - begin
            begin = time.perf_counter()

    def _size(self, batch: int) -> int:
        """Number of batches in the update of this one.

        The last update of an epoch may have fewer, and the first of an epoch that was resumed with other batches.
        """
        first = batch // self.accumulate * self.accumulate
        return min(first + self.accumulate, self.num_batches) - max(first, self.first_batch)

    def _count(self, images: int, updates: int, waited: float) -> None:
        for span in (self.lap, self.total):
            span.add(images * world_size(), updates, waited)

    def _after_update(
            self,
            update: Update,
            checked: CheckResult,
            done: int,
            input: Input,
            target: torch.Tensor,
    ) -> None:
        """Update the mean losses, EMA, log and schedule. An update that was left out moves no EMA and no schedule."""
        index = (done - 1) // self.accumulate
        updates_in_all = self.number * (self.updates_per_epoch or self.num_updates) + index + 1
        if not checked.broken:
            for batch_losses in update.losses:
                self.losses.update(batch_losses)
        if checked.made:
            self.step.task.update_ema(step=updates_in_all)
        if self.step.options.synchronize_step and self.step.device.type != 'cpu':
            torch.accelerator.synchronize()
        if index % self.step.options.log_interval == 0 or done == self.num_batches:
            self._log(index, input, target)
        if checked.made and self.scheduler is not None:
            self.scheduler.step_update(num_updates=updates_in_all)
        if self.on_update is not None:
            self.on_update(done, checked)

    def _log(self, index: int, input: Input, target: torch.Tensor) -> None:
        if self.on_log is None or not self.losses.count:
            return
        last, mean = self.losses.read(f'by update {index + 1} of epoch {self.number}')
        self.on_log(Progress(self.number, index, self.num_updates, last, mean, self.lap, self.total, input, target))
        self.lap = Span()

    def _finish(self, done: int) -> tuple[dict[str, float], float]:
        """Check that the epoch is complete, and return its mean losses and images per second."""
        self.step.finish()
        check_damage(self.loader)
        check_delivered(done, self.num_batches)
        if hasattr(self.step.optimizer, 'sync_lookahead'):
            self.step.optimizer.sync_lookahead()
        if not self.losses.count:
            raise NonFiniteError(f'every update of epoch {self.number} was broken and left out. Try a smaller --lr')
        _, mean = self.losses.read(f'in epoch {self.number}')
        return mean, self.total.images / self.total.seconds
