"""Losses of the batches of an update, and sums over an epoch that stay on the device until they are read."""
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from ...base.distributed import sum_of_ranks, total_dtype, world_size
from ...base.errors import UserError
from ...data.loading.device import Input


class NonFiniteError(UserError, RuntimeError):
    """A loss, gradient, weight or metric that is NaN or infinite. The message names it and the update or epoch."""
    exit_status = 1


@dataclass
class BatchLosses:
    """Losses of one batch, in one tensor on the device."""
    names: tuple[str, ...]  # 'loss', then its parts
    values: torch.Tensor  # [len(names)]
    images: int  # number of images, not of views; with --aug-splits, of their augmented versions

    @classmethod
    def of(cls, result: dict[str, torch.Tensor], images: int) -> 'BatchLosses':
        """Return the losses in the result of a task."""
        losses = {name: value.detach() for name, value in result.items() if name != 'output'}
        return cls(tuple(losses), torch.stack(list(losses.values())), images)


@dataclass
class Update:
    """The batches of an update, before the optimizer steps or skips it."""
    epoch: int
    first_batch: int  # number of the first batch in the epoch
    losses: list[BatchLosses] = field(default_factory=list)  # of each batch
    input: Input | None = None  # of the last batch
    target: torch.Tensor | None = None
    buffers: list[torch.Tensor] = field(default_factory=list)

    def keep_buffers(self, module: nn.Module) -> None:
        """Copy the running statistics, because a broken batch changes them before the check."""
        self.buffers = [buffer.clone() for buffer in module.buffers()]

    @torch.no_grad()
    def restore_buffers(self, module: nn.Module) -> None:
        for buffer, saved in zip(module.buffers(), self.buffers):
            buffer.copy_(saved)


class RunningLosses:
    """Last and mean losses of an epoch, summed on the device in float64.

    A sum stays NaN or infinite, so read() finds these values even if it is called at intervals.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.dtype = total_dtype(device)
        self.names: tuple[str, ...] = ()
        self.last: torch.Tensor | None = None
        self.sums: torch.Tensor | None = None
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this rank, in host memory."""
        tensors = {name: None if value is None else value.to('cpu', self.dtype)
                   for name, value in (('last', self.last), ('sums', self.sums))}
        return {'names': list(self.names), 'count': self.count, **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.count = tuple(state['names']), state['count']
        for name in ('last', 'sums'):
            setattr(self, name, None if state[name] is None else state[name].to(self.device))

    def update(self, losses: BatchLosses) -> None:
        """Add the losses of one batch."""
        self.names, self.last = losses.names, losses.values
        if self.sums is None:
            self.sums = torch.zeros_like(self.last, dtype=self.dtype)
        self.sums = torch.add(self.sums, self.last, alpha=losses.images)
        self.count += losses.images

    def read(self, when: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return the losses of the last batch and the means so far, averaged over the ranks. Waits for the device.

        Raises:
            NonFiniteError: A loss was NaN or infinite in any batch so far, on any rank.
        """
        assert self.last is not None and self.sums is not None
        values = torch.stack([self.last.to(self.dtype), self.sums / self.count])
        values = sum_of_ranks(values) / world_size()
        last, mean = (dict(zip(self.names, row)) for row in values.tolist())
        broken = flagged(self.names, [not math.isfinite(value) for value in mean.values()])
        if broken:
            raise NonFiniteError(f"{', '.join(f'{name} is {mean[name]}' for name in broken)} {when}: nothing was saved "
                                 'of it. Try a smaller --lr, --clip-grad, more --warmup-epochs or --amp-dtype bfloat16')
        return last, mean


def flagged(names: tuple[str, ...], flags: list[bool]) -> list[str]:
    """Return the names that are flagged. 'loss', the sum of the others, is named only if none of them is."""
    broken = [name for name, flag in zip(names, flags) if flag]
    return [name for name in broken if name != 'loss'] or broken
