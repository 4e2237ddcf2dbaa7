"""A training loader that can stop after any batch and resume there, in another process, to the last bit.

It is placed between timm's prefetcher and torch's DataLoader and does not change them. It records everything on which
the next batch depends:

- the random state from which the order of the epoch was drawn
- the random state of the main process before the batch was made
- the random state of each worker, which is sent with the worker's batches

Batches that were trained are not loaded again. Empty batches replace them, so that each worker makes the same batches
as before. Data that is read in sequence has no indices. It is read again from the start of the epoch, without training.
"""
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ...base.errors import CheckpointError
from ...base.random_state import get_random_state, kept_random_state, set_random_state, torch_state
from ...base.wrapping import Wrapper
from ..loading.workers import (
    CollateWithState,
    WorkerInit,
    data_loader_of,
    get_shuffle_state,
    set_shuffle_state,
    sigterm_blocked,
)
from ..memory.buffers import Courier
from .iterators import Iterators, WorkerStates
from .order import has_one_order, wrap_order
from .position import to_bytes, to_tensors

_NICE = 2  # niceness of workers next to a step on the CPU, small because other programs may need the cores
_REMEMBERED = 256  # batches whose indices are kept
# The part of a state that is reset when the number of ranks or workers changed.
_RESET: dict[str, Any] = {'before': None, 'base': None, 'order': [], 'turn': 0, 'worker_states': {}, 'shuffle': b''}


