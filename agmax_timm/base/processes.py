"""Processes of this package: their environment, the cores that they may use, and how they start."""
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOME = str(Path(__file__).parents[2])


def environment() -> dict[str, str]:
    """Return the environment for a new process, in which Python finds this package."""
    paths = [_HOME, *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def fork_workers() -> None:
    """Set the start method of loader workers to fork on Linux, unless this process has set another one.

    From version 3.14, Python starts workers from a server. Each worker would import torch again and copy the data in
    memory. A signal to the whole job would end the server and the workers before the main process has saved.
    """
    if sys.platform == 'linux' and multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method('fork')


@contextmanager
def imports_without_gc() -> Iterator[None]:
    """Exclude the objects of the modules that are imported inside from garbage collection.

    The collector would traverse all objects of torch and timm repeatedly: a fifth of their import time, and a second at
    the end of the process. Does nothing if torch is already imported.
    """
    if 'torch' in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
