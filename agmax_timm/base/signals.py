"""Signals that ask a run to end: it finishes the update, saves, and leaves with a status that says it can continue."""
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from .distributed import is_distributed
from .errors import UserError

EXIT_STATUS = 75  # EX_TEMPFAIL: try again
# SIGUSR1 is how SLURM warns of the end of the time (--signal=USR1@120).
_NAMES = ('SIGTERM', 'SIGUSR1', 'SIGINT')


class Interrupted(UserError):
    """A run that was asked to end and has saved its state. The message names the signal and where the run continues."""
    exit_status = EXIT_STATUS


class StopSignals:
    """While entered, notes signals in place of dying of them. A second Ctrl-C ends the process at once."""

    def __init__(self):
        self.received: str | None = None  # the first one's name
        self._handlers = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # others cannot
            self._handlers = {number: signal.signal(number, self._note) for number in map(_number, _NAMES) if number}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to end. A collective where there are several."""
        asked = self.received is not None
        if is_distributed():
            of_all = torch.tensor(asked, dtype=torch.uint8, device=device)
            dist.all_reduce(of_all, dist.ReduceOp.MAX)
            asked = bool(of_all.item())
        return asked

    def check_start(self, resume: str, device: torch.device) -> None:
        """Leave before training begins, all ranks together. A collective where there are several.

        Args:
            resume: Checkpoint that the run resumes from, '' for none.

        Raises:
            Interrupted: any rank was asked to end.
        """
        if self.agreed(device):
            since = f'nothing was trained since {resume}' if resume else 'nothing was begun'
            raise Interrupted(f'{self.name}: {since}. The same command starts again')

    @property
    def name(self) -> str:
        """What asked the run to end, for messages."""
        return self.received or 'a signal to another rank'

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number).name


def _number(name: str) -> int | None:
    return getattr(signal, name, None)  # SIGUSR1 is not on every system
