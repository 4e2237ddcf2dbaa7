"""CSV tables, figures, and the check of a folder for new files."""
import csv
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import IO, Any

from .atomic_write import replacing
from .errors import OptionError
from .fonts import families

_logger = logging.getLogger(__name__)

# Colours that people with any colour vision can distinguish. M. Okabe and K. Ito, 'Color Universal Design', 2008.
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000']


def check_empty(folder: str) -> None:
    """Raise OptionError unless the folder is new or empty."""
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise OptionError(f"'{folder}' exists and is not an empty folder: name a new one")


def write_rows(file: IO[str], rows: Sequence[Mapping[str, Any]], line_end: str = '\r\n') -> None:
    """Write a header and rows as CSV. Columns are in the order of their first use. Missing values are empty."""
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)


def write_csv(path: str, rows: Sequence[Mapping[str, Any]], line_end: str = '\r\n') -> None:
    """Replace a file by rows as CSV in UTF-8. Bytes of file names that are not UTF-8 are written as they are."""
    with replacing(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        write_rows(file, rows, line_end)


def save_figure(path: str, draw: Callable[[Any], None], dpi: int = 110, **figure_args: Any) -> None:
    """Write a PNG file. Without matplotlib (the extra `plot`), log a warning and write none.

    Args:
        draw: Function that draws into a matplotlib.figure.Figure.
        dpi: Resolution in dots per inch.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning(f"'{os.path.basename(path)}' is not written: it needs pip install 'agmax_timm[plot]'")
        return
    logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)  # warns of fonts without bold letters
    with rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # shown as a box
        figure = Figure(layout='constrained', **figure_args)
        draw(figure)
        with replacing(path) as file:
            figure.savefig(file, dpi=dpi, format='png')


def _style() -> Any:
    """Return the settings of matplotlib: fonts for names in any script, and lines that differ in colour and dashes."""
    from cycler import cycler
    dashes = ['-', '--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
    return {
        'font.family': families(), 'axes.spines.top': False, 'axes.spines.right': False,
        'axes.prop_cycle': cycler(color=COLOURS) + cycler(linestyle=dashes)}


def label_lines(axes: Any, labels: Sequence[str], groups: Sequence[str]) -> list[float]:
    """Label the lines of a chart from above, with a bold heading above each group of lines.

    Args:
        groups: Group of each line. Lines of a group follow each other. '' has no heading.

    Returns:
        Vertical place of each line.
    """
    places: list[float] = []
    headings: list[float] = []
    texts: dict[float, str] = {}  # by place
    place = 0.
    for group, members in groupby(zip(groups, labels), key=itemgetter(0)):
        place += .4 if places else 0.
        if group:
            headings.append(place)
            texts[place] = group
            place += 1
        for _, label in members:
            places.append(place)
            texts[place] = label
            place += 1
    axes.set_yticks([*texts], [*texts.values()], parse_math=False, fontsize=8)
    for place, text in zip(texts, axes.get_yticklabels()):
        text.set_fontweight('bold' if place in headings else 'normal')
    axes.set_ylim(places[-1] + .6, -.6)
    axes.tick_params(axis='y', length=0)
    return places
