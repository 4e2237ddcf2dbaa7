"""What a measurement tells: an aligned table, a CSV file, a chart of the ratios."""
import csv
import logging
import os
from dataclasses import dataclass
from typing import Any

from ..base import atomic_write

_logger = logging.getLogger(__name__)

Row = dict[str, Any]  # text, numbers, or None


@dataclass
class Result:
    """Rows of the same columns, those of text first: the ones that name a row. `ratio`, `least`, `most` are drawn."""
    caption: str  # what the ratio is of
    rows: list[Row]


def table(rows: list[Row]) -> str:
    """The rows under their columns' names, text to the left and numbers to the right."""
    columns = [*rows[0]]
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    is_text = [isinstance(value, str) for value in rows[0].values()]
    return '\n'.join(
        '  '.join(cell.ljust(width) if left else cell.rjust(width)
                  for cell, width, left in zip(line, widths, is_text)).rstrip()
        for line in cells)


def save(result: Result, folder: str, name: str, machine: str) -> None:
    """Write the rows, and the machine in each, to name.csv, and their ratios to name.png if there is matplotlib."""
    os.makedirs(folder, exist_ok=True)
    with atomic_write.replacing(os.path.join(folder, f'{name}.csv'), 'w') as file:
        writer = csv.DictWriter(file, [*result.rows[0], 'machine'], lineterminator='\n')
        writer.writeheader()
        writer.writerows({**row, 'machine': machine} for row in result.rows)
    draw(result, os.path.join(folder, f'{name}.png'), machine)


def draw(result: Result, path: str, machine: str) -> None:
    """Bars of the ratios from the least to the most of all repetitions. Needs the extra `plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning(f'No {path}: install matplotlib (the extra "plot") for it.')
        return
    rows = result.rows[::-1]  # the first on top
    labels = [': '.join(value for value in row.values() if isinstance(value, str)) for row in rows]
    spread = [[row['ratio'] - row['least'] for row in rows], [row['most'] - row['ratio'] for row in rows]]
    figure = Figure(figsize=(9, 1.4 + .35 * len(rows)), layout='constrained')
    axes = figure.subplots()
    bars = axes.barh(range(len(rows)), [row['ratio'] for row in rows], xerr=spread, capsize=3)
    axes.bar_label(bars, [f" {row['ratio']:.2f}" for row in rows], label_type='center', color='white')
    axes.set_yticks(range(len(rows)), labels)
    axes.axvline(1., color='black', linewidth=.8)
    axes.set_title(result.caption, fontsize=8)
    axes.set_xlabel(machine, fontsize=5)
    with atomic_write.replacing(path) as file:
        figure.savefig(file, dpi=110, format='png')


def _text(value: str | float | None) -> str:
    """Three digits or more."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return '-'
    if isinstance(value, int):
        return str(value)
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.2f}' if abs(value) >= 1 else f'{value:.3g}'
