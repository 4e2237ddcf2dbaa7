"""Standard output to a process that has ended, as in `command | head`."""
import os
import select
import sys


def print_if_read(text: str) -> None:
    """Print a text, or drop it if the reader of stdout has ended."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        if not drop_unread_output():
            raise


def drop_unread_output() -> bool:
    """Drop all further output if the reader of stdout has ended.

    Returns:
        Whether the reader has ended. If not, another pipe is broken.
    """
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return True
