"""Start of a job: variables of the launcher, and waiting until all processes have started."""
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm import utils
from timm.utils.distributed import init_distributed_device_so

from ..base.presence import Presence
from ..base.processes import LAUNCHER, is_first_process, number_in
from ..base.signals import EXIT_STATUS, StopSignals
from ..base.text import listed
from .console import setup_logging

_logger = logging.getLogger('train')

PATIENCE = 30.  # seconds until a warning names the missing ranks
_INTERVAL = 2.  # seconds between two checks for other ranks


def begin_job() -> None:
    """Set up the log. Leave the SLURM allocation, with a warning, if srun did not start this process."""
    warning = leave_allocation()
    setup_logging(primary=is_first_process())
    if warning:
        _logger.warning(warning)


def leave_allocation() -> str:
    """Remove SLURM's variables if srun did not start this process, so that it runs alone.

    In a batch script, under salloc and in a notebook, SLURM_NTASKS counts tasks that are not started.

    Returns:
        A warning, or '' if nothing was changed.
    """
    tasks = os.environ.get('SLURM_NTASKS') or '1'
    in_step = number_in('SLURM_STEP_NUM_TASKS') > 1
    if os.environ.get('WORLD_SIZE') or tasks == '1' or in_step:
        return ''
    for name in ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'):
        os.environ.pop(name, None)
    return (f'SLURM has {tasks} tasks for this job, but srun did not start this process: it runs alone. '
            'To start all of them, use srun.')


@contextmanager
def one_process() -> Iterator[None]:
    """Hide the launcher from timm, for commands that always run as one process."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def join(device: str, signals: StopSignals | None = None) -> torch.device:
    """Call timm's init_distributed_device. Warn about missing ranks, and let signals end the wait.

    torch waits in C++, where Python does not handle signals, so the call runs in a second thread.

    Args:
        signals: Signals that end the process, with the exit status of an interrupted run.
    """
    if not utils.is_distributed_env():
        return torch.device(init_distributed_device_so(device)['device'])
    thread = _JoinThread(device)
    start, warned = time.monotonic(), False
    while thread.is_alive():
        thread.join(.1)
        if signals is not None and signals.received:
            print(f'{os.path.basename(sys.argv[0])}: error: {signals.received}: nothing was begun. '
                  f'{thread.waits_for()}', file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)  # torch's thread cannot be stopped
        if not warned and time.monotonic() - start > PATIENCE:
            _logger.warning(thread.waits_for())
            warned = True
    if thread.error is not None:
        raise thread.error
    joined = torch.device(thread.device)
    if joined.type == 'cuda' and joined.index is not None:
        torch.cuda.set_device(joined)  # the current device is per thread; timm set it in the other one
    return joined


class _JoinThread(threading.Thread):
    """A thread that joins the process group. A second thread announces this rank to the others."""

    def __init__(self, device: str):
        super().__init__(name='start', daemon=True)
        self.device = device
        self.error: BaseException | None = None
        _, self.rank, self.world_size = utils.world_info_from_env()
        self._missing: list[int] | None = None  # ranks; None before the connection to rank 0
        self._done = threading.Event()
        self.start()
        threading.Thread(target=self._announce, name='presence', daemon=True).start()

    def run(self) -> None:
        try:
            self.device = init_distributed_device_so(self.device)['device']
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    def waits_for(self) -> str:
        """Return a sentence about the ranks that have not started."""
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ranks = [0] if self._missing is None else self._missing
        return f'Rank {self.rank} waits for rank {listed(ranks)} of {self.world_size} to start, at {place}.'

    def _announce(self) -> None:
        presence: Any = None
        while not self._done.wait(_INTERVAL):
            if self._missing is None:
                presence = Presence(self.rank, self.world_size, period=_INTERVAL)
            presence.beat()
            self._missing = presence.absent()
