"""A page that compares runs: metrics, settings that differ, curves on shared axes, and the recall of each class."""
import logging
import os
from collections.abc import Sequence

from ..base.atomic_write import write_text
from ..base.errors import DataError, OptionError
from ..base.text import one_line
from ..options.declare import declared
from ..options.option_file import as_yaml
from ..options.parsers import TrainOptions
from ..options.recipe import portable, redact
from .charts import Points
from .page import charts, render_template
from .run import TITLES, ReportedRun, RunResults, evaluate_run, read_run

_logger = logging.getLogger('train')
_MOST_ROWS = 30  # largest number of rows of the table of classes that is not folded


def compare_runs(
        folders: Sequence[str],
        path: str,
        data_dir: str | None = None,
        device: str = 'cuda',
        workers: int | None = None,
        use_ema: bool | None = None,
) -> str:
    """Write a page that compares runs. Differences are those from the first run.

    A run whose data is not there is compared by the metrics that training measured, without its classes.

    Args:
        data_dir, device, workers, use_ema: As for report.make_report.

    Returns:
        The path of the page.

    Raises:
        CheckpointError, OptionError: A folder has no run or no checkpoint that can be read.
        OSError: The page cannot be written.
    """
    runs = [read_run(folder, data_dir, use_ema) for folder in folders]
    names, evaluations, notes = short_names(folders), [], []
    for name, run in zip(names, runs):
        evaluation = None
        try:
            evaluation = evaluate_run(run, device, workers)
        except (DataError, OptionError) as error:
            _logger.warning(f"'{name}' is not evaluated: {one_line(error)}")
            notes.append(f"'{name}' is not evaluated, its metrics are those of training: {redact(one_line(error))}")
        evaluations.append(evaluation)
    classes, rows = _class_rows(names, evaluations)
    write_text(path, render_template('comparison.html.jinja', dict(
        names=names,
        notes=notes,
        metric_rows=_metric_rows(runs, evaluations),
        setting_rows=differing_settings(runs),
        charts=charts(_shared_panels(names, runs)),
        class_head=classes,
        class_rows=rows,
        most_rows=_MOST_ROWS,
    )))
    return path


def short_names(folders: Sequence[str]) -> list[str]:
    """Return the path of each folder below the folder that contains all of them."""
    paths = [os.path.abspath(folder) for folder in folders]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def differing_settings(runs: Sequence[ReportedRun]) -> list[tuple[str, ...]]:
    """Return the options whose values differ between runs: name, then the value of each run.

    Options of the machine, the process and the person are left out, as in a published recipe.
    """
    names = [name for name, option in declared(TrainOptions).items() if option.recipe != 'left out']
    rows = [(name, *(as_yaml(portable(run.options.get(name))) for run in runs)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _metric_rows(runs: Sequence[ReportedRun], evaluations: Sequence[RunResults | None]) -> list[list[str]]:
    """Return a row for each metric and fact, with the value of each run."""
    measured = [run.metrics if evaluation is None else evaluation.metrics for run, evaluation in zip(runs, evaluations)]
    name = 'map' if any('map' in metrics for metrics in measured) else 'top1'
    values = [metrics.get(name) for metrics in measured]
    columns = [{
        TITLES[name]: '' if value is None else f'{value:.2f}',
        'difference (points)': '' if value is None or values[0] is None else f'{value - values[0]:+.2f}',
        **(evaluation.values if evaluation is not None else {}),
        'best epoch': '' if run.epoch is None else str(run.epoch),
        **run.spent,
    } for run, evaluation, value in zip(runs, evaluations, values)]
    titles = dict.fromkeys(title for column in columns for title in column)
    return [[title, *(column.get(title, '') for column in columns)] for title in titles]


def _shared_panels(names: Sequence[str], runs: Sequence[ReportedRun]) -> dict[str, dict[str, Points]]:
    """Return a panel for each curve, with a line for each run that has it."""
    curves = [run.curves for run in runs]
    several = {title for one in curves for title, lines in one.items() if len(lines) > 1}
    panels: dict[str, dict[str, Points]] = {}
    for run_name, one in zip(names, curves):
        for title, lines in one.items():
            for name, points in lines.items():
                panel = f'{title}, {name}' if title in several else title
                panels.setdefault(panel, {})[run_name] = points
    return panels


def _class_rows(
        names: Sequence[str],
        evaluations: Sequence[RunResults | None],
) -> tuple[list[str], list[list[str | int]]]:
    """Return head and rows of the recall of each class in percent, the largest difference between runs first.

    Runs that were not evaluated, or whose classes are not those of the first one, are left out.
    """
    known = [(name, evaluation, evaluation.analysis.per_class) for name, evaluation in zip(names, evaluations)
             if evaluation is not None and evaluation.analysis is not None]
    known = [run for run in known if run[1].class_names == known[0][1].class_names
             and run[2].support.equal(known[0][2].support)]
    if len(known) < 2:
        return [], []
    titles, support = known[0][1].class_names, known[0][2].support.tolist()
    recalls = [[100 * value for value in per_class.recall.tolist()] for _, _, per_class in known]
    spread = [max(values) - min(values) for values in zip(*recalls)]
    order = sorted(range(len(support)), key=lambda index: -spread[index])
    return ['class', *(name for name, *_ in known), 'largest difference', 'images'], [
        [titles[index] if titles and index < len(titles) else str(index),
         *(f'{recall[index]:.1f}' for recall in recalls), f'{spread[index]:.1f}', support[index]]
        for index in order if support[index]]
