"""Console log of a command, compatible with progress bars."""
import logging
import sys

from timm.utils import setup_default_logging
from tqdm import tqdm

# Log of single updates and batches. On a terminal, a progress bar replaces it; the log file always contains it.
steps_logger = logging.getLogger('train.steps')


class _ConsoleHandler(logging.StreamHandler):
    """A handler that writes above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # for example of a terminal that was closed
            self.handleError(record)


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
