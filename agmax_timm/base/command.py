"""The frame of every command: how errors, signals and closed pipes end it."""
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from .errors import UserError, as_user_error
from .pipes import drop_unread_output, print_message
from .processes import fork_workers, launched_processes
from .text import one_line

_EX_SIGPIPE = 128 + 13


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception. It ends a command like Ctrl-C, so files and processes are cleaned up."""
    exit_status = 128 + signal.SIGTERM


def command(prog: str | None = None) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Decorate the main function of a command, which parses the command line, runs, and returns its exit status.

    An error that a user can act on (see errors.as_user_error) is printed as one line and gives the exit status. Other
    errors are raised. If the reader of the output has ended, the exit status is that of SIGPIPE, without a message.

    Args:
        prog: Name of the command in messages. None is the name of the script.
    """
    def decorate(main: Callable[..., int | None]) -> Callable[..., None]:
        @wraps(main)
        def run(*args: Any, **kwargs: Any) -> None:
            status: int | None
            try:
                fork_workers()
                # torch repeats it for every loader. options/parse.py warns once.
                warnings.filterwarnings('ignore', message='This DataLoader will create')
                with _sigterm_as_error():
                    try:
                        status = main(*args, **kwargs)
                    finally:
                        sys.stdout.flush()  # raises here; at the end of the process, Python would print the error
            except BrokenPipeError:
                if not drop_unread_output():
                    raise
                status = _EX_SIGPIPE
            except (Exception, KeyboardInterrupt) as error:
                known = as_user_error(error)
                if known is None:
                    raise
                status = print_error(known, prog)
            if status:
                sys.exit(status)
        return run
    return decorate


def print_error(error: UserError, prog: str | None = None) -> int:
    """Print an error as one line on stderr. Return the exit status, even if nobody can read the message."""
    print_message(f'{prog or os.path.basename(sys.argv[0])}: error: {one_line(error)}')
    return error.exit_status


@contextmanager
def _sigterm_as_error() -> Iterator[None]:
    """Raise Terminated at SIGTERM, unless the calling program handles or ignores it.

    Does nothing in a job of several processes. The launcher ends them by SIGTERM, and a process that waits in a
    collective cannot handle a signal.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if launched_processes() > 1 or not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated('terminated')
