"""Signals that ask a run to end. It finishes the update, saves, and exits with a status that means "try again"."""
import signal
import threading
from typing import Any

import torch

from .distributed import largest
from .errors import UserError

EXIT_STATUS = 75  # EX_TEMPFAIL: try again
# SLURM sends SIGUSR1 before the end of the time limit (--signal=USR1@120). A terminal that is closed sends SIGHUP.
_NAMES = ('SIGTERM', 'SIGUSR1', 'SIGINT', 'SIGHUP')


class Interrupted(UserError):
    """A run that was asked to end and has saved its state. The message names the signal and where the run continues."""
    exit_status = EXIT_STATUS


class StopSignals:
    """A context that records signals instead of ending the process. A second Ctrl-C ends the process.

    Attributes:
        received: Name of the first signal, None before.
    """

    def __init__(self):
        self.received: str | None = None
        self._handlers = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # Python only allows handlers there
            numbers = [getattr(signal, name) for name in _NAMES]
            self._handlers = {number: signal.signal(number, self._record) for number in numbers
                              if not _is_ignored_hangup(number)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def received_by_any(self, device: torch.device) -> bool:
        """Whether any rank has received a signal. A collective if there are several ranks."""
        return bool(largest(int(self.received is not None), device))

    def check_start(self, resume: str, device: torch.device) -> None:
        """End all ranks before training begins. A collective if there are several ranks.

        Args:
            resume: Checkpoint that the run resumes from, '' for none.
            device: Device for the collective.

        Raises:
            Interrupted: A rank has received a signal.
        """
        if self.received_by_any(device):
            since = f"nothing was trained since '{resume}'" if resume else 'nothing was begun'
            raise Interrupted(f'{self.signal_name}: {since}. The same command starts again')

    @property
    def signal_name(self) -> str:
        """Name of the signal for messages."""
        return self.received or 'a signal to another rank'

    def _record(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number).name


def _is_ignored_hangup(number: int) -> bool:
    return signal.Signals(number).name == 'SIGHUP' and signal.getsignal(number) is signal.SIG_IGN
