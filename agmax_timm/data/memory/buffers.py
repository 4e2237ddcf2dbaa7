"""Memory of batches that is used again, and its way from the worker that writes it to the process that reads it."""
import itertools
import os
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.data import get_worker_info

# Batches of a worker that may be in use at a time: torch asks for 2 ahead, and the prefetcher reads one.
_IN_USE = 3
_numbers: dict[int, int] = {}  # of the buffers of this worker, by address
_keys = itertools.count()
_couriers: 'WeakValueDictionary[int, Courier]' = WeakValueDictionary()  # of the main process, by key


def is_pinned(wanted: bool | None, device: torch.device) -> bool:
    """Whether batches are copied to pinned memory on their way to a device; None is where the device is CUDA.

    timm's prefetcher lets the copy to the device wait for the steps before it. From pinned memory only the device
    waits, from other memory this process does.
    """
    return device.type == 'cuda' if wanted is None else wanted


def is_reusable(device: torch.device, pinned: bool) -> bool:
    """Whether memory of batches can be written again once the next batches were asked for.

    A copy to a device may read later than it returns. The CPU copies at once; and torch copies a batch to pinned
    memory before it gives it. A driver of CUDA may do as much for other memory, which is not promised.
    """
    return device.type == 'cpu' or (device.type == 'cuda' and pinned)


class Buffers:
    """Memory of batches, in turn, of each shape: a fresh one costs more time in page faults than what is written.

    What a worker process takes is shared with the main process, which so reads it where it was written.

    Args:
        reused: Whether memory is used again, see is_reusable.
    """

    def __init__(self, reused: bool = True):
        self.reused = reused
        self._rings: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of uint8 of this shape, with any content."""
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
    """Let each buffer of a loader's workers come to the main process once, and from then on its number.

    A tensor in shared memory comes as a file descriptor, for which two processes open a socket: up to a millisecond for
    the images of each batch, and another one for its targets. The loader has to hold the courier, as its collate
    function may do, and calls it in a worker.
    """

    def __init__(self):
        self._key = next(_keys)
        self._sent: set[int] = set()  # in a worker: numbers
        self._received: dict[tuple[int, int], torch.Tensor] = {}  # in the main process: by process and number
        _couriers[self._key] = self

    def __call__(self, batch: Any) -> Any:
        """What a worker sends for a batch: (images, target) with images in a buffer, by number, all else as it is."""
        if not (isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], torch.Tensor)):
            return batch
        images, target = batch
        number = _numbers.get(images.data_ptr())
        if number is None:
            return batch
        is_new = number not in self._sent
        self._sent.add(number)
        if isinstance(target, torch.Tensor) and target.dtype in (torch.int64, torch.float32):
            target = target.numpy()  # whose bytes go along with the message
        return _InBuffer((self._key, os.getpid(), number, images if is_new else None, target))

    def forget(self) -> None:
        """Free, in the main process, the memory of workers that have ended."""
        self._received.clear()


class _InBuffer:
    """A batch that is again what it was where it is unpickled, be it only to be thrown away."""

    def __init__(self, message: tuple):
        self._message = message

    def __reduce__(self) -> tuple:
        return _arrive, self._message


def _arrive(
        key: int,
        process: int,
        number: int,
        images: torch.Tensor | None,
        target: Any,
) -> tuple[torch.Tensor, Any]:
    received = _couriers[key]._received
    if images is not None:
        received[process, number] = images
    return received[process, number], torch.from_numpy(target) if isinstance(target, np.ndarray) else target
