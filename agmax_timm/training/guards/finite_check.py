"""Once an update, all ranks agree: whether a loss or gradient is broken, whether to save, whether to stop.

The losses are looked at on the device after the forward pass, and what all ranks found is read before the optimizer
steps. On a GPU that copy is under way while the backward pass runs, so the device never waits for it. Gradients are
looked at before the step where that costs no wait, on the CPU and with --nan-policy skip; on a GPU, without it, they
are read with the next update.
"""
import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.utils import get_total_norm

from ...assembly.sharding import whole
from ..losses import BatchLosses

GRADIENT = 'gradient'


@dataclass
class CheckResult:
    """What all ranks agreed on about an update."""
    broken: list[str]  # losses by name, or 'gradient', that are NaN or infinite on any rank
    here: list[str]  # those of this rank
    save: bool = False
    stop: bool = False
    late: bool = False  # the gradient of the previous update, which was made, is the broken one
    skipped: bool = False  # the loss scaler left the update out: a gradient is NaN or infinite
    scale: float | None = None  # the loss scale after a skipped update

    @property
    def made(self) -> bool:
        """Whether the optimizer stepped."""
        return not self.broken and not self.skipped


class FiniteCheck:
    """The state of all ranks.

    Args:
        args: Options, of which `distributed` and `nan_policy` count.
        device: Device of the losses.
        requests: Gives whether this rank wants to save, and to stop, after the update. None: never.
    """

    def __init__(
            self,
            args: argparse.Namespace,
            device: torch.device,
            requests: Callable[[], tuple[bool, bool]] | None = None,
    ):
        self.device = device
        self.distributed = args.distributed
        self.skips = args.nan_policy == 'skip'  # broken updates are left out
        self.at_once = device.type == 'cpu' or self.skips
        self.requests = requests or (lambda: (False, False))
        self.names: tuple[str, ...] = ()
        self._losses: torch.Tensor | None = None  # of the update so far: 0, or NaN where one is not finite
        self._late: torch.Tensor | None = None  # the same of the gradients of the last update
        self._reading: _Reading | None = None

    def look(self, losses: BatchLosses, last: bool) -> None:
        """Note the losses of a batch; after the last one of an update, ask the other ranks."""
        self.names = losses.names
        values = losses.values * 0  # one kernel, where isfinite() takes four
        self._losses = values if self._losses is None else self._losses + values
        if not last:
            return
        late = self._late if self._late is not None else values.new_zeros(1)
        self._reading = _Reading(torch.cat([late, self._losses]), self.distributed, self.requests())

    def agree(self) -> CheckResult:
        """What was found of the update, on all ranks. Call it before the optimizer steps."""
        (save, stop, late, *everywhere), (_, _, late_here, *here) = self._reading.read()
        self._losses = self._late = self._reading = None
        if late:  # that gradient has broken the weights, and so the losses of this update
            return CheckResult([GRADIENT], [GRADIENT] if late_here else [], late=True)
        return CheckResult(
            _named(self.names, everywhere), _named(self.names, here), save=save, stop=stop)

    @property
    def has_late(self) -> bool:
        """Whether the gradients of the last update are still to be read."""
        return self._late is not None

    def read_late(self) -> CheckResult:
        """What was found of the gradients of the last update, on all ranks. Waits for the device."""
        (_, _, late), (_, _, here) = _Reading(self._late, self.distributed).read()
        self._late = None
        return CheckResult([GRADIENT] if late else [], [GRADIENT] if here else [], late=late)

    def check_gradients(self, parameters: list[nn.Parameter], verdict: CheckResult) -> torch.Tensor | None:
        """Add to the verdict what the backward pass of the update left.

        Returns:
            Norm of all gradients, for who clips by it; None where it was not needed.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or verdict.broken:
            return None
        norm = get_total_norm(gradients)
        if not self.at_once:
            self._late = whole(norm).reshape(1) * 0
        elif not math.isfinite(whole(norm).item()):
            verdict.broken.append(GRADIENT)
            verdict.here.append(GRADIENT)
        return norm


class _Reading:
    """Flags on their way to the host, those of all ranks together and those of this one.

    Args:
        values: Of 0 or NaN, which means a flag; on the device.
        requests: Whether this rank wants to save, and to stop.
    """

    def __init__(self, values: torch.Tensor, distributed: bool, requests: tuple[bool, bool] = (False, False)):
        self.requests = [*map(bool, requests)]
        rows = values[None]
        if distributed:
            # Filled on the device: a list would be copied to it, and the host would wait for that.
            told = [torch.full((1,), torch.nan if wish else 0., device=values.device) for wish in requests]
            rows = torch.cat([*told, values]).repeat(2, 1)
            dist.all_reduce(rows[0])  # NaN of any rank stays in the sum
        on_gpu = rows.device.type == 'cuda'  # others copy at once
        self.host = rows.to('cpu', non_blocking=on_gpu)
        self.copied = torch.cuda.Event() if on_gpu else None
        if on_gpu:
            self.copied.record()

    def read(self) -> tuple[list[bool], list[bool]]:
        """Flags of all ranks and of this rank, with the requests first. Waits for the copy."""
        if self.copied is not None:
            self.copied.synchronize()
        rows = self.host.isnan().tolist()
        if len(rows) == 1:
            rows = [self.requests + rows[0]] * 2
        return rows[0], rows[1]


def _named(names: tuple[str, ...], flags: list[bool]) -> list[str]:
    """The losses that are broken; their sum only where no part of it is."""
    broken = [name for name, flag in zip(names, flags) if flag]
    return [name for name in broken if name != 'loss'] or broken
