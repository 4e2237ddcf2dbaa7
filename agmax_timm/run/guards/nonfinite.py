"""What happens to an update whose losses or gradients are NaN or infinite, and what is kept of it to look at."""
import argparse
import logging
import os
from typing import Any, List, Optional

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils import unwrap_model

from ...data.resumable import ResumableLoader
from ...durable import replacing
from ..losses import NonFiniteError, Update
from ..sharding import whole
from .watch import Verdict

_logger = logging.getLogger('train')
_MOST_FILES = 10
_MOST_IN_A_ROW = 50


class BrokenUpdates:
    """Ends the run at the first broken update, or leaves such updates out, as --nan-policy says.

    Args:
        args: Options.
        task: What is trained.
        loader: Knows the indices of a batch.
    """

    def __init__(self, args: argparse.Namespace, task: TrainingTask, loader: ResumableLoader):
        self.args = args
        self.task = task
        self.loader = loader
        self.folder: Optional[str] = None  # where files go, on every rank; None: nowhere
        self.count = 0
        self._last = (-1, 0)  # epoch and batch behind the last one
        self._in_a_row = 0

    def __call__(self, update: Update, verdict: Verdict) -> None:
        """
        Raises:
            NonFiniteError: on all ranks, at the first one, or with --nan-policy skip after 50 in a row.
        """
        found = [self._describe(update, verdict)]
        if self.args.distributed:
            of_ranks = [None] * self.args.world_size
            dist.all_gather_object(of_ranks, found[0])
            found = of_ranks
        self.count += 1
        self._in_a_row = self._in_a_row + 1 if self._last == (update.epoch, update.first_batch) else 1
        self._last = (update.epoch, update.first_batch + len(update.losses))
        number = update.first_batch // self.args.grad_accum_steps + 1
        message = (f"update {number} of epoch {update.epoch}: {', '.join(verdict.broken)} not finite, "
                   f"{'; '.join(text for text in found if text)}")
        if self.args.nan_policy == 'stop':
            raise NonFiniteError(f'{message}. The update was not made, and nothing was saved of it. Try a smaller '
                                 '--lr, --clip-grad, more --warmup-epochs, --amp-dtype bfloat16 or --nan-policy skip')
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise NonFiniteError(f'{message}: the last of {self._in_a_row} updates in a row. Try a smaller --lr')
        if self.args.rank == 0:
            _logger.warning(f'Left out: {message}')

    def _describe(self, update: Update, verdict: Verdict) -> str:
        """Of this rank: where it is broken, the samples, and the file with the batch."""
        if not verdict.here:
            return ''
        indices = [self.loader.indices(update.first_batch + i) for i in range(len(update.losses))]
        known = [index for batch in indices if batch for index in batch]
        words = f'samples {_listed(known)}' if known else 'samples of unknown index'
        if self.folder is not None and self.count < _MOST_FILES:
            words += f', kept in {self._write(update, verdict, indices)}'
        return f'on rank {self.args.rank} {words}' if self.args.distributed else words

    def _write(self, update: Update, verdict: Verdict, indices: List[Any]) -> str:
        """One forward pass of `weights`, in training mode, on `input` and `target` gives the broken losses again."""
        number = update.first_batch // self.args.grad_accum_steps
        path = os.path.join(self.folder, f'broken-{update.epoch}-{number}-rank{self.args.rank}.pth')
        module = unwrap_model(self.task.get_trainable_module())
        weights = {} if self.args.fsdp else {
            name: whole(value).detach().cpu() for name, value in module.state_dict().items()}
        content = {
            'epoch': update.epoch, 'update': number, 'rank': self.args.rank, 'broken': list(verdict.here),
            'losses': [{name: value.item() for name, value in values.items()} for values, _ in update.losses],
            'indices': indices, 'input': _on_host(update.input), 'target': _on_host(update.target),
            'weights': weights, 'model': self.args.model, 'num_classes': self.args.num_classes,
        }
        try:
            with replacing(path) as f:
                torch.save(content, f)
        except OSError as error:
            return f'nothing, {error}'
        return path


def _on_host(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_host(part) for name, part in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _listed(indices: List[Any], most: int = 8) -> str:
    indices = [index[0] if isinstance(index, tuple) else index for index in indices]  # with their scheduled size
    shown = ', '.join(map(str, indices[:most]))
    return shown if len(indices) <= most else f'{shown} and {len(indices) - most} more'
