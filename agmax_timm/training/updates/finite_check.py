"""All ranks agree on each update: whether a loss or gradient is not finite, whether to save, whether to stop.

Losses are checked on the device after the forward pass. The results of all ranks are read before the optimizer's step.
A GPU copies them during the backward pass, so it never waits for the copy. Gradients are checked before the step, but
on a GPU with --nan-policy stop, this check is read one update later: reading it at once would make the GPU wait.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.utils import get_total_norm

from ...assembly.sharding import whole
from ...base.distributed import is_distributed
from ...options.run import Run
from .losses import BatchLosses, flagged

GRADIENT = 'gradient'


@dataclass
class CheckResult:
    """Result of the check of an update. Only `here` differs between ranks."""
    broken: list[str]  # names of losses, or 'gradient', that are NaN or infinite on any rank
    here: list[str]  # the same for this rank alone
    save: bool = False
    stop: bool = False
    late: bool = False  # the broken gradient is that of the previous update, which was made
    skipped: bool = False  # the loss scaler left the update out: a gradient is NaN or infinite
    scale: float = float('inf')  # the loss scale after a skipped update

    @property
    def made(self) -> bool:
        """Whether the optimizer stepped."""
        return not self.broken and not self.skipped


class FiniteCheck:
    """Checks losses and gradients of updates, and exchanges the results and requests of all ranks.

    Args:
        requests: Function that returns whether this rank requests to save, and to stop, after the update. None never
            requests.
    """

    def __init__(self, options: Run, device: torch.device, requests: Callable[[], tuple[bool, bool]] | None = None):
        self.device = device
        self.distributed = is_distributed()
        self.skips = options.nan_policy == 'skip'  # broken updates are left out
        self.at_once = device.type == 'cpu' or self.skips
        self.requests = requests or (lambda: (False, False))
        self.names: tuple[str, ...] = ()
        self._losses: torch.Tensor | None = None  # of the update so far: 0, or NaN where one is not finite
        self._late: torch.Tensor | None = None  # the same of the gradients of the last update
        self._reading: _Reading | None = None

    def check_losses(self, losses: BatchLosses, last: bool) -> None:
        """Check the losses of a batch. After the last batch of an update, send the results to the other ranks."""
        self.names = losses.names
        values = losses.values * 0  # one kernel, where isfinite() takes four
        self._losses = values if self._losses is None else self._losses + values
        if not last:
            return
        late = self._late if self._late is not None else values.new_zeros(1)
        self._reading = _Reading(torch.cat([late, self._losses]), self.distributed, self.requests())

    def agree(self) -> CheckResult:
        """Return the results of the update on all ranks. Call it before the optimizer steps."""
        assert self._reading is not None
        (save, stop, late, *everywhere), (_, _, late_here, *here) = self._reading.read()
        self._losses = self._late = self._reading = None
        if late:  # that gradient has broken the weights, and so the losses of this update
            return CheckResult([GRADIENT], [GRADIENT] if late_here else [], late=True)
        return CheckResult(flagged(self.names, everywhere), flagged(self.names, here), save=save, stop=stop)

    @property
    def has_late(self) -> bool:
        """Whether the check of the last update's gradients was not read yet."""
        return self._late is not None

    def read_late(self) -> CheckResult:
        """Read the check of the last update's gradients on all ranks. Waits for the device."""
        assert self._late is not None
        (_, _, late), (_, _, here) = _Reading(self._late, self.distributed).read()
        self._late = None
        return CheckResult([GRADIENT] if late else [], [GRADIENT] if here else [], late=late)

    def check_gradients(self, parameters: list[nn.Parameter], checked: CheckResult) -> torch.Tensor | None:
        """Check gradients. Add the result to that of the losses, unless it is read with the next update.

        Returns:
            Norm of all gradients, for clipping by norm; None if it was not computed.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or checked.broken:
            return None
        norm = get_total_norm(gradients)
        if not self.at_once:
            self._late = whole(norm).reshape(1) * 0
        elif not math.isfinite(whole(norm).item()):
            checked.broken.append(GRADIENT)
            checked.here.append(GRADIENT)
        return norm


class _Reading:
    """Copy of flags to the host: flags of all ranks together, and flags of this rank.

    Args:
        values: Flags on the device, NaN if set and else 0.
        requests: Further flags, which this process has set: whether to save, and to stop.
    """

    def __init__(self, values: torch.Tensor, distributed: bool, requests: tuple[bool, bool] = (False, False)):
        self.requests = [*map(bool, requests)]
        rows = values[None]
        if distributed:
            # Filled on the device: the host would wait for the copy of a list.
            flags = [torch.full((1,), torch.nan if flag else 0., device=values.device) for flag in requests]
            rows = torch.cat([*flags, values]).repeat(2, 1)
            dist.all_reduce(rows[0])  # NaN of any rank stays in the sum
        on_gpu = rows.device.type == 'cuda'  # others copy at once
        self.host = rows.to('cpu', non_blocking=on_gpu)
        self.copied = torch.cuda.Event() if on_gpu else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> tuple[list[bool], list[bool]]:
        """Return the flags of all ranks and those of this rank, the requests first. Waits for the copy."""
        if self.copied is not None:
            self.copied.synchronize()
        rows = self.host.isnan().tolist()
        if len(rows) == 1:
            rows = [self.requests + rows[0]] * 2
        return rows[0], rows[1]
