"""A training loader that can be left after any batch and taken up again there, in another process, to the last bit.

It stands between timm's prefetcher and torch's DataLoader, changes nothing that they do, and keeps what the next batch
depends on: how the order of the epoch was drawn, the random state of the main process before the batch was made, and
that of each worker process, which comes with the worker's batches. Batches that were trained are not loaded again:
their place is taken by empty ones, so that each worker goes on with its own.

Data read in sequence has no index to go by. It is read again from the start of the epoch, and thrown away.
"""
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

from ...base.errors import CheckpointError
from ...base.random_state import get_random_state, kept_random_state, set_random_state, torch_state
from ..memory.buffers import Courier
from ..workers import Report, WorkerInit, get_shuffle_state, set_shuffle_state, sigterm_waits
from .order import wrap_order
from .position import to_bytes, to_tensors

_NICE = 2  # of workers beside a step on the CPU: as much as it takes, since other programs may want the cores
_REMEMBERED = 256  # batches whose indices are at hand
# What of a position says nothing to another number of ranks or workers.
_OF_ANOTHER_SHAPE: dict[str, Any] = {
    'before': None, 'base': None, 'order': [], 'turn': 0, 'worker_states': {}, 'shuffle': b''}


class ResumableLoader:
    """Stands for a DataLoader of training.

    Args:
        loader: DataLoader, or timm's MultiEpochsDataLoader; its collate function, worker init function and batch
            sampler are wrapped in place.
        device: Device of training, whose random state belongs to the position.
        ranks: Number of processes that share the data.
        rank: This one's number.
    """

    def __init__(self, loader: DataLoader, device: torch.device, ranks: int = 1, rank: int = 0):
        self.loader = loader
        self.device = device
        self.ranks = ranks
        self.rank = rank
        self.collate_fn = loader.collate_fn  # for timm's prefetcher, which looks at its type
        self._courier = Courier()
        loader.collate_fn = Report(loader.collate_fn, self._courier)
        # A worker that takes a core from one thread of a step on the CPU lets all of its threads wait for that one.
        nice = _NICE if device.type == 'cpu' else 0
        self._init = loader.worker_init_fn = WorkerInit(loader.worker_init_fn, nice)
        self._order: Any = None  # an Order, except for data that is read in sequence
        if not isinstance(loader.dataset, IterableDataset):
            self._order = wrap_order(loader)

        self._resumed: dict[str, Any] | None = None
        self._length: int | None = None  # of an epoch that another number of ranks began
        self._dealt: dict[str, Any] | None = None  # what this rank was dealt of it, see _deal
        self._base: torch.Tensor | None = None  # torch's state when the seed of the workers was drawn
        self._start: dict[int, bytes] = {}  # states of the workers at the start of the epoch
        self._workers: dict[int, bytes] = {}  # and after the batches that have been trained
        self._shuffle = b''  # that of this process, where it reads data in sequence, at the start of the epoch
        self._turn = self._next_turn = 0  # the worker that makes the first batch of the epoch; and of the next
        self._reports: deque = deque()  # (number of the batch, worker, its state after it)
        self._before: dict[int, dict[str, Any]] = {}  # state of this process before a batch was made
        self._indices: dict[int, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if name == 'loader':  # not there yet, as when a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader) if self._length is None else self._length

    def __iter__(self) -> Iterator[Any]:
        state, self._resumed = self._resumed, None
        self._dealt = state.get('dealt') if state is not None else None
        self._forget_epoch()
        batches, number = self._open(state), 0
        if state is not None and state['done']:
            number = self._skip(batches, state)
            self._next_turn = self._turn_after(number)
        after_first = state['random'] if state is not None and number and state['before'] is not None else None
        while True:
            before = get_random_state(self.device)
            try:
                batch, report = next(batches)
            except StopIteration:
                break
            self._remember(number, before, report)
            number += 1
            self._next_turn = self._turn_after(number)
            yield batch
            if after_first is not None:  # the first batch was made ahead of the interruption, the next one after it
                set_random_state(after_first, self.device)
                after_first = None
        self._length = None
        self._free_buffers()

    def state_dict(self, done: int) -> dict[str, Any]:
        """Where this process stands, in plain values and tensors.

        Args:
            done: Batches of the epoch that were trained; 0 between two epochs.
        """
        if self._resumed is not None:  # not one batch since it was loaded
            return to_tensors({**self._resumed, 'random': self._resumed['random'] or get_random_state(self.device)})
        while self._reports and (not done or self._reports[0][0] < done):
            _, worker, state = self._reports.popleft()
            self._workers[worker] = state
        replayed = self._order is None and done
        workers = self._start if replayed else self._workers if done or self._opens_once else {}
        order = [] if self._order is None else self._order.drawn[0 if done else 1:]
        before = self._before.get(done) if done else None
        state = {
            'done': done,
            'random': get_random_state(self.device),
            'before': before,
            'base': self._base,
            'order': order,
            'turn': self._turn if done else self._next_turn,
            'worker_states': dict(workers),
            'shuffle': self._shuffle if replayed else self._shuffle_state(),
            'shape': self._shape(),
            'dealt': self._dealt if done else None,
        }
        return to_tensors(state)

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> list[str]:
        """Let the next pass go on where state_dict was called.

        Args:
            state: What state_dict returned, on this rank, or on rank 0 where their number differs. Between two epochs
                its 'random' may be None: the random state is that of the process when the pass begins.
            epoch: Epoch of the next pass; the sampler is told.

        Returns:
            What cannot be as it was, in words; empty if all is.

        Raises:
            CheckpointError: an epoch in progress that cannot be dealt anew to what there is now.
        """
        state = to_bytes(state)
        was, now = state['shape'], self._shape()
        changed = [f'{now[name]} {name} in place of {was[name]}' for name in now if was[name] != now[name]]
        dealt_anew = was['ranks'] != now['ranks'] or was['batch size'] != now['batch size']
        if state.get('dealt') is not None:
            if dealt_anew:
                raise CheckpointError(f"{', '.join(changed)}: the rest of the epoch was dealt anew before")
            self._deal(**state['dealt'])
        if not changed:
            self._resumed = state
            return []
        if not state['done']:
            if not dealt_anew:
                self._resumed = {**state, **_OF_ANOTHER_SHAPE}
            return changed
        if was['samples'] != now['samples']:
            raise CheckpointError(f"the data has {now['samples']} samples, and had {was['samples']}")
        if self._order is None or (dealt_anew and not self._can_be_dealt_anew):
            raise CheckpointError(', '.join(changed))
        if dealt_anew:
            self._deal_rest(state, epoch)
        else:
            self._resumed = {**state, **_OF_ANOTHER_SHAPE, 'order': state['order']}
        return changed

    @property
    def first_batch(self) -> int:
        """Number of the batch that the next pass begins with."""
        return self._resumed['done'] if self._resumed is not None else 0

    def indices(self, number: int) -> list[Any] | None:
        """Indices in the data set of a batch of late, None where there are none or it is too long ago."""
        return self._indices.get(number)

    def _shape(self) -> dict[str, int]:
        batch_size = getattr(self.loader.batch_sampler, 'batch_size', None)
        dataset: Any = self.loader.dataset
        samples = len(dataset) if self._order is not None else 0
        return {'ranks': self.ranks, 'batch size': batch_size or 0, 'workers': self.loader.num_workers,
                'samples': samples}

    @property
    def _can_be_dealt_anew(self) -> bool:
        """Whether all ranks together go through one order of the samples, whatever their number."""
        batches = self._order.batches
        return type(self.loader) is DataLoader and type(batches) is BatchSampler and isinstance(
            batches.sampler, (RandomSampler, DistributedSampler))

    def _turn_after(self, number: int) -> int:
        """The worker that makes the batch of this number; all of them if they begin anew with each epoch."""
        if not isinstance(self.loader, MultiEpochsDataLoader) or not self.loader.num_workers:
            return self._next_turn
        return (self._turn + number) % self.loader.num_workers

    @property
    def _opens_once(self) -> bool:
        """Whether one iterator of torch's serves all epochs, and the seed of the workers is drawn once."""
        return isinstance(self.loader, MultiEpochsDataLoader) or self.loader.persistent_workers

    def _is_open(self) -> bool:
        if isinstance(self.loader, MultiEpochsDataLoader):
            return self.loader.iterator is not None
        return self.loader.persistent_workers and self.loader._iterator is not None

    def _open(self, state: dict[str, Any] | None) -> Iterator[Any]:
        """An iterator of the loader, its workers and its order as they were. Sets the random state of this process."""
        if state is None:
            if not self._is_open():
                self._base = torch.get_rng_state()
            return iter(self.loader)
        if state['random'] is None:
            state['random'] = get_random_state(self.device)
        set_random_state(state['random'], self.device)
        order, done = list(state['order']), state['done']
        again = done or (self._opens_once and state['base'] is not None)  # the iterator has been opened before
        if again and state['base'] is not None:
            torch.set_rng_state(state['base'])
        self._base = torch.get_rng_state()
        self._init.states = dict(state['worker_states'])
        self._workers, self._start = dict(state['worker_states']), dict(state['worker_states'])
        if self._order is not None:
            self._order.skip = done
            self._order.coming.extend(order or ([torch_state(state['random']['process'])] if again else []))
        self._turn = state['turn']
        self._shuffle = state['shuffle']
        set_shuffle_state(self._shuffle, self.loader.dataset)
        batches = self._iterate()
        self._init.states = {}
        if again and not done and (order or self._order is None or not self._order.drawn):
            set_random_state(state['random'], self.device)
        return batches

    def _iterate(self) -> Iterator[Any]:
        if isinstance(self.loader, MultiEpochsDataLoader):
            self._order.lead = self._turn
            self.loader.iterator = DataLoader.__iter__(self.loader)  # timm makes it with the first batch
            for _ in range(self._turn):
                next(self.loader.iterator)
                self._order.given.popleft()
        return iter(self.loader)

    def _skip(self, batches: Iterator[Any], state: dict[str, Any]) -> int:
        """Pass over the batches that were trained; returns the number of the next one."""
        for _ in range(state['done']):
            _, report = next(batches)
            if self._order is None and report is not None:  # made again: it may be the last one of its worker
                worker, self._workers[worker] = report
        if self._order is not None:
            for _ in range(state['done']):
                self._order.given.popleft()
        set_random_state(state['before'] or state['random'], self.device)
        return state['done']

    def _shuffle_state(self) -> bytes:
        return b'' if self.loader.num_workers else get_shuffle_state(self.loader.dataset)

    def _forget_epoch(self) -> None:
        while self._reports:
            _, worker, state = self._reports.popleft()
            self._workers[worker] = state
        if not self._opens_once:
            self._workers.clear()
        self._free_buffers()
        self._start = dict(self._workers)
        self._shuffle = self._shuffle_state()
        self._turn = self._next_turn
        self._before.clear()
        self._indices.clear()
        if self._order is not None:
            del self._order.drawn[:1]
            if not isinstance(self.loader, MultiEpochsDataLoader):
                self._order.given.clear()

    def _free_buffers(self) -> None:
        if not self._opens_once:
            self._courier.forget()

    def _remember(self, number: int, before: dict[str, Any], report: tuple[int, bytes] | None) -> None:
        # While a batch is made, timm's prefetcher holds the one before it, and what is older has been trained.
        while self._reports and self._reports[0][0] < number - 1:
            _, worker, state = self._reports.popleft()
            self._workers[worker] = state
        if report is not None:
            self._reports.append((number, *report))
        self._before[number] = before
        self._before.pop(number - 2, None)
        if self._order is not None:
            self._indices[number] = self._order.given.popleft()
            self._indices.pop(number - _REMEMBERED, None)

    def _deal_rest(self, state: dict[str, Any], epoch: int) -> None:
        """Give what is left of an epoch to the ranks that there are now."""
        rest = self._order.remaining(state, epoch, self.loader.dataset)
        size = self._shape()['batch size']
        mine = rest[self.rank::self.ranks][:len(rest) // self.ranks]
        was = state['shape']
        done = state['done'] * was['batch size'] * was['ranks'] // (size * self.ranks)
        self._deal(done, torch.tensor(mine[:len(mine) // size * size], dtype=torch.int64).view(-1, size))
        self._resumed = {**state, **_OF_ANOTHER_SHAPE, 'done': done, 'random': get_random_state(self.device),
                         'shape': self._shape(), 'dealt': self._dealt}

    def _deal(self, first: int, batches: torch.Tensor) -> None:
        """Let the next pass have these indices [N, B] from batch `first` on."""
        self._dealt = {'first': first, 'batches': batches}
        self._order.rest = [[]] * first + batches.tolist()
        self._length = len(self._order.rest)


def make_resumable(loader: Any, device: torch.device, ranks: int = 1, rank: int = 0) -> tuple[Any, ResumableLoader]:
    """Put a ResumableLoader in the place of the DataLoader inside one of timm's or our loaders.

    Returns:
        The loader to iterate over, and the ResumableLoader inside it.
    """
    outer = None
    inner = loader
    while not isinstance(inner, DataLoader):
        outer, inner = inner, inner.loader
    resumable = ResumableLoader(inner, device, ranks, rank)
    if outer is None:
        return resumable, resumable
    outer.loader = resumable
    return loader, resumable


def start_workers(loader: Any) -> None:
    """Start the persistent workers of a loader, for a run that drew their seed before it was interrupted."""
    while not isinstance(loader, DataLoader):
        loader = loader.loader
    if loader.persistent_workers:
        with kept_random_state(), sigterm_waits(loader):
            iter(loader)
