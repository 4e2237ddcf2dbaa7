"""Memory of the loading processes over several epochs, each loader in a process of its own.

    python -m agmax_timm.bench.memory '{"name": ..., "root": ..., ...}'

reads one loader, and prints the result of read() as JSON.
"""
import argparse
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
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS, build, some_images
from .report import Result, Row

_TWICE = f'{TIMM}, twice the batch'  # as many views in a batch as two views have
_INTERVAL = 0.1  # seconds between looks at the memory


def memory(args: argparse.Namespace) -> Result:
    names = [TIMM, _TWICE, *TWO_VIEWS, *(IN_MEMORY if args.memory else ())]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with some_images(args.folder, args.split, args.images) as root:
        for repeat in range(args.repeats):
            for name in random.Random(repeat).sample(names, len(names)):
                found[name].append(read_epochs(
                    name=TIMM if name == _TWICE else name, root=root, size=(3, args.img_size, args.img_size),
                    batch_size=args.batch_size * (2 if name == _TWICE else 1), workers=args.workers, recipe={},
                    epochs=args.epochs))
    kind = found[TIMM][0]['kind']
    rows = [_row(name, found[name], found[TIMM], kind) for name in names]
    return Result(
        f"ratio: peak {kind} of the main process and {args.workers} workers against timm's own loader with one view, "
        f'{args.epochs} epochs', rows)


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
        `peaks` of the memory of this process and its workers in MiB by epoch, their `kind`, and the `views` of an
        epoch.
    """
    # Shared memory holds batches that no process has yet.
    before = passes.sizes('/proc/meminfo')['Shmem'] if passes.sizes('/proc/self/smaps_rollup') else None
    loader = build(**options)
    peaks: list[float] = []
    views = 0
    for _ in range(epochs):
        with _watched(before) as peak:
            views = _read_epoch(loader)
        peaks.append(peak['mib'])
    return dict(peaks=peaks, views=views, kind='memory' if before is not None else 'RSS')


def _read_epoch(loader: DataLoader) -> int:
    """Read one epoch, and return the number of views.

    The first batch is held until the workers have made all batches that they make ahead, as beside a slow network.
    """
    views, start = 0, time.perf_counter()
    for index, (images, _) in enumerate(loader):
        if not index and loader.num_workers:
            time.sleep((loader.prefetch_factor or 0) * (time.perf_counter() - start))
        views += len(images)
    return views


@contextmanager
def _watched(before: float | None) -> Iterator[dict[str, float]]:
    """Yield a dictionary whose `mib` becomes the most memory that this process and its workers had in the context.

    Args:
        before: Shared memory of the machine without them; None if it is unknown.
    """
    peak, done = dict(mib=0.), threading.Event()

    def look():
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        own = sum(_memory_of(pid, exact=before is not None) for pid in pids)
        peak['mib'] = max(peak['mib'], own if before is None else own + passes.sizes('/proc/meminfo')['Shmem'] - before)

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


def _memory_of(pid: int | None, exact: bool) -> float:
    """Return the MiB of a process; if exact, without shared memory, and pages of several processes divided among them.
    """
    if not exact:
        return passes.sizes(f'/proc/{pid}/status').get('VmRSS', 0.)
    found = passes.sizes(f'/proc/{pid}/smaps_rollup')  # empty if it has ended
    return found.get('Pss', 0.) - found.get('Pss_Shmem', 0.)


if __name__ == '__main__':
    print(json.dumps(read(**json.loads(sys.argv[1]))), flush=True)
