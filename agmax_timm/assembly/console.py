"""Console log of a command, compatible with progress bars."""
import logging
import sys

from timm.utils import setup_default_logging, world_info_from_env
from tqdm import tqdm

from .job_start import leave_allocation

_logger = logging.getLogger('train')
# Log of single updates and batches. On a terminal, a progress bar replaces it; the log file always contains it.
steps_logger = logging.getLogger('train.steps')


class _ConsoleHandler(logging.StreamHandler):
    """A handler that writes above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # for example of a terminal that was closed
            self.handleError(record)


def begin_log() -> None:
    """Set up the log. Leave the SLURM allocation, with a warning, if srun did not start this process."""
    warning = leave_allocation()
    setup_logging(primary=world_info_from_env()[1] == 0)
    if warning:
        _logger.warning(warning)


def setup_logging(primary: bool = True) -> None:
    """Log to the console as timm does. Ranks other than the first only log warnings."""
    setup_default_logging(logging.INFO if primary else logging.WARNING)
    logging.getLogger('huggingface_hub').handlers.clear()  # it also prints what it passes to the root logger
    if primary and sys.stderr.isatty():
        plain = logging.root.handlers[-1]
        console = _ConsoleHandler()
        console.setFormatter(plain.formatter)
        console.addFilter(lambda record: record.name != steps_logger.name)
        logging.root.handlers[-1] = console
