"""Memory of batches that is reused, and its transfer from a worker to the main process."""
import itertools
import os
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.data import get_worker_info

# Number of batches of a worker that are in use at the same time: torch requests 2 ahead, and the prefetcher reads one.
_IN_USE = 3
_numbers: dict[int, int] = {}  # numbers of the buffers of this worker, by address
_keys = itertools.count()
_couriers: 'WeakValueDictionary[int, Courier]' = WeakValueDictionary()  # couriers of the main process, by key


def is_pinned(wanted: bool | None, device: torch.device) -> bool:
    """Whether batches are copied to pinned memory before they are copied to a device. The default is True for CUDA.

    timm's prefetcher makes the copy to the device wait for the previous steps. With pinned memory, only the device
    waits. With other memory, this process waits.

    Args:
        wanted: Choice of the user, or None.
    """
    return device.type == 'cuda' if wanted is None else wanted


def is_reusable(device: torch.device, pinned: bool) -> bool:
    """Whether the memory of a batch can be written again after the following batches were requested.

    A copy to a device may return before it has read the memory. On the CPU, the copy is then complete. With pinned
    memory, torch has copied the batch before the loader returns it. For other memory, CUDA gives no guarantee.

    Args:
        pinned: Whether batches are copied to pinned memory.
    """
    return device.type == 'cpu' or (device.type == 'cuda' and pinned)


class Buffers:
    """Reused memory of batches of each shape. Page faults of new memory take more time than writing a batch.

    A worker writes to shared memory, which the main process reads without a copy.

    Args:
        reused: Whether memory is reused, see is_reusable.
    """

    def __init__(self, reused: bool = True):
        self.reused = reused
        self._rings: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a uint8 tensor of a shape, with any content."""
        in_worker = get_worker_info() is not None
        if not self.reused:
            fresh = torch.empty(shape, dtype=torch.uint8)
            return fresh.share_memory_() if in_worker else fresh
        ring = self._rings.setdefault(shape, [])
        if len(ring) < (_IN_USE if in_worker else 1):
            ring.append(torch.empty(shape, dtype=torch.uint8))
            if in_worker:
                ring[-1].share_memory_()
                _numbers[ring[-1].data_ptr()] = len(_numbers)
        else:
            ring.append(ring.pop(0))
        return ring[-1]


class Courier:
    """Send each buffer of a worker to the main process once, and afterwards only the number of the buffer.

    A tensor in shared memory is sent as a file descriptor through a new socket. This takes up to a millisecond for the
    images of a batch, and another one for its targets. A worker calls the courier with each batch. The loader must keep
    a reference to it, for example in its collate function.
    """

    def __init__(self):
        self._key = next(_keys)
        self._sent: set[int] = set()  # in a worker: numbers of its buffers
        self._received: dict[tuple[int, int], torch.Tensor] = {}  # in the main process: by worker process and number
        _couriers[self._key] = self

    def __call__(self, batch: Any) -> Any:
        """Return what a worker sends for a batch: the number of its buffer, or the batch if it is not in a buffer."""
        if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], torch.Tensor)):
            return batch
        images, target = batch
        number = _numbers.get(images.data_ptr())
        if number is None:
            return batch
        is_new = number not in self._sent
        self._sent.add(number)
        if isinstance(target, torch.Tensor) and target.dtype in (torch.int64, torch.float32):
            target = target.numpy()  # an array is sent by value
        return _BufferedBatch((self._key, os.getpid(), number, images if is_new else None, target))

    def forget(self) -> None:
        """Free the memory of workers that have ended. Called in the main process."""
        self._received.clear()


class _BufferedBatch:
    """A batch that is pickled as the arguments of _receive. Unpickling it gives the batch."""

    def __init__(self, message: tuple):
        self._message = message

    def __reduce__(self) -> tuple:
        return _receive, self._message


def _receive(key: int, process: int, number: int, images: torch.Tensor | None, target: Any) -> tuple[torch.Tensor, Any]:
    received = _couriers[key]._received
    if images is not None:
        received[process, number] = images
    return received[process, number], torch.from_numpy(target) if isinstance(target, np.ndarray) else target
