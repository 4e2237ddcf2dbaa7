"""The console log of a command, above its progress bars."""
import logging
import sys

from timm.utils import setup_default_logging, world_info_from_env
from tqdm import tqdm

from .job_start import leave_allocation

_logger = logging.getLogger('train')
# Lines of single updates and batches: on a terminal a progress bar replaces them; the log file has them either way.
steps_logger = logging.getLogger('train.steps')


class _ConsoleHandler(logging.StreamHandler):
    """Write above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def begin_log() -> None:
    """Set up the log. Outside of srun, leave the SLURM allocation and warn of that."""
    warning = leave_allocation()
    setup_logging(primary=world_info_from_env()[1] == 0)
    if warning:
        _logger.warning(warning)


def setup_logging(primary: bool = True) -> None:
    """Log to the console as timm does; on ranks other than the first, warnings alone."""
    setup_default_logging(logging.INFO if primary else logging.WARNING)
    if primary and sys.stderr.isatty():
        plain = logging.root.handlers[-1]
        console = _ConsoleHandler()
        console.setFormatter(plain.formatter)
        console.addFilter(lambda record: record.name != steps_logger.name)
        logging.root.handlers[-1] = console
