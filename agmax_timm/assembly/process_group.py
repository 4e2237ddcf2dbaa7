"""Timeout and end of the process group of a command."""
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from ..base.command import print_error
from ..base.errors import as_user_error

_MARGIN = 300.  # seconds


def outlast(seconds: float) -> None:
    """Set the timeout of collectives to more than `seconds`, the timeout of the watchdog.

    The watchdog names the rank that hangs. torch's own timeout (10 minutes for NCCL) would abort the job first, and
    only name the collective.
    """
    name = 'set_timeout' if hasattr(distributed_c10d, 'set_timeout') else '_set_pg_timeout'  # before torch 2.14
    getattr(distributed_c10d, name)(timedelta(seconds=seconds + _MARGIN))


@contextmanager
def ending_process_group() -> Iterator[None]:
    """Destroy the process group at the end of the block.

    After an error, print the error and abort the group. Destroying the group could wait forever for ranks in a
    collective.

    Raises:
        SystemExit: An error was printed. It has the exit status of the error.
    """
    try:
        yield
    except BaseException as error:
        if not dist.is_initialized():
            raise
        end = error if isinstance(error, SystemExit) else SystemExit(_print(error))
        sys.stderr.flush()
        distributed_c10d._abort_process_group()
        raise end from None
    end_process_group()


def end_process_group() -> None:
    """Destroy the process group, if there is one. All ranks call it at the same time."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _print(error: BaseException) -> int:
    """Print an error. Return the exit status."""
    known = as_user_error(error)
    if known is not None:
        return print_error(known)
    sys.excepthook(type(error), error, error.__traceback__)  # the hook of torch prefixes each line with the rank
    return 1
