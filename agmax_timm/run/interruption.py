"""Signals that ask a run to end: it finishes the update, saves, and leaves with a status that says it can go on."""
import signal
import threading
from typing import Any, Optional

EXIT_STATUS = 75  # EX_TEMPFAIL: try again
# SIGUSR1 is how SLURM warns of the end of the time (--signal=USR1@120).
_NAMES = ('SIGTERM', 'SIGUSR1', 'SIGINT')


class Interrupted(Exception):
    """A run that was asked to end and has saved; the message says by what and where it goes on."""


class StopSignals:
    """While entered, notes signals in place of dying of them. A second Ctrl-C ends the process at once."""

    def __init__(self):
        self.received: Optional[str] = None  # the first one's name
        self._handlers = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # others cannot
            self._handlers = {number: signal.signal(number, self._note) for number in map(_number, _NAMES) if number}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number).name


def _number(name: str) -> Optional[int]:
    return getattr(signal, name, None)  # SIGUSR1 is not on every system
