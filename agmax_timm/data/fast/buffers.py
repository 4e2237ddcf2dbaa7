"""Memory of batches that is used again."""
from typing import Dict, List, Tuple

import torch
from torch.utils.data import get_worker_info

# Batches of a worker that may be in use at a time: torch asks for 2 ahead, and the prefetcher reads one.
_IN_USE = 3


class Buffers:
    """Memory of batches, in turn, of each shape: a fresh one costs more time in page faults than what is written.

    What a worker process takes is shared with the main process, which so reads it where it was written.
    """

    def __init__(self):
        self._rings: Dict[Tuple[int, ...], List[torch.Tensor]] = {}

    def take(self, shape: Tuple[int, ...]) -> torch.Tensor:
        """A tensor of uint8 of this shape, whose content is that of some batch before."""
        in_worker = get_worker_info() is not None
        ring = self._rings.setdefault(shape, [])
        if len(ring) < (_IN_USE if in_worker else 1):
            ring.append(torch.empty(shape, dtype=torch.uint8))
            if in_worker:
                ring[-1].share_memory_()
        else:
            ring.append(ring.pop(0))
        return ring[-1]
