"""Read a loader for some epochs, and print the most memory that this process and its workers took in each, as JSON.

    python -m agmax_timm.bench.epochs '{"name": ..., "root": ..., ...}'
"""
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from .pipelines import build

_INTERVAL = 0.1  # seconds


def read(epochs: int, **options) -> dict[str, Any]:
    """Read a loader, of which the options are build()'s, for so many epochs.

    Returns:
        `peaks` of memory in MiB of each epoch, what they count as `kind`, and the `views` of an epoch.
    """
    before = _shared_mib()
    loader = build(**options)
    peaks: list[float] = []
    views = 0
    for _ in range(epochs):
        with _watched(before) as peak:
            views = _read_epoch(loader)
        peaks.append(peak['mib'])
    return dict(peaks=peaks, views=views, kind='memory' if before is not None else 'RSS')


def _read_epoch(loader: DataLoader) -> int:
    """One epoch. Its first batch is held until the workers have made all that they make ahead, as where a network is
    slower than they are. Returns the number of views."""
    views, start = 0, time.perf_counter()
    for index, (images, _) in enumerate(loader):
        if not index and loader.num_workers:
            time.sleep((loader.prefetch_factor or 0) * (time.perf_counter() - start))
        views += len(images)
    return views


@contextmanager
def _watched(before: float | None) -> Iterator[dict[str, float]]:
    """The most memory in `mib` of this process and its workers, from here to the end.

    Args:
        before: Shared memory of the machine without them, None where it cannot be told.
    """
    peak, done = dict(mib=0.), threading.Event()

    def look():
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
        own = sum(_rss_mib(pid) if before is None else _own_mib(pid) for pid in pids)
        shared = 0. if before is None else (_shared_mib() or 0.) - before
        peak['mib'] = max(peak['mib'], own + shared)

    def watch():
        while not done.wait(_INTERVAL):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
        look()  # however short it was
    finally:
        done.set()
        thread.join()


def _own_mib(pid: int) -> float:
    """Memory of a process without the shared kind; pages of several are divided among them."""
    try:
        with open(f'/proc/{pid}/smaps_rollup') as file:
            kib = {line.split()[0]: int(line.split()[1]) for line in file if line.startswith('Pss')}
    except OSError:
        return 0.  # it has ended
    return (kib['Pss:'] - kib.get('Pss_Shmem:', 0)) / 1024


def _shared_mib() -> float | None:
    """Shared memory of the machine, which also holds batches that are under way: no process has them then. None where
    it or the memory of a process cannot be told."""
    if not os.path.exists('/proc/self/smaps_rollup'):
        return None
    with open('/proc/meminfo') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('Shmem:')) / 1024


def _rss_mib(pid: int) -> float:
    try:
        with open(f'/proc/{pid}/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2 ** 20
    except OSError:
        return 0.


if __name__ == '__main__':
    print(json.dumps(read(**json.loads(sys.argv[1]))), flush=True)
