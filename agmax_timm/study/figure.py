"""Figure of a study: bars of all methods for each augmentation and setting."""

from ..base.output_files import save_figure
from .definition import Study
from .results import Row


def draw(study: Study, rows: list[Row], path: str) -> None:
    """Draw bars of the means, error bars of the sample standard deviations, and diamonds of published numbers."""
    shown = [row for row in rows if row.mean is not None]
    if not shown:
        return
    groups = list(dict.fromkeys(row.cell.group for row in rows))
    width = max(5, 1.2 + .32 * len(groups) * (len(study.methods) + 1))
    save_figure(path, lambda figure: _plot(figure, study, shown, groups), dpi=130, figsize=(width, 3.8))


def _plot(figure, study: Study, shown: list[Row], groups: list[str]) -> None:
    from matplotlib import colormaps
    methods = [method.name for method in study.methods]
    width = .8 / len(methods)
    colours = colormaps['tab10' if len(methods) <= 10 else 'tab20']
    axes = figure.subplots()
    for number, method in enumerate(methods):
        own = [row for row in shown if row.cell.method == method]
        places = [groups.index(row.cell.group) + (number - (len(methods) - 1) / 2) * width for row in own]
        deviations = [row.deviation if row.deviation is not None else float('nan') for row in own]  # nan: no bar
        axes.bar(places, [row.mean or 0. for row in own], .92 * width, yerr=deviations, capsize=2, label=method,
                 color=colours(number % colours.N), error_kw=dict(linewidth=.9))
        published = [(place, row.published) for place, row in zip(places, own) if row.published is not None]
        if published:
            axes.plot(*zip(*published), 'D', color='black', markersize=3,
                      label='_' if axes.get_legend_handles_labels()[1].count('published') else 'published')
    axes.set_ylim(*_limits(shown))
    axes.set_xticks(range(len(groups)), groups, rotation=30 if max(map(len, groups)) > 8 else 0,
                    ha='right' if max(map(len, groups)) > 8 else 'center', parse_math=False)
    axes.set_ylabel(f'{study.metric} (the axis does not begin at 0)', fontsize=8)
    axes.set_title(study.title, fontsize=10, parse_math=False)
    legend = figure.legend(fontsize=7, ncols=min(4, len(methods) + 1), loc='outside lower center')
    for name in legend.get_texts():
        name.set_parse_math(False)  # names may contain $


def _limits(rows: list[Row]):
    """Return the limits of the metric's axis. They are close to the values, so that differences are visible."""
    ends = [(row.mean or 0.) + sign * (row.deviation or 0.) for row in rows for sign in (-1, 1)]
    ends += [row.published for row in rows if row.published is not None]
    margin = .15 * (max(ends) - min(ends)) or 1.
    return min(ends) - 2 * margin, max(ends) + margin
