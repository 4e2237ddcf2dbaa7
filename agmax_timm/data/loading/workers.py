"""Loader workers that report and restore their random state, and leave signals of the job to the main process."""
import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from ...base.random_state import get_generator_state, get_process_state, set_generator_state, set_process_state
from ..sources.shards import shuffle_generator

_DEATH_DELAY = 2.  # seconds until the system reports the death of a killed process


class CollateWithState:
    """A collate function that adds the random state of the worker to a batch.

    An empty list of samples stands for a batch that was trained: no batch is collated.

    Args:
        send: Function that the worker applies to the batch before it sends the batch.
    """

    def __init__(self, collate: Callable, send: Callable):
        self.collate = collate
        self.send = send

    def __call__(self, samples: Any) -> tuple[Any, tuple[int, bytes] | None]:
        was_trained = isinstance(samples, list) and not samples
        batch = None if was_trained else self.collate(samples)
        worker = get_worker_info()
        if worker is None:
            return batch, None
        return self.send(batch), (worker.id, get_process_state() + get_shuffle_state(worker.dataset))


class WorkerInit:
    """A worker_init_fn that leaves signals of the job to the main process, and restores a random state of the worker.

    Args:
        nice: Niceness of the worker above that of the main process.

    Attributes:
        states: Random states to restore, by number of the worker.
    """

    def __init__(self, init: Callable[[int], None] | None, nice: int = 0):
        self.init = init
        self.nice = nice
        self.states: dict[int, bytes] = {}
        self._main_ends = flag_of_exit()

    def _exit_if_main_ends(self, *_) -> None:
        """Handle SIGTERM. The main process ends its workers by it, but it may also be sent to the whole job."""
        if self._main_ends.value:
            os._exit(0)

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._exit_if_main_ends)
        sys.excepthook = _print_unless_connection_lost
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see sigterm_blocked
        os.nice(self.nice)
        if self.init is not None:
            self.init(worker)
        if worker in self.states:
            state, size = self.states[worker], len(get_process_state())
            set_process_state(state[:size])
            info = get_worker_info()
            assert info is not None
            set_shuffle_state(state[size:], info.dataset)


def _print_unless_connection_lost(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Excepthook of a worker. Its thread that sends memory loses the connection if the main process ends."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


@cache
def flag_of_exit() -> Any:
    """Return a flag in shared memory that is set when this process ends."""
    flag = multiprocessing.RawValue('b')
    atexit.register(setattr, flag, 'value', 1)
    return flag


def data_loader_of(loader: Any) -> DataLoader:
    """Return the torch DataLoader in a loader of timm or of this package. Other iterables are returned unchanged."""
    while hasattr(loader, 'loader'):
        loader = loader.loader
    return loader


def leave_signals(loader: Any) -> None:
    """Make the workers of a DataLoader, prefetched or not, leave signals of the job to the main process."""
    loader = data_loader_of(loader)
    loader.worker_init_fn = WorkerInit(loader.worker_init_fn)


def batches_of(loader: Iterable) -> Iterator[Any]:
    """Iterate over a loader. SIGTERM does not end workers that are starting. A dead worker raises torch's error.

    The sockets of a killed process close before the system reports its death. Reading a batch then raises a
    ConnectionError. With pinned memory, it is raised in torch's thread, which ends.
    """
    try:
        with _quiet_pin_thread():
            with sigterm_blocked(loader):
                batches = iter(loader)
                first = [*islice(batches, 1)]  # timm's prefetcher starts the workers with the first batch
            while first:
                yield first.pop()  # no reference is kept for the rest of the epoch
            yield from batches
    except (ConnectionError, EOFError, RuntimeError) as error:
        if not isinstance(error, RuntimeError) or 'Pin memory thread exited' in str(error):
            time.sleep(_DEATH_DELAY)  # torch's handler of SIGCHLD raises the error that names the worker
        raise


@contextmanager
def _quiet_pin_thread() -> Iterator[None]:
    """Suppress the traceback of torch's pin-memory thread for a dead worker, which raises another error."""
    hook = threading.excepthook

    def print_others(args: Any) -> None:
        connection_lost = issubclass(args.exc_type, (ConnectionError, EOFError))
        if not (connection_lost and args.thread is not None and '_pin_memory_loop' in args.thread.name):
            hook(args)
    threading.excepthook = print_others
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def sigterm_blocked(loader: Any) -> Iterator[None]:
    """Block SIGTERM in this thread, and in the workers that it starts until WorkerInit has replaced torch's handler.

    torch's handler would end the workers.
    """
    loader = data_loader_of(loader)
    if not isinstance(getattr(loader, 'worker_init_fn', None), WorkerInit):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def get_shuffle_state(dataset: Dataset) -> bytes:
    """Return the state of the generator that shuffles samples in this process, empty if there is none."""
    generator = shuffle_generator(dataset)
    return b'' if generator is None else get_generator_state(generator)


def set_shuffle_state(state: bytes, dataset: Dataset) -> None:
    """Set a state of get_shuffle_state."""
    if state:
        set_generator_state(state, shuffle_generator(dataset))
