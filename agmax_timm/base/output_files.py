"""CSV tables and figures."""
import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from .atomic_write import replacing

_logger = logging.getLogger(__name__)


def write_rows(file: IO[str], rows: Sequence[Mapping[str, Any]], line_end: str = '\r\n') -> None:
    """Write a header and rows as CSV. Columns are in the order of their first use. Missing values are empty."""
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)


def save_figure(path: str, draw: Callable[[Any], None], dpi: int = 110, **figure_args: Any) -> None:
    """Write a PNG file. Without matplotlib (the extra `plot`), log a warning and write none.

    Args:
        path: Path of the PNG file.
        draw: Function that draws into a matplotlib.figure.Figure.
        dpi: Resolution in dots per inch.
        **figure_args: Arguments of the figure.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning(f"{os.path.basename(path)} is not written: it needs pip install 'agmax_timm[plot]'")
        return
    figure = Figure(layout='constrained', **figure_args)
    draw(figure)
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format='png')
