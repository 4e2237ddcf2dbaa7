"""Read a loader for some epochs, and print the most memory that this process and its workers took in each, as JSON.

    python -m agmax_timm.bench.epochs '{"name": ..., "root": ..., ...}'
"""
import json
import multiprocessing
import os
import sys
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

from .pipelines import build, run

_INTERVAL = 0.1  # seconds


def read(epochs: int, **options) -> Dict[str, Any]:
    """Read a loader, of which the options are build()'s, for so many epochs.

    Returns:
        `peaks` of memory in MiB of each epoch, their `kind` PSS or RSS, and the `views` of an epoch.
    """
    loader = build(**options)
    peaks: List[float] = []
    views = 0
    for _ in range(epochs):
        with _watched() as peak:
            views = run(loader)
        peaks.append(peak['mib'])
    return dict(peaks=peaks, views=views, kind=_mib(os.getpid())[1])


@contextmanager
def _watched() -> Iterator[Dict[str, float]]:
    """The most memory in `mib` of this process and its workers, from here to the end."""
    peak, done = dict(mib=0.), threading.Event()

    def look():
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        peak['mib'] = max(peak['mib'], sum(_mib(pid)[0] for pid in pids))

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


def _mib(pid: int) -> Tuple[float, str]:
    """Memory of a process, and of which kind: 'PSS', shared pages counted once, or 'RSS' where the kernel lacks it."""
    try:
        with open(f'/proc/{pid}/smaps_rollup') as file:
            return sum(int(line.split()[1]) for line in file if line.startswith('Pss:')) / 1024, 'PSS'
    except OSError:
        with open(f'/proc/{pid}/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2 ** 20, 'RSS'


if __name__ == '__main__':
    print(json.dumps(read(**json.loads(sys.argv[1]))), flush=True)
