"""The start of a job: how many processes it has by its launcher, and how they wait for each other."""
import argparse
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import Iterator, List, Optional

import torch
from timm import utils
from timm.utils.distributed import is_distributed_env

from ...command_line import listed
from .interruption import EXIT_STATUS, StopSignals
from .presence import Presence

_logger = logging.getLogger('train')

# Variables by which timm knows a launcher's size and ranks.
LAUNCHER = (
    'WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'PMI_SIZE', 'PMI_RANK',
    'MPI_LOCALRANKID', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK')
PATIENCE = 30.  # seconds of waiting for other ranks, after which it is said for whom
_INTERVAL = 2.  # seconds between two looks for other ranks


def leave_allocation() -> str:
    """Make this process one of its own where SLURM's variables are those of an allocation, in which srun did not start
    it: a batch script, salloc, a notebook. They give a number of tasks that nobody starts.

    Returns:
        A warning, '' where nothing was changed.
    """
    tasks = os.environ.get('SLURM_NTASKS', '1')
    in_step = int(os.environ.get('SLURM_STEP_NUM_TASKS', '1')) > 1
    if 'WORLD_SIZE' in os.environ or tasks == '1' or in_step:
        return ''
    for name in ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'):
        os.environ.pop(name, None)
    return (f'SLURM has {tasks} tasks for this job, but srun did not start this process: it runs alone. '
            'To start all of them, use srun.')


@contextmanager
def one_process() -> Iterator[None]:
    """Let timm see a single process, whatever the launcher: for commands that do not share their work."""
    kept = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def join(args: argparse.Namespace, signals: Optional[StopSignals] = None) -> torch.device:
    """timm's init_distributed_device. While this process waits for others of its job, it says for whom, and ends when
    a signal asks it to: torch itself waits in C++, where Python gets no signal.

    Args:
        signals: Signals that ask the process to end. It ends with the exit status of a run that can start again.
    """
    if not is_distributed_env():
        return utils.init_distributed_device(args)
    start = _Start(args)
    begun, said = time.monotonic(), False
    while start.is_alive():
        start.join(.1)
        if signals is not None and signals.received:
            print(f'{os.path.basename(sys.argv[0])}: error: {signals.received}: nothing was begun. {start.waits_for()}',
                  file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)  # torch's thread cannot be stopped
        if not said and time.monotonic() - begun > PATIENCE:
            _logger.warning(start.waits_for())
            said = True
    if start.error is not None:
        raise start.error
    device = torch.device(args.device)
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)  # of this thread
    return device


class _Start(threading.Thread):
    """Joins the process group. Beside it a second thread tells the other ranks that this one is there."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(name='start', daemon=True)
        self.args = args
        self.error: Optional[BaseException] = None
        _, self.rank, self.world_size = utils.world_info_from_env()
        self._missing: Optional[List[int]] = None  # None: rank 0 was not reached
        self._done = threading.Event()
        self.start()
        threading.Thread(target=self._tell, name='presence', daemon=True).start()

    def run(self) -> None:
        try:
            utils.init_distributed_device(self.args)
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    def waits_for(self) -> str:
        """Which ranks have not started, as a sentence."""
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ranks = [0] if self._missing is None else self._missing
        return f'Rank {self.rank} waits for rank {listed(ranks)} of {self.world_size} to start, at {place}.'

    def _tell(self) -> None:
        presence = None
        while not self._done.wait(_INTERVAL):
            if self._missing is None:  # none is reached yet
                presence = Presence(argparse.Namespace(rank=self.rank, world_size=self.world_size), period=_INTERVAL)
            presence.tell()
            self._missing = presence.absent()
