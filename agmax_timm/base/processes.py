"""Processes of this package: their environment, the cores that they may use, and how they start."""
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OptionError

# Variables from which timm reads the number of processes and the ranks.
LAUNCHER = (
    'WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'PMI_SIZE', 'PMI_RANK',
    'MPI_LOCALRANKID', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK')
_HOME = str(Path(__file__).parents[2])


def number_in(name: str) -> int:
    """Return the number in an environment variable, 1 if it is not set or empty.

    Raises:
        OptionError: The variable is not a whole number.
    """
    try:
        return int(os.environ.get(name) or 1)
    except ValueError as error:
        raise OptionError(f"the environment variable {name} must be a whole number, got '{os.environ[name]}': "
                          f'unset {name}, or start with torchrun') from error


def launched_processes() -> int:
    """Return the number of processes of the job by WORLD_SIZE or SLURM_NTASKS, 1 without them."""
    return max(number_in('WORLD_SIZE'), number_in('SLURM_NTASKS'))


def is_first_process() -> bool:
    """Whether this is the first process of the job, by the variables from which timm reads the rank."""
    ranks = (os.environ.get(name) for name in ('RANK', 'PMI_RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    return next(filter(None, ranks), '0') == '0'


def check_launcher() -> None:
    """Check the variables of the launcher. Remove empty ones, because timm would read them as numbers."""
    for name in LAUNCHER:
        number_in(name)
        if os.environ.get(name) == '':
            del os.environ[name]


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
