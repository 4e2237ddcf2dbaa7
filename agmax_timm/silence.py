"""Checks on objects that nobody uses: they may fail, but they do not speak."""
import logging
import warnings
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def silenced() -> Iterator[None]:
    """Drop log records and warnings, of every library, for work on a stand-in: they would not be true of the run."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)
