"""Records of samples that cannot be decoded, shared by the main process and the loader workers."""
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ...base.distributed import is_distributed
from ...base.errors import DamagedError
from ...base.text import quoted


def path_of(reader: Any, index: int) -> str:
    """Return the path of a sample, its name in a tar file, or its number in the split if it has no name."""
    try:
        path = reader.filename(index, absolute=True)
    except TypeError:  # raised by timm's reader of hfds/ if the image is missing
        path = None
    rows = getattr(reader, 'rows', None)  # of a part of hfds/, see held_out.py
    return path or f'sample {index if rows is None else rows[index]}'


class Damage:
    """A flag for each damaged sample, in memory that this process and its workers share.

    Args:
        reader: timm's reader of the samples, which knows their number and names.
        max_share: Share of the samples, in [0, 1], that may be damaged. None allows none, as in evaluation.

    Attributes:
        deferred: If True, record() does not raise for too many samples. A run calls check() between updates.
    """

    def __init__(self, reader, max_share: float | None = None):
        self.reader = reader
        self.max_share = max_share
        self.deferred = False
        self.flags = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()
        self._reported = torch.zeros_like(self.flags)

    def record(self, index: int, reason: str) -> None:
        """Record a damaged sample.

        Raises:
            DamagedError: No sample may be damaged, or there are now too many and the check is not deferred.
        """
        self.flags[index] = 1
        if self.max_share is None:
            raise DamagedError(f"'{self.path(index)}' cannot be decoded: {reason}: repair or remove it; "
                               '--check-data lists all damaged files')
        if not self.deferred:
            self.check()

    def check(self) -> None:
        """Raise DamagedError if too many samples are damaged."""
        if not self.too_many:
            return
        count = self.count()
        first = quoted(map(self.path, self.indices()), 3)
        limit = 'none may be' if self.max_share is None else f'more than --max-damaged {self.max_share:g}'
        raise DamagedError(f'{count} of {len(self.flags)} samples ({count / len(self.flags):.2%}) cannot be decoded, '
                           f'{limit}: {first}: repair or remove them; --check-data lists all'
                           + ('' if self.max_share is None else '; or raise --max-damaged'))

    @property
    def too_many(self) -> bool:
        """Whether more samples are damaged than max_share allows."""
        # Called after each update. Usually no sample is damaged, and any() takes 0.1 ms for a million samples.
        return bool(self.flags.any()) and self.count() > self._most

    @property
    def _most(self) -> float:
        return (self.max_share or 0) * len(self.flags)

    def count(self) -> int:
        return int(np.count_nonzero(self.flags.numpy()))  # torch's sum takes 7 times as long

    def indices(self) -> list[int]:
        """Return the damaged samples found so far, in order."""
        return self.flags.nonzero().flatten().tolist()

    def restore(self, indices: Iterable[int]) -> None:
        """Mark the damaged samples of a resumed run. If they were too many, mark none: they may be repaired now.

        Indices beyond the data are ignored: it may have fewer samples now.
        """
        self.flags[[index for index in indices if index < len(self.flags)]] = 1
        if self.too_many:
            self.flags.zero_()

    def take_new(self) -> list[int]:
        """Return the damaged samples that no earlier call returned, in order."""
        new = self.flags > self._reported
        self._reported |= new
        return new.nonzero().flatten().tolist()

    def gather(self, device: torch.device) -> bool:
        """Combine the flags of all ranks, a collective on the device of the process group's backend.

        Returns:
            Whether too many samples are damaged: the same on every rank, also if workers find more in the meantime.
        """
        flags = self.flags.to(device, copy=True)
        if is_distributed():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            self.flags |= flags.cpu()
        return flags.sum().item() > self._most

    def path(self, index: int) -> str:
        return path_of(self.reader, index)
