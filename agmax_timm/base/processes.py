"""What processes of this package need to know: where it is, how many cores there are for them, how they begin."""
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOME = str(Path(__file__).parents[2])


def environment() -> dict[str, str]:
    """This process's environment, in which Python finds this package wherever it is."""
    paths = [_HOME, *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def fork_workers() -> None:
    """Fork loader workers on Linux, unless this process was told another way.

    Newer than 3.13, Python starts them from a server: each would import torch anew, have a copy of all that is in
    memory, and end when a signal to the whole job ends the server, before the main process has saved.
    """
    if sys.platform == 'linux' and multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method('fork')


@contextmanager
def kept_imports() -> Iterator[None]:
    """Import what stays for the life of the process, and keep the garbage collector away from it.

    It would walk through all objects of torch and timm again and again: for a fifth of the time of their import, and
    for a second at the end of the process. Nothing is done if torch was imported before.
    """
    if 'torch' in sys.modules:
        yield
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
