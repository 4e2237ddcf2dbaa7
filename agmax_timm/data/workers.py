"""Loader workers that tell their random state, start from one, leave signals to the main process, and die by name."""
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

from ..base.random_state import get_generator_state, get_process_state, set_generator_state, set_process_state
from .sources.shards import shuffling

_SETTLED = 2.  # seconds that a process which was killed may take to end


class Report:
    """A collate function whose batches bring the random state of the worker that made them.

    Args:
        collate: The collate function.
        send: Called by the worker with a batch, for what is sent in its place.
    """

    def __init__(self, collate: Callable, send: Callable):
        self.collate = collate
        self.send = send

    def __call__(self, samples: Any) -> tuple[Any, tuple[int, bytes] | None]:
        trained = isinstance(samples, list) and not samples
        batch = None if trained else self.collate(samples)
        worker = get_worker_info()
        if worker is None:
            return batch, None
        return self.send(batch), (worker.id, get_process_state() + get_shuffle_state(worker.dataset))


class WorkerInit:
    """Start a worker from a random state of before; signals to the whole job, and what is to be said of its end, are
    the main process's matter.

    Args:
        init: The loader's own function.
        nice: By how much the priority of the worker is below that of the main process.
    """

    def __init__(self, init: Callable[[int], None] | None, nice: int = 0):
        self.init = init
        self.nice = nice
        self.states: dict[int, bytes] = {}
        self._done = _end_of_process()

    def _leave_if_done(self, *_) -> None:
        """The main process ends its workers by the signal that may also have been sent to all processes of a job."""
        if self._done.value:
            os._exit(0)

    def __call__(self, worker: int) -> None:
        for name in ('SIGINT', 'SIGUSR1'):
            if hasattr(signal, name):  # the last of them is not on every system
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._leave_if_done)
        sys.excepthook = _tell_but_lost_connection
        if hasattr(signal, 'pthread_sigmask'):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see sigterm_waits
        if self.nice and hasattr(os, 'nice'):
            os.nice(self.nice)
        if self.init is not None:
            self.init(worker)
        if worker in self.states:
            state, size = self.states[worker], len(get_process_state())
            set_process_state(state[:size])
            info = get_worker_info()
            assert info is not None
            set_shuffle_state(state[size:], info.dataset)


def _tell_but_lost_connection(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """For the thread that gives memory to the main process: if that leaves in between, it has said why."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


@cache
def _end_of_process() -> Any:
    """A flag that workers see: whether this process is at its end."""
    done = multiprocessing.RawValue('b')
    atexit.register(setattr, done, 'value', 1)
    return done


def leave_signals(loader: Any) -> None:
    """Let signals to the whole job be the main process's matter in the workers of a DataLoader, prefetched or not."""
    loader = loader if isinstance(loader, DataLoader) else loader.loader
    loader.worker_init_fn = WorkerInit(loader.worker_init_fn)


def batches_of(loader: Iterable) -> Iterator[Any]:
    """A loader's batches. A signal to the whole job meets no worker that starts; where a worker dies, the error is
    torch's that names it.

    The sockets of a killed process close before the system reports its death. Reading a batch from it then raises a
    ConnectionError, with pinned memory in torch's thread, which ends with it.
    """
    try:
        with _quiet_pin_thread():
            with sigterm_waits(loader):
                batches = iter(loader)
                first = [*islice(batches, 1)]  # with which timm's prefetcher starts the workers
            while first:
                yield first.pop()  # not kept here for the rest of the epoch
            yield from batches
    except (ConnectionError, EOFError, RuntimeError) as error:
        if not isinstance(error, RuntimeError) or 'Pin memory thread exited' in str(error):
            time.sleep(_SETTLED)  # ended by the error that torch raises when the system tells it of a dead worker
        raise


@contextmanager
def _quiet_pin_thread() -> Iterator[None]:
    """Print no traceback of torch's pin-memory thread for a lost connection to a worker, whose death is an error."""
    hook = threading.excepthook

    def tell(args: Any) -> None:
        lost = issubclass(args.exc_type, (ConnectionError, EOFError))
        if not (lost and args.thread is not None and '_pin_memory_loop' in args.thread.name):
            hook(args)
    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def sigterm_waits(loader: Any) -> Iterator[None]:
    """Let SIGTERM wait in this thread, and in workers that it starts until WorkerInit has left it to the main process:
    torch's handler, which they have before, would end them."""
    while hasattr(loader, 'loader'):
        loader = loader.loader
    if not (hasattr(signal, 'pthread_sigmask') and isinstance(getattr(loader, 'worker_init_fn', None), WorkerInit)):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def get_shuffle_state(dataset: Dataset) -> bytes:
    """State of shards.shuffling in this process, empty where there is none."""
    generator = shuffling(dataset)
    return b'' if generator is None else get_generator_state(generator)


def set_shuffle_state(state: bytes, dataset: Dataset) -> None:
    """Set what get_shuffle_state returned."""
    if state:
        set_generator_state(state, shuffling(dataset))
