"""The iterators of a resumable loader, and the random states of its workers."""
from collections import deque
from collections.abc import Iterator
from typing import Any

from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import DataLoader


class WorkerStates:
    """Random states of the workers after the batches that were trained.

    Workers are ahead of training. A state arrives with a batch, and is valid after this batch was trained.
    """

    def __init__(self) -> None:
        self.at_start: dict[int, bytes] = {}  # of the epoch
        self.trained: dict[int, bytes] = {}
        self._ahead: deque[tuple[int, int, bytes]] = deque()  # number of a batch, worker, its state after the batch

    def load(self, states: dict[int, bytes]) -> None:
        self.at_start, self.trained = dict(states), dict(states)

    def add(self, batch: int, report: tuple[int, bytes] | None) -> None:
        """Store the state that arrived with a batch. It is None without workers."""
        if report is not None:
            self._ahead.append((batch, *report))

    def trained_before(self, batch: int | None) -> None:
        """Record that the batches before this number were trained. None means all batches."""
        while self._ahead and (batch is None or self._ahead[0][0] < batch):
            _, worker, state = self._ahead.popleft()
            self.trained[worker] = state

    def begin_epoch(self, same_workers: bool) -> None:
        self.trained_before(None)
        if not same_workers:
            self.trained.clear()
        self.at_start = dict(self.trained)


class Iterators:
    """The iterators of a DataLoader: a new one in each epoch, or one for all epochs.

    Args:
        loader: DataLoader, or timm's MultiEpochsDataLoader.
        order: Order of the loader, None for data that is read in sequence.
    """

    def __init__(self, loader: Any, order: Any):
        self.loader = loader
        self.order = order
        self.multi_epochs = isinstance(loader, MultiEpochsDataLoader)
        self.one_for_all = self.multi_epochs or loader.persistent_workers  # the seed of the workers is drawn once

    @property
    def is_open(self) -> bool:
        """Whether the iterator of all epochs exists."""
        if self.multi_epochs:
            return self.loader.iterator is not None
        return self.loader.persistent_workers and self.loader._iterator is not None

    def worker_of(self, batch: int, first: int) -> int:
        """Return the worker that makes a batch. `first` is the worker of the epoch's first batch."""
        return (first + batch) % self.loader.num_workers if self.multi_epochs and self.loader.num_workers else 0

    def begin(self, first: int) -> Iterator[Any]:
        """Return an iterator whose first batch is made by the worker `first`."""
        if self.multi_epochs:
            self.order.lead = first
            self.loader.iterator = DataLoader.__iter__(self.loader)  # timm creates it with the first batch
            for _ in range(first):
                next(self.loader.iterator)
                self.order.given.popleft()
        return iter(self.loader)
