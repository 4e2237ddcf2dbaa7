"""Figure of a study: the results of all seeds, and the paired differences from the baseline with their intervals."""
from typing import Any, NamedTuple

from ..base.output_files import COLOURS, label_lines, save_figure
from .definition import Study
from .results import Comparison, Difference, Row


class Line(NamedTuple):
    """A line of the figure: its group and label, and what is drawn."""
    group: str
    label: str
    colour: str
    values: list[float]
    difference: Difference
    published: float | None = None


def draw(study: Study, rows: list[Row], comparisons: list[Comparison], path: str) -> None:
    """Draw a line for each method and comparison.

    On the left are the values of the seeds with their mean. On the right are the differences of the seeds from the
    baseline, their mean with its 95 % interval, and diamonds for published differences.
    """
    methods = [method.name for method in study.methods]
    lines = [
        Line(row.cell.group, row.cell.method, COLOURS[methods.index(row.cell.method) % len(COLOURS)],
             [*row.values.values()], row.difference, row.published_difference)
        for row in rows if row.values]
    means = 'mean of the augmentations' if len(study.augmentations) > 1 else 'comparisons'
    lines += [
        Line(', '.join(filter(None, (one.setting, means))), f'{one.method} minus {one.other}', COLOURS[-1], [],
             one.difference) for one in comparisons if one.difference.n]
    if lines:
        height = .27 * (len(lines) + 1.4 * len({line.group for line in lines}))
        save_figure(path, lambda figure: _plot(figure, study, lines), dpi=130, figsize=(9.5, 1.4 + height))


def _plot(figure: Any, study: Study, lines: list[Line]) -> None:
    compared = any(line.difference.n for line in lines)
    values, *others = figure.subplots(1, 2, sharey=True) if compared else [figure.subplots()]
    places = label_lines(values, [line.label for line in lines], [line.group for line in lines])
    for line, place in zip(lines, places):
        if line.values:
            values.plot(line.values, [place] * len(line.values), 'o', color=line.colour, markersize=4, alpha=.5)
            values.plot([sum(line.values) / len(line.values)], [place], '|', color=line.colour, markersize=13,
                        markeredgewidth=2)
        if line.difference.n:
            _plot_difference(others[0], line, place)
    values.set_xlabel(f'{study.metric_title}:\nseeds and mean', fontsize=8)
    for differences in others:
        differences.axvline(0., color='black', linewidth=.8)
        texts = differences.secondary_yaxis('right')
        texts.set_yticks(places, [_text(line.difference, study.decimals) for line in lines], fontsize=8)
        texts.tick_params(length=0)
        texts.spines['right'].set_visible(False)
        named = '' if all(line.values for line in lines) else ' (comparisons: as named)'
        published = ', published (diamond)' if any(line.published is not None for line in lines) else ''
        differences.set_xlabel(f'minus {study.baseline}{named}:\nseeds, mean, 95 % interval{published}', fontsize=8,
                               parse_math=False)
        differences.tick_params(axis='y', length=0)
    for axes in figure.axes:
        axes.tick_params(axis='x', labelsize=8)
        axes.grid(axis='x', color='0.9')
        axes.set_axisbelow(True)
    figure.suptitle(study.title, fontsize=10, parse_math=False)


def _plot_difference(axes: Any, line: Line, place: float) -> None:
    found = line.difference
    axes.plot(found.values, [place + .22] * found.n, 'o', color=line.colour, markersize=3, alpha=.5)
    if found.low is not None:
        axes.plot([found.low, found.high], [place] * 2, '-', color=line.colour, linewidth=2)
    axes.plot([found.mean], [place], 'o', color=line.colour, markersize=6)
    if line.published is not None:
        axes.plot([line.published], [place], 'D', color='black', fillstyle='none', markersize=5)


def _text(difference: Difference, decimals: int) -> str:
    if difference.mean is None:
        return ''
    numbers = (difference.mean, difference.low, difference.high)
    mean, *interval = [f'{number:+.{decimals}f}' for number in numbers if number is not None]
    return f"{mean} ({' to '.join(interval)})" if interval else mean
