"""Work beside training: a copy of the state on the host, and one thread that has it to itself."""
import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch


def snapshot(state: Any) -> Any:
    """A copy on the host of nested dicts, lists and tuples of tensors and plain values.

    Tensors that share memory share it in the copy: torch.save writes the same file of it.
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
    if source._cdata not in storages:  # the source is kept with its copy: its address is no other's meanwhile
        storages[source._cdata] = source, source.clone() if source.device.type == 'cpu' else source.cpu()
    copied = torch.empty(0, dtype=value.dtype)
    return copied.set_(storages[source._cdata][1], value.storage_offset(), value.shape, value.stride())


class Background:
    """Runs one piece of work at a time in a thread; the process does not end before it is done.

    Args:
        enabled: Run it in its own thread, and not at once.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._pool = ThreadPoolExecutor(1, 'writer')  # its thread begins with the first piece of work
        self._future: Future | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Begin with a piece of work when the one before is done."""
        self.wait()
        if not self.enabled:
            return work()
        self._future = self._pool.submit(work)

    def wait(self) -> None:
        """Return when the work is done, and raise here what it raised."""
        if self._future is not None:
            wait([self._future])  # a signal may end this by an error: the work is then still to be waited for
            future, self._future = self._future, None
            future.result()
