"""Memory of batches that is used again, and its way from the worker that writes it to the process that reads it."""
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

# Batches of a worker that may be in use at a time: torch asks for 2 ahead, and the prefetcher reads one.
_IN_USE = 3
_numbers: Dict[int, int] = {}  # of the buffers of this worker, by address


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
                _numbers[ring[-1].data_ptr()] = len(_numbers)
        else:
            ring.append(ring.pop(0))
        return ring[-1]


class InBuffer(NamedTuple):
    """A batch as a worker sends it: the number of the buffer, the images when it is new, the targets."""
    number: int
    images: Optional[torch.Tensor]
    target: np.ndarray


class Sender:
    """Send each buffer of this worker once, and from then on its number.

    A tensor in shared memory goes as a file descriptor, for which two processes open a socket: a millisecond for the
    images of each batch, and another one for its targets.
    """

    def __init__(self):
        self._sent: Set[int] = set()

    def __call__(self, batch: Any) -> Any:
        """What to send for a batch; (images, target) with images that are in no buffer, and all else, as it is."""
        if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], torch.Tensor)):
            return batch
        images, target = batch
        number = _numbers.get(images.data_ptr())
        if number is None:
            return batch
        is_new = number not in self._sent
        self._sent.add(number)
        return InBuffer(number, images if is_new else None, target.numpy())


class Receiver:
    """The other end, in the main process, of the Senders of a loader's workers."""

    def __init__(self):
        self._buffers: Dict[Tuple[int, int], torch.Tensor] = {}  # by worker and number

    def __call__(self, sent: Any, worker: int) -> Any:
        """The batch that a worker sent. Each has to be received, in the order of the worker."""
        if not isinstance(sent, InBuffer):
            return sent
        if sent.images is not None:
            self._buffers[worker, sent.number] = sent.images
        return self._buffers[worker, sent.number], torch.from_numpy(sent.target)

    def forget(self) -> None:
        """Free the memory of workers that have ended."""
        self._buffers.clear()
