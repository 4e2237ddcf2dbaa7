"""CSV tables and figures."""
import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from .atomic_write import replacing

_logger = logging.getLogger(__name__)


def write_rows(file: IO[str], rows: Sequence[Mapping[str, Any]], line_end: str = '\r\n') -> None:
    """Write a header and rows as CSV. Columns are in the order in which they appear; a missing value is empty."""
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)


def save_figure(path: str, draw: Callable[[Any], None], dpi: int = 110, **figure_args: Any) -> None:
    """Write a PNG file. Needs the extra `plot`: without matplotlib, one line in the log says so.

    Args:
        draw: Function that draws into a matplotlib.figure.Figure.
        figure_args: Arguments of the figure.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning(f'No {os.path.basename(path)}: install matplotlib (the extra "plot") for it.')
        return
    figure = Figure(layout='constrained', **figure_args)
    draw(figure)
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format='png')
