"""One evaluation of a model: its metrics, or its outputs batch by batch."""
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch.nn.parallel import DistributedDataParallel

from ..assembly import loaders
from ..assembly.model import Precision
from ..base.distributed import is_distributed
from ..data.loading.device import Input
from ..data.loading.workers import batches_of
from ..data.sources.shards import warn_of_loss
from ..options.parsers import AnyOptions


@torch.inference_mode()
def evaluate(
        model: Any,
        loader,
        options: AnyOptions,
        device: torch.device,
        precision: Precision,
        log_interval: int,
        on_log: Callable[..., None] | None = None,
        on_batch: Callable[[int], None] | None = None,
        evaluator: Any = None,
        perturb: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
        before_compute: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Evaluate a model. Every sample counts once, for any number of ranks.

    Args:
        log_interval: Number of batches between calls of on_log(batch index, number of batches, metrics so far).
        on_batch: Function that is called with the index of each batch after it. It may raise.
        evaluator: Evaluator with timm's protocol: update(output, target), summary(), compute(distributed).
        perturb: Function from input and target of a batch to the input that replaces it.
        before_compute: Function that is called before ranks wait for each other in compute(). It may raise.

    Returns:
        Metrics of the evaluator; by default the loss, and top-1 and top-5 accuracy in percent.

    Raises:
        DamagedError: An image cannot be decoded.
    """
    evaluator = evaluator or ClassificationEvaluator(device, max_samples=evaluation_sample_limit(loader))
    num_samples = 0
    for batch_index, (_, output, target) in enumerate(outputs_of(model, loader, options, device, precision, perturb)):
        num_samples += len(output)
        evaluator.update(output, target)
        if on_log is not None and (batch_index % log_interval == 0 or batch_index == len(loader) - 1):
            on_log(batch_index, len(loader), evaluator.summary())
        if on_batch is not None:
            on_batch(batch_index)
    if before_compute is not None:
        before_compute()
    metrics = evaluator.compute(distributed=is_distributed())
    warn_of_loss(loader, num_samples, device)  # a collective; after compute() no rank has failed
    return metrics


@torch.inference_mode()
def outputs_of(
        model: nn.Module,
        loader,
        options: AnyOptions,
        device: torch.device,
        precision: Precision,
        perturb: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[tuple[Input, torch.Tensor, torch.Tensor]]:
    """Yield the input, the logits [B, K] and the targets of each batch.

    Args:
        perturb: Function from input and target of a batch to the input that replaces it.

    Raises:
        DamagedError: An image cannot be decoded.
    """
    model.eval()
    if isinstance(model, DistributedDataParallel):  # broadcasts buffers, but ranks may have unequal numbers of batches
        model = model.module
    for input, target in batches_of(loader):
        input, target = loaders.prepare_batch(options, input, target, device, precision)
        if perturb is not None:
            input = perturb(input, target)
        with precision.autocast():
            output = model(input)
        output = output[0] if isinstance(output, (tuple, list)) else output
        yield input, output, target
