"""One epoch of training; one evaluation. Neither waits for the device but where something is read."""
import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from timm.task import ClassificationEvaluator, evaluation_sample_limit

from ..assembly.model import Precision
from ..data.loader import to_device
from ..data.sources.decoding import check_damage
from ..data.sources.shards import check_delivered, warn_of_loss
from ..data.workers import batches_of
from .guards.finite_check import CheckResult
from .losses import Input, NonFiniteError, RunningLosses, Update
from .step import Step


@dataclass
class Span:
    """A stretch of training: seconds since it began, images and updates of all ranks, seconds of waiting for data."""
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
    """Where an epoch stands: losses of the last batch and their means, time since the last report and in all."""
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
    """Train for one pass over the loader, or for what is left of it.

    Args:
        step: Makes the updates.
        on_log: Called with a Progress at log intervals and after the last update, on every rank.
        on_update: Called after each update with the number of batches done in the epoch and the result of its check.
        losses: Those of the epoch so far, with first_batch the number of the next batch.
        updates_per_epoch: Of a whole epoch, where this one is not.

    Returns:
        Mean losses by name, 'loss' first, then the parts that the task names; images of all ranks a second.

    Raises:
        NonFiniteError: at the next log interval after a loss that is NaN or infinite.
        DamagedError: more images than --max-damaged cannot be decoded.
    """
    args, device = step.args, step.device
    num_batches = len(loader)
    updates_in_epoch = math.ceil(num_batches / args.grad_accum_steps)
    updates_per_epoch = updates_per_epoch or updates_in_epoch
    losses = losses or RunningLosses(device, args.distributed)
    lap, total = Span(), Span()
    update = Update(epoch, first_batch)
    data_wanted = time.perf_counter()

    batch_index = first_batch - 1
    step.begin_epoch()
    for batch_index, (input, target) in enumerate(batches_of(loader), first_batch):
        update_index = batch_index // args.grad_accum_steps
        # The last update of an epoch may have fewer batches, and the first of one that goes on with other batches.
        first = update_index * args.grad_accum_steps
        batches = min(first + args.grad_accum_steps, num_batches) - max(first, first_batch)
        last_batch = batch_index == num_batches - 1
        complete = last_batch or (batch_index + 1) % args.grad_accum_steps == 0
        input, target = _to_device(input, target, args, device, step.precision)
        waited = time.perf_counter() - data_wanted
        verdict = step(update, input, target, batches, last=complete)
        for span in (lap, total):
            span.add(update.losses[-1].images * args.world_size, int(complete), waited)
        data_wanted = time.perf_counter()
        if not complete:
            continue

        num_updates = epoch * updates_per_epoch + update_index + 1
        if verdict is None or not verdict.broken:
            for batch_losses in update.losses:
                losses.update(batch_losses)
        made = verdict is None or verdict.made
        if made:
            step.task.update_ema(step=num_updates)
        update = Update(epoch, batch_index + 1)
        if args.synchronize_step and device.type != 'cpu':
            torch.accelerator.synchronize()
        if on_log is not None and losses.count and (update_index % args.log_interval == 0 or last_batch):
            last, mean = losses.read(f'by update {update_index + 1} of epoch {epoch}')
            on_log(Progress(epoch, update_index, updates_in_epoch, last, mean, lap, total, input, target))
            lap = Span()
        if made and scheduler is not None:
            scheduler.step_update(num_updates=num_updates)
        if on_update is not None:
            on_update(batch_index + 1, verdict)
        data_wanted = time.perf_counter()

    step.finish()
    check_damage(loader)
    check_delivered(batch_index + 1, num_batches)
    if hasattr(step.optimizer, 'sync_lookahead'):
        step.optimizer.sync_lookahead()
    if not losses.count:
        raise NonFiniteError(f'every update of epoch {epoch} was broken and left out. Try a smaller --lr')
    _, mean = losses.read(f'in epoch {epoch}')
    return mean, total.images / total.seconds


@torch.inference_mode()
def evaluate(
        model: nn.Module,
        loader,
        args: argparse.Namespace,
        device: torch.device,
        precision: Precision,
        log_interval: int,
        on_log: Callable[..., None] | None = None,
        on_batch: Callable[[int], None] | None = None,
        evaluator: ClassificationEvaluator | None = None,
        perturb: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Metrics over every sample once, whatever the number of ranks: loss, top-1 and top-5 in percent by default.

    Args:
        log_interval: Batches between calls of on_log(batch index, number of batches, metrics so far).
        on_batch: Called after each batch with its number; it may raise.
        evaluator: Another one of timm's protocol: update(output, target), summary(), compute(distributed).
        perturb: From a batch's input and target to the input that is evaluated in its place.

    Raises:
        DamagedError: an image cannot be decoded.
    """
    evaluator = evaluator or ClassificationEvaluator(device, max_samples=evaluation_sample_limit(loader))
    num_samples = 0
    for batch_index, (_, output, target) in enumerate(outputs_of(model, loader, args, device, precision, perturb)):
        num_samples += len(output)
        evaluator.update(output, target)
        if on_log is not None and (batch_index % log_interval == 0 or batch_index == len(loader) - 1):
            on_log(batch_index, len(loader), evaluator.summary())
        if on_batch is not None:
            on_batch(batch_index)
    metrics = evaluator.compute(distributed=args.distributed)
    warn_of_loss(loader, num_samples, device)  # a collective: compute() has shown that no rank failed
    return metrics


@torch.inference_mode()
def outputs_of(
        model: nn.Module,
        loader,
        args: argparse.Namespace,
        device: torch.device,
        precision: Precision,
        perturb: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[tuple[Input, torch.Tensor, torch.Tensor]]:
    """What the model sees, its logits [B, K] and the targets, batch by batch.

    Args:
        perturb: From a batch's input and target to the input that is evaluated in its place.

    Raises:
        DamagedError: an image cannot be decoded.
    """
    model.eval()
    for input, target in batches_of(loader):
        input, target = _to_device(input, target, args, device, precision)
        if perturb is not None:
            input = perturb(input, target)
        with precision.autocast():
            output = model(input)
        output = output[0] if isinstance(output, (tuple, list)) else output
        yield input, output, target
    check_damage(loader)


def _to_device(
        input: Input,
        target: torch.Tensor,
        args: argparse.Namespace,
        device: torch.device,
        precision: Precision,
) -> tuple[Input, torch.Tensor]:
    if args.no_prefetcher:
        input, target = to_device(input, target, device, precision.model_dtype)
    if args.channels_last and isinstance(input, torch.Tensor):
        input = input.contiguous(memory_format=torch.channels_last)
    return input, target
