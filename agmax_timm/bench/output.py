"""Output of a benchmark: aligned table, CSV file, chart of the ratios, and description of the machine."""
import itertools
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..base.output_files import COLOURS, label_lines, save_figure, write_csv
from ..base.processes import cores

Row = dict[str, Any]  # text, numbers, or None


@dataclass
class Result:
    """Rows with the same columns, text first. The chart shows the columns `ratio`, `least` and `most`."""
    caption: str  # explains the ratio
    rows: list[Row]


def table(rows: list[Row]) -> str:
    """Return a table with a header. Text is aligned to the left, numbers to the right."""
    columns = [*rows[0]]
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    is_text = [isinstance(value, str) for value in rows[0].values()]
    return '\n'.join(
        '  '.join(cell.ljust(width) if left else cell.rjust(width)
                  for cell, width, left in zip(line, widths, is_text)).rstrip()
        for line in cells)


def save(result: Result, folder: str, name: str, machine: str) -> None:
    """Write the rows with the column `machine` to name.csv, and with matplotlib a chart of the ratios to name.png."""
    os.makedirs(folder, exist_ok=True)
    write_csv(os.path.join(folder, f'{name}.csv'), [{**row, 'machine': machine} for row in result.rows], '\n')
    texts = [[value for value in row.values() if isinstance(value, str)] for row in result.rows]
    groups = [': '.join(text[:-1]) for text in texts]
    save_figure(os.path.join(folder, f'{name}.png'),
                lambda figure: _draw(figure, result, groups, [text[-1] for text in texts], machine),
                figsize=(9, 1.4 + .27 * (len(groups) + 1.4 * len(set(groups)))))


def _draw(figure: Any, result: Result, groups: list[str], names: list[str], machine: str) -> None:
    """Draw bars of the ratios, with error bars from least to most. Each group, such as a recipe, has a heading."""
    rows = result.rows
    colours = dict(zip(dict.fromkeys(names), itertools.cycle(COLOURS)))
    spread = [[row['ratio'] - row['least'] for row in rows], [row['most'] - row['ratio'] for row in rows]]
    axes = figure.subplots()
    places = label_lines(axes, names, groups)
    bars = axes.barh(places, [row['ratio'] for row in rows], xerr=spread, capsize=3,
                     color=[colours[name] for name in names], error_kw=dict(linewidth=.9, linestyle='-'))
    axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], padding=4, fontsize=8)
    axes.axvline(1., color='black', linewidth=.8, linestyle='-')
    axes.margins(x=.08)
    axes.tick_params(axis='x', labelsize=8)
    figure.suptitle(result.caption, fontsize=8, wrap=True)
    figure.supxlabel(machine, fontsize=6, wrap=True)


def describe_machine() -> str:
    """Return the CPU model, the number of usable cores, and versions of packages."""
    packages = ('torch', 'timm', 'torchvision', 'pillow', 'opencv-python-headless', 'simplejpeg')
    return f'{_cpu()}, {cores()} cores; Python {platform.python_version()}, ' + ', '.join(
        f'{package} {_version(package)}' for package in packages)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return 'missing'


def _text(value: str | float | None) -> str:
    """Return a value as text, numbers with at least three significant digits."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return '-'
    if isinstance(value, int):
        return str(value)
    if abs(value) < 1:
        return f'{value:.3g}'
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.2f}'
