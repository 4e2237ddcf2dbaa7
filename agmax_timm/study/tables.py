"""Files of a study: results.csv, table.csv, comparisons.csv, table.md and figure.png."""
import os
from typing import Any

from ..base.atomic_write import write_text
from ..base.output_files import write_csv
from .definition import Level, Study
from .figure import draw
from .outcome import Outcome
from .results import Comparison, Difference, Row, aggregate, compare


def write_tables(study: Study, outcomes: list[Outcome], folder: str) -> str:
    """Write the files into a folder. comparisons.csv is only written if the study has comparisons.

    Returns:
        The text of table.md.
    """
    rows = aggregate(study, outcomes)
    comparisons = compare(study, rows)
    write_csv(os.path.join(folder, 'results.csv'), [{
        'augmentation': outcome.run.cell.augmentation,
        'setting': outcome.run.cell.setting,
        'method': outcome.run.cell.method,
        'seed': outcome.run.seed,
        'status': outcome.status,
        study.metric: outcome.value,
        'epoch': outcome.epoch,
        'folder': os.path.relpath(outcome.run.folder, folder),
        'error': outcome.error,
    } for outcome in outcomes], '\n')
    write_csv(os.path.join(folder, 'table.csv'), [{
        'augmentation': row.cell.augmentation,
        'setting': row.cell.setting,
        'method': row.cell.method,
        'n': len(row.values),
        'mean': row.mean,
        'deviation': row.deviation,
        **_columns(row.difference),
        'published': row.published,
        'published_difference': row.published_difference,
    } for row in rows], '\n')
    if comparisons:
        write_csv(os.path.join(folder, 'comparisons.csv'), [{
            'setting': one.setting, 'method': one.method, 'minus': one.other, **_columns(one.difference),
        } for one in comparisons], '\n')
    text = _markdown(study, rows, outcomes) + (_comparisons_markdown(study, comparisons) if comparisons else '')
    write_text(os.path.join(folder, 'table.md'), text)
    draw(study, rows, comparisons, os.path.join(folder, 'figure.png'))
    return text


def _columns(difference: Difference) -> dict[str, Any]:
    return {'pairs': difference.n, 'difference': difference.mean, 'low': difference.low, 'high': difference.high}


def _markdown(study: Study, rows: list[Row], outcomes: list[Outcome]) -> str:
    axes = {'augmentation': study.augmentations, 'setting': study.settings, 'method': study.methods}
    named, decimals = [axis for axis, levels in axes.items() if levels != [Level()]], study.decimals
    header = [*named, study.metric, 'n', f'minus {study.baseline}', '95 % interval']
    lines = [[*(getattr(row.cell, axis) for axis in named), _mean(row, decimals), len(row.values),
              _signed(row.difference.mean, decimals), _interval(row.difference, decimals) + _pairs(row)]
             for row in rows]
    if any(row.published is not None for row in rows):
        header += ['published', f'published minus {study.baseline}']
        for line, row in zip(lines, rows):
            line += [_number(row.published, decimals), _signed(row.published_difference, decimals)]
    return '\n\n'.join([f'# {study.title}', _caption(study, rows), _table(header, lines), *_gaps(outcomes)]) + '\n'


def _comparisons_markdown(study: Study, comparisons: list[Comparison]) -> str:
    text = f"Differences of {study.metric_title} that the study's file names, paired by seed."
    if len(study.augmentations) > 1:
        text += f' The value of a seed is its mean over the {len(study.augmentations)} augmentations.'
    return '\n\n'.join(['\n## Comparisons', text, _table(
        ['setting', 'comparison', 'difference', '95 % interval', 'pairs'],
        [[one.setting, f'{one.method} minus {one.other}', _signed(one.difference.mean, study.decimals),
          _interval(one.difference, study.decimals), one.difference.n] for one in comparisons])]) + '\n'


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [' | '.join(str(cell).replace('|', r'\|') for cell in cells) for cells in (header, *rows)]
    return '\n'.join([f'| {lines[0]} |', '|' + '---|' * len(header), *(f'| {line} |' for line in lines[1:])])


def _caption(study: Study, rows: list[Row]) -> str:
    chosen = 'the last epoch' if study.epoch == 'last' else 'the best epoch, chosen on the same images'
    text = (f"{study.metric_title} of {chosen} on the validation data: mean ± sample standard deviation over n seeds "
            f"of {', '.join(map(str, study.seeds))}. Differences are from {study.baseline} with the same seed; their "
            "interval is Student's t over those pairs.")
    if any(row.difference.n == 1 for row in rows):
        text += ' One seed has neither deviation nor interval: it does not show the variation between seeds.'
    return text


def _gaps(outcomes: list[Outcome]) -> list[str]:
    """Return paragraphs about missing results: number of runs without a result, and errors of failed runs."""
    missing = [outcome for outcome in outcomes if outcome.value is None]
    if not missing:
        return []
    failed = [f'- {outcome.run.name}: {outcome.error}' for outcome in missing if outcome.status == 'failed']
    to_train = len(missing) - len(failed)
    text = f'{len(missing)} of {len(outcomes)} runs have no result: {to_train} to train, {len(failed)} failed.'
    return [text, '\n'.join(failed)] if failed else [text]


def _mean(row: Row, decimals: int) -> str:
    return _number(row.mean, decimals) + (f' ± {row.deviation:.{decimals}f}' if row.deviation is not None else '')


def _interval(difference: Difference, decimals: int) -> str:
    if difference.low is not None:
        return f'{_signed(difference.low, decimals)} to {_signed(difference.high, decimals)}'
    return 'none for one pair' if difference.n else ''


def _pairs(row: Row) -> str:
    """Return the number of pairs of the interval if it is smaller than n, because the baseline lacks seeds."""
    return f' ({row.difference.n} pairs)' if 1 < row.difference.n < len(row.values) else ''


def _number(value: float | None, decimals: int) -> str:
    return '-' if value is None else f'{value:.{decimals}f}'


def _signed(value: float | None, decimals: int) -> str:
    return '' if value is None else f'{value:+.{decimals}f}'
