"""Benchmark of the memory of loading processes over several epochs. Each loader has its own process.

    python -m agmax_timm.bench.memory '{"name": ..., "root": ..., ...}'

reads one loader, and prints the result of read() as JSON.
"""
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch.utils.data import DataLoader

from . import passes, processes
from .output import Result, Row
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS, build, some_images

_TWICE = f'{TIMM}, twice the batch'  # the same number of views per batch as with two views
_INTERVAL = 0.1  # seconds between two samples of the memory


def memory(
        folder: str, split: str, images: int, img_size: int, batch_size: int, workers: int, epochs: int, memory: bool,
        repeats: int) -> Result:
    names = [TIMM, _TWICE, *TWO_VIEWS, *(IN_MEMORY if memory else ())]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with some_images(folder, split, images) as root:
        for repeat in range(repeats):
            for name in random.Random(repeat).sample(names, len(names)):
                found[name].append(read_epochs(
                    name=TIMM if name == _TWICE else name, root=root, size=(3, img_size, img_size),
                    batch_size=batch_size * (2 if name == _TWICE else 1), workers=workers, recipe={}, epochs=epochs))
    kind = found[TIMM][0]['kind']
    rows = [_row(name, found[name], found[TIMM], kind) for name in names]
    return Result(
        f"ratio: peak {kind} of the main process and {workers} workers against timm's own loader with one view, "
        f'{epochs} epochs', rows)


def read_epochs(**options) -> dict[str, Any]:
    """Return the result of read() in a fresh process."""
    return json.loads(processes.wait_for(['-m', __spec__.name, json.dumps(options)], '"peaks"'))


def _row(name: str, own: list[dict[str, Any]], base: list[dict[str, Any]], kind: str) -> Row:
    epochs = [median(peaks) for peaks in zip(*(one['peaks'] for one in own))]
    return {
        'loader': name,
        'views': own[0]['views'],
        f'peak {kind} MiB': max(epochs),
        **passes.summary([max(one['peaks']) / max(other['peaks']) for one, other in zip(own, base)]),
        **{f'epoch {number} MiB': mib for number, mib in enumerate(epochs, 1)},
        'growth MiB/epoch': (epochs[-1] - epochs[1]) / (len(epochs) - 2) if len(epochs) > 2 else None,
    }


def read(epochs: int, **options) -> dict[str, Any]:
    """Read a loader for some epochs.

    Args:
        options: Arguments of build().

    Returns:
        `peaks`: largest memory of this process and its workers in each epoch, in MiB; `kind` of memory; `views` of an
        epoch.
    """
    # Batches in transit are in shared memory that no process has mapped.
    before = passes.sizes('/proc/meminfo')['Shmem'] if passes.sizes('/proc/self/smaps_rollup') else None
    loader = build(**options)
    peaks: list[float] = []
    views = 0
    for _ in range(epochs):
        with _record_peak(before) as peak:
            views = _read_epoch(loader)
        peaks.append(peak['mib'])
    return dict(peaks=peaks, views=views, kind='memory' if before is not None else 'RSS')


def _read_epoch(loader: DataLoader) -> int:
    """Read one epoch, and return the number of views.

    Wait after the first batch until the prefetch queues are full, as during training of a slow network.
    """
    views, start = 0, time.perf_counter()
    for index, (images, _) in enumerate(loader):
        if not index and loader.num_workers:
            time.sleep((loader.prefetch_factor or 0) * (time.perf_counter() - start))
        views += len(images)
    return views


@contextmanager
def _record_peak(before: float | None) -> Iterator[dict[str, float]]:
    """Yield a dictionary. At the end, its `mib` is the largest memory of this process and its workers in the context.

    Args:
        before: Shared memory of the machine before the loader was created; None if it is unknown.
    """
    peak, done = dict(mib=0.), threading.Event()

    def sample():
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        own = sum(_memory_of(pid, exact=before is not None) for pid in pids)
        peak['mib'] = max(peak['mib'], own if before is None else own + passes.sizes('/proc/meminfo')['Shmem'] - before)

    def watch():
        while not done.wait(_INTERVAL):
            sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
        sample()  # at least once in a short context
    finally:
        done.set()
        thread.join()


def _memory_of(pid: int | None, exact: bool) -> float:
    """Return the memory of a process in MiB. If exact, it excludes shared memory and has its share of common pages."""
    if not exact:
        return passes.sizes(f'/proc/{pid}/status').get('VmRSS', 0.)
    found = passes.sizes(f'/proc/{pid}/smaps_rollup')  # empty if the process has ended
    return found.get('Pss', 0.) - found.get('Pss_Shmem', 0.)


if __name__ == '__main__':
    print(json.dumps(read(**json.loads(sys.argv[1]))), flush=True)