class ResumableLoader(Wrapper):
    """A DataLoader of training whose position can be saved and loaded.

    Args:
        loader: DataLoader, or timm's MultiEpochsDataLoader; its collate function, worker init function and batch
            sampler are wrapped in place.
        device: Device of training. Its random state is part of the position.
        ranks: Number of processes that share the data.
    """
    wraps = 'loader'

    def __init__(self, loader: DataLoader, device: torch.device, ranks: int = 1, rank: int = 0):
        self.loader = loader
        self.device = device
        self.ranks = ranks
        self.rank = rank
        self.collate_fn = loader.collate_fn  # for timm's prefetcher, which looks at its type
        self._courier = Courier()
        loader.collate_fn = CollateWithState(loader.collate_fn, self._courier)
        # A worker that takes a core from one thread of a step on the CPU lets all of its threads wait for that one.
        nice = _NICE if device.type == 'cpu' else 0
        self._init = loader.worker_init_fn = WorkerInit(loader.worker_init_fn, nice)
        self._order: Any = None  # an Order, except for data that is read in sequence
        if not isinstance(loader.dataset, IterableDataset):
            self._order = wrap_order(loader)
        self._iterators = Iterators(loader, self._order)

        self._resumed: dict[str, Any] | None = None  # state to begin the next pass from
        self._share: dict[str, Any] | None = None  # this rank's share of an epoch that other ranks began, see _take
        self._length: int | None = None  # number of batches of such an epoch
        self._base: torch.Tensor | None = None  # torch's state when the seed of the workers was drawn
        self._workers = WorkerStates()
        self._shuffle = b''  # state at the start of the epoch, of this process if it reads data in sequence
        self._turn = self._next_turn = 0  # workers that make the first batch of this epoch and of the next one
        self._before: dict[int, dict[str, Any]] = {}  # state of this process before a batch was made
        self._indices: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.loader) if self._length is None else self._length

    def __iter__(self) -> Iterator[Any]:
        state, self._resumed = self._resumed, None
        self._begin_epoch()
        self._share = state.get('dealt') if state is not None else None
        number, after_first = 0, None
        batches: Iterator[Any]
        if state is None:
            if not self._iterators.is_open:
                self._base = torch.get_rng_state()
            batches = iter(self.loader)
        else:
            batches = self._reopen(state)
            if state['done']:
                number = self._skip(batches, state)
                after_first = state['random'] if state['before'] is not None else None
        before = get_random_state(self.device)
        for batch, report in batches:
            self._record(number, before, report)
            number += 1
            self._next_turn = self._iterators.worker_of(number, self._turn)
            yield batch
            if after_first is not None:  # the first batch was made ahead of the interruption, the next one after it
                set_random_state(after_first, self.device)
                after_first = None
            before = get_random_state(self.device)
        self._length = None
        self._free_buffers()

    def state_dict(self, done: int) -> dict[str, Any]:
        """Return the position of this process, in plain values and tensors.

        Args:
            done: Number of batches of the epoch that were trained; 0 between two epochs.
        """
        if self._resumed is not None:  # no batch was made since it was loaded
            return to_tensors({**self._resumed, 'random': self._resumed['random'] or get_random_state(self.device)})
        self._workers.trained_before(done or None)
        in_sequence = self._order is None and done  # read again from the start of the epoch
        workers = self._workers.trained if done or self._iterators.one_for_all else {}
        return to_tensors({
            'done': done,
            'random': get_random_state(self.device),
            'before': self._before.get(done) if done else None,
            'base': self._base,
            'order': [] if self._order is None else self._order.drawn[0 if done else 1:],
            'turn': self._turn if done else self._next_turn,
            'worker_states': dict(self._workers.at_start if in_sequence else workers),
            'shuffle': self._shuffle if in_sequence else self._shuffle_state(),
            'shape': self._shape(),
            'dealt': self._share if done else None,
        })

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> list[str]:
        """Start the next pass at a position that state_dict returned.

        Args:
            state: Result of state_dict on this rank, or on rank 0 if the number of ranks changed. Between two epochs,
                its 'random' may be None. Then the pass begins with the present random state of the process.
            epoch: Number of the next epoch, for the sampler.

        Returns:
            Descriptions of what cannot be restored; usually empty.

        Raises:
            CheckpointError: The rest of an epoch cannot be shared by the present ranks.
        """
        state = to_bytes(state)
        was, now = state['shape'], self._shape()
        changed = [f'{now[part]} {part} in place of {was[part]}' for part in now if was[part] != now[part]]
        other_shares = was['ranks'] != now['ranks'] or was['batch size'] != now['batch size']
        if state.get('dealt') is not None:
            if other_shares:
                raise CheckpointError(f"{', '.join(changed)}: the rest of the epoch was distributed again before")
            self._take(**state['dealt'])
        if not changed:
            self._resumed = state
        elif not state['done']:  # between two epochs
            self._resumed = None if other_shares else {**state, **_RESET}
        elif was['samples'] != now['samples']:
            raise CheckpointError(f"the data has {now['samples']} samples, and had {was['samples']}")
        elif self._order is None or (other_shares and not has_one_order(self.loader, self._order)):
            raise CheckpointError(', '.join(changed))
        elif other_shares:
            self._resumed = {**state, **_RESET, **self._share_rest(state, epoch)}
        else:  # only the number of workers changed
            self._resumed = {**state, **_RESET, 'order': state['order']}
        return changed

    @property
    def first_batch(self) -> int:
        """Number of the batch that the next pass begins with."""
        return self._resumed['done'] if self._resumed is not None else 0

    def indices(self, number: int) -> list[Any] | None:
        """Return the indices of a recent batch in the data set; None for older batches and data without indices."""
        return self._indices.get(number)

    def _shape(self) -> dict[str, int]:
        batch_size = getattr(self.loader.batch_sampler, 'batch_size', None)
        dataset: Any = self.loader.dataset
        samples = len(dataset) if self._order is not None else 0
        return {'ranks': self.ranks, 'batch size': batch_size or 0, 'workers': self.loader.num_workers,
                'samples': samples}

    def _begin_epoch(self) -> None:
        """Forget the epoch before."""
        self._workers.begin_epoch(same_workers=self._iterators.one_for_all)
        self._free_buffers()
        self._shuffle = self._shuffle_state()
        self._turn = self._next_turn
        self._before.clear()
        self._indices.clear()
        if self._order is not None:
            del self._order.drawn[:1]
            if not self._iterators.multi_epochs:
                self._order.given.clear()

    def _reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Return an iterator with workers and order as they were. Sets the random state of this process."""
        if state['random'] is None:
            state['random'] = get_random_state(self.device)
        set_random_state(state['random'], self.device)
        order, done = list(state['order']), state['done']
        was_open = done or (self._iterators.one_for_all and state['base'] is not None)
        if was_open and state['base'] is not None:
            torch.set_rng_state(state['base'])
        self._base = torch.get_rng_state()
        self._workers.load(state['worker_states'])
        if self._order is not None:
            self._order.skip = done
            self._order.coming.extend(order or ([torch_state(state['random']['process'])] if was_open else []))
        self._turn = state['turn']
        self._shuffle = state['shuffle']
        set_shuffle_state(self._shuffle, self.loader.dataset)
        self._init.states = dict(state['worker_states'])
        batches = self._iterators.begin(self._turn)
        self._init.states = {}
        if was_open and not done and (order or self._order is None or not self._order.drawn):
            set_random_state(state['random'], self.device)
        return batches

    def _skip(self, batches: Iterator[Any], state: dict[str, Any]) -> int:
        """Pass over the batches that were trained. Return the number of the next one."""
        for _ in range(state['done']):
            _, report = next(batches)
            if self._order is not None:
                self._order.given.popleft()
            elif report is not None:  # made again: it may be the last one of its worker
                worker, self._workers.trained[worker] = report
        set_random_state(state['before'] or state['random'], self.device)
        self._next_turn = self._iterators.worker_of(state['done'], self._turn)
        return state['done']

    def _shuffle_state(self) -> bytes:
        return b'' if self.loader.num_workers else get_shuffle_state(self.loader.dataset)

    def _free_buffers(self) -> None:
        if not self._iterators.one_for_all:
            self._courier.forget()

    def _record(self, number: int, before: dict[str, Any], report: tuple[int, bytes] | None) -> None:
        """Record what a batch was made from."""
        # While a batch is made, timm's prefetcher holds the one before it, and older ones have been trained.
        self._workers.trained_before(number - 1)
        self._workers.add(number, report)
        self._before[number] = before
        self._before.pop(number - 2, None)
        if self._order is not None:
            self._indices[number] = self._order.given.popleft()
            self._indices.pop(number - _REMEMBERED, None)

    def _share_rest(self, state: dict[str, Any], epoch: int) -> dict[str, Any]:
        """Share the rest of an epoch among the present ranks. Return the changes of the state."""
        rest = self._order.remaining(state, epoch, self.loader.dataset)
        size = self._shape()['batch size']
        mine = rest[self.rank::self.ranks][:len(rest) // self.ranks]
        trained = state['done'] * state['shape']['batch size'] * state['shape']['ranks']
        done = trained // (size * self.ranks)
        self._take(done, torch.tensor(mine[:len(mine) // size * size], dtype=torch.int64).view(-1, size))
        return {'done': done, 'random': get_random_state(self.device), 'shape': self._shape(), 'dealt': self._share}

    def _take(self, first: int, batches: torch.Tensor) -> None:
        """Let the next pass have these indices [N, B] from batch `first` on."""
        self._share = {'first': first, 'batches': batches}
        self._order.rest = [[]] * first + batches.tolist()
        self._length = len(self._order.rest)


def make_resumable(loader: Any, device: torch.device, ranks: int = 1, rank: int = 0) -> tuple[Any, ResumableLoader]:
    """Replace the DataLoader in a loader of timm or this package by a ResumableLoader.

    Returns:
        The loader to iterate over, and the ResumableLoader inside it.
    """
    resumable = ResumableLoader(data_loader_of(loader), device, ranks, rank)
    if isinstance(loader, DataLoader):
        return resumable, resumable
    loader.loader = resumable
    return loader, resumable


def start_workers(loader: Any) -> None:
    """Start the persistent workers of a loader, for a run that drew their seed before it was interrupted."""
    loader = data_loader_of(loader)
    if loader.persistent_workers:
        with kept_random_state(), sigterm_blocked(loader):
            iter(loader)
