"""Output to a process that has ended, as in `command | head`, or to a terminal that was closed."""
import os
import select
import sys
from typing import TextIO


def print_if_read(text: str) -> None:
    """Print a text, or drop it if the reader of stdout has ended or the terminal was closed."""
    try:
        print(text, flush=True)
    except OSError:
        if not drop_unread_output():
            raise


def print_message(line: str) -> None:
    """Print a line on stderr, below any progress bar. Drop it if stderr cannot be written."""
    from tqdm import tqdm
    try:
        tqdm.write(line, file=sys.stderr)
    except OSError:
        drop_unread_output(sys.stderr)


def drop_unread_output(stream: TextIO | None = None) -> bool:
    """Drop all further output to a stream, by default stdout, if its reader has ended or its terminal was closed.

    Returns:
        Whether this is so. If not, another file cannot be written.
    """
    descriptor = (stream or sys.stdout).fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return True
