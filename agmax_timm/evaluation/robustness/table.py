"""Comparison of several models: robustness.csv with all numbers, robustness.md with the metrics, a figure."""
import os
import re
from statistics import fmean
from typing import Any

from ...base.atomic_write import write_text
from ...base.output_files import save_figure, write_csv

Row = dict[str, Any]

_BY_SEVERITY = re.compile(r'(.+)_([1-5])_err')
_BY_EPSILON = re.compile(r'(fgsm|pgd)_(linf|l2)_(.+)_top1')
# Columns of results that are not metrics to compare.
_NOT_COMPARED = ('model', 'top1_err', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation', 'checkpoint',
                 'aliases', 'error')


def write_comparison(folder: str, rows: list[Row]) -> None:
    """Write robustness.csv, robustness.md and, with matplotlib, robustness.png. Each file is replaced atomically."""
    os.makedirs(folder, exist_ok=True)
    write_csv(os.path.join(folder, 'robustness.csv'), rows)
    write_text(os.path.join(folder, 'robustness.md'), markdown(rows))
    draw(os.path.join(folder, 'robustness.png'), rows)


def markdown(rows: list[Row]) -> str:
    """Return a table with a column per model and a row per metric. Single severities are only in the CSV file."""
    names = [label.replace('|', r'\|') for label in labels(rows)]
    lines = [['', *names], ['---', *['---:'] * len(rows)]]
    lines += [[name, *(_shown(row.get(name)) for row in rows)] for name in _metrics(rows)]
    failed = [f"{label}: {row['error']}" for label, row in zip(names, rows) if 'error' in row]
    return ''.join(f"| {' | '.join(line)} |\n" for line in lines) + ''.join(f'\n{line}\n' for line in failed)


def text(rows: list[Row]) -> str:
    """Return a line per model for a terminal: the metrics of `markdown`, or the error."""
    return '\n'.join(f'{label}: ' + (row.get('error') or ', '.join(
        f'{name} {_shown(row[name])}' for name in _metrics([row]))) for label, row in zip(labels(rows), rows))


def _metrics(rows: list[Row]) -> list[str]:
    return [name for name in dict.fromkeys(name for row in rows for name in row)
            if name not in _NOT_COMPARED and not _BY_SEVERITY.fullmatch(name)]


def labels(rows: list[Row]) -> list[str]:
    """Return a short name of each model: the checkpoint's path below the common folder, or the model's name."""
    paths = [os.path.abspath(row['checkpoint']) for row in rows if row.get('checkpoint')]
    root = os.path.commonpath(map(os.path.dirname, paths)) if paths else ''
    return [os.path.relpath(os.path.abspath(row['checkpoint']), root) if row.get('checkpoint') else row['model']
            for row in rows]


def draw(path: str, rows: list[Row]) -> None:
    """Draw a line per model: error by severity, and accuracy by the bound of the attack. Draws nothing without both."""
    curves = [(label, by_severity(row), by_epsilon(row)) for label, row in zip(labels(rows), rows)]
    if not any(severities or epsilons for _, severities, epsilons in curves):
        return

    def plot(figure) -> None:
        corrupted, attacked = figure.subplots(1, 2)
        for label, severities, epsilons in curves:
            corrupted.plot(list(severities), list(severities.values()), marker='o', label=label)
            attacked.plot(list(epsilons), list(epsilons.values()), marker='o', label=label)
        corrupted.set(xlabel='severity, 0 for none', ylabel='mean top-1 error of the corruptions (%)')
        attacked.set(xlabel='bound of the attack, 0 for none', ylabel='top-1 accuracy (%)')
        corrupted.legend(fontsize='small')

    save_figure(path, plot, dpi=120, figsize=(10, 4))


def by_severity(row: Row) -> dict[int, float]:
    """Return the mean top-1 error of all corruptions by severity, 0 for clean images; empty without corruptions."""
    errors: dict[int, list[float]] = {}
    for name, value in row.items():
        match = _BY_SEVERITY.fullmatch(name)
        if match:
            errors.setdefault(int(match[2]), []).append(value)
    if not errors:
        return {}
    return {0: row['top1_err'], **{severity: fmean(values) for severity, values in sorted(errors.items())}}


def by_epsilon(row: Row) -> dict[float, float]:
    """Return the top-1 accuracy by the bound of the attack, 0 for clean images; empty without an attack."""
    attacked = {float(match[3]): row[match[0]] for match in map(_BY_EPSILON.fullmatch, row) if match}
    return {0.: row['top1'], **dict(sorted(attacked.items()))} if attacked else {}


def _shown(value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.4g}' if abs(value) < 1 else f'{value:.2f}'
