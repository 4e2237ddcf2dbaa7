"""Saving in the background of training: copying the state to the host, and a thread that writes the file."""
import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from .atomic_write import replacing


def snapshot(state: Any) -> Any:
    """Copy nested dicts, lists and tuples of tensors and plain values to the host.

    Tensors that share memory also share it in the copy, so torch.save writes the same file.
    """
    return _copy(state, {})


def _copy(value: Any, storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> Any:
    if isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict keeps its attributes, a state dict its versions
        copied.update((key, _copy(item, storages)) for key, item in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(_copy(item, storages) for item in value)
    if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided:
        return _copy_tensor(value.detach(), storages)
    return copy.deepcopy(value)


def _copy_tensor(value: torch.Tensor, storages: dict[int, tuple]) -> torch.Tensor:
    source = value.untyped_storage()
    if source._cdata not in storages:  # the source is kept with its copy, so that its address is not used again
        storages[source._cdata] = source, source.clone() if source.device.type == 'cpu' else source.cpu()
    copied = torch.empty(0, dtype=value.dtype)
    return copied.set_(storages[source._cdata][1], value.storage_offset(), value.shape, value.stride())


def write_file(content: dict[str, Any], path: str) -> None:
    """Replace a file by a new one of torch.save, completely or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as f:
        try:
            torch.save(content, f)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the error of the disk
                raise error.__context__ from None
            raise


class Background:
    """Run one function at a time in a thread. The process does not end before the function has returned."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, 'writer')  # starts its thread with the first call
        self._future: Future | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Wait for the previous function, then start `work`."""
        self.wait()
        self._future = self._pool.submit(work)

    def wait(self) -> None:
        """Wait for the function, and raise its exception, if any."""
        if self._future is not None:
            wait([self._future])  # a signal can raise here; the function is then still waited for later
            future, self._future = self._future, None
            future.result()
