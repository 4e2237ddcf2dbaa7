"""Which samples of a data set cannot be decoded, known to its loader's workers and to the main process alike."""
from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist

from ...base.errors import DamagedError
from ...base.text import listed


class Damage:
    """A flag for each sample, in memory that worker processes share, whenever they start: nothing has to be sent.

    Args:
        reader: timm's reader of the samples, which knows their number and names.
        max_share: Share of the samples, in [0, 1], that may be damaged; None if none may, as in evaluation.
    """

    def __init__(self, reader, max_share: float | None = None):
        self.reader = reader
        self.max_share = max_share
        self.deferred = False  # if True, found() does not raise for too many; a run calls check() between updates
        self.flags = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()
        self._told = torch.zeros_like(self.flags)

    def found(self, index: int, reason: str) -> None:
        """Note a damaged sample.

        Raises:
            DamagedError: no sample may be damaged, or there are now too many and the check is not deferred.
        """
        self.flags[index] = 1
        if self.max_share is None:
            raise DamagedError(f'{self.path(index)} cannot be decoded: {reason}: repair it or take it out; '
                               '--check-data lists all such files')
        if not self.deferred:
            self.check()

    def check(self) -> None:
        """Raise DamagedError if more samples are damaged than may be."""
        if not self.too_many:
            return
        count = self.count()
        first = listed([*map(self.path, self.indices())], 3)
        limit = 'none may be' if self.max_share is None else f'more than --max-damaged {self.max_share:g}'
        raise DamagedError(f'{count} of {len(self.flags)} samples ({count / len(self.flags):.2%}) cannot be decoded, '
                           f'{limit}: {first}: repair them or take them out, --check-data lists all'
                           + ('' if self.max_share is None else '; or raise --max-damaged'))

    @property
    def too_many(self) -> bool:
        """Whether more samples are damaged than may be."""
        # Called after each update, mostly without any damaged: any() takes 0.1 ms for a million samples.
        return bool(self.flags.any()) and self.count() > (self.max_share or 0) * len(self.flags)

    def count(self) -> int:
        return int(np.count_nonzero(self.flags.numpy()))  # torch's sum takes 7 times as long

    def indices(self) -> list[int]:
        """Damaged samples found so far, in order."""
        return self.flags.nonzero().flatten().tolist()

    def mark(self, indices: Iterable[int]) -> None:
        """Add samples that were found before, as by the run that is resumed. Raises IndexError past the end."""
        self.flags[torch.tensor(list(indices), dtype=torch.long)] = 1

    def restore(self, indices: Iterable[int]) -> None:
        """Mark the samples that a resumed run had found, but none if they were too many: they may be repaired now."""
        self.mark(indices)
        if self.too_many:
            self.flags.zero_()

    def untold(self) -> list[int]:
        """Damaged samples that no call gave before, in order."""
        new = self.flags > self._told
        self._told |= new
        return new.nonzero().flatten().tolist()

    def gather(self, device: torch.device) -> None:
        """Tell every rank what all have found; `device` is one that the ranks' backend works on. A collective."""
        if dist.is_available() and dist.is_initialized():
            flags = self.flags.to(device, copy=True)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            self.flags |= flags.cpu()

    def path(self, index: int) -> str:
        """Path of a sample, its name in a tar file, or its number where it has no name."""
        return self.reader.filename(index, absolute=True) or f'sample {index}'
