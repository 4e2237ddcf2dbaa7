"""The table of a study: means over seeds, differences from the baseline, published numbers; as CSV and Markdown."""
import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from ..base import atomic_write
from .definition import Level, Study
from .intervals import Difference, paired_difference, sample_deviation
from .outcome import Outcome
from .plan import Cell
from .published import Published


@dataclass
class Row:
    """One cell of the study, over its seeds."""
    cell: Cell
    values: dict[int, float]  # by seed
    baseline: dict[int, float]  # of the baseline, beside it; its own where it is the baseline
    is_baseline: bool
    published: float | None = None
    published_difference: float | None = None

    @property
    def mean(self) -> float | None:
        return mean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        return sample_deviation(self.values.values())

    @property
    def difference(self) -> Difference:
        return Difference(0) if self.is_baseline else paired_difference(self.values, self.baseline)


def aggregate(study: Study, outcomes: Iterable[Outcome], published: Published) -> list[Row]:
    """A row for each cell, in the order of the file."""
    outcomes = list(outcomes)
    cells = {outcome.run.cell.folder: outcome.run.cell for outcome in outcomes}
    values: dict[tuple, dict[int, float]] = {_place(cell): {} for cell in cells.values()}
    for outcome in outcomes:
        if outcome.value is not None:
            values[_place(outcome.run.cell)][outcome.run.seed] = outcome.value
    rows = []
    for cell in cells.values():
        beside = (*_place(cell)[:2], study.baseline)
        is_baseline = cell.method == study.baseline
        own, base = published.get(_place(cell)), published.get(beside)
        difference = own - base if not is_baseline and own is not None and base is not None else None
        rows.append(Row(cell, values[_place(cell)], values[beside], is_baseline, own, difference))
    return rows


def write_results(study: Study, outcomes: Iterable[Outcome], path: str) -> None:
    """results.csv: a row for each run."""
    write_rows(path, [{
        'augmentation': outcome.run.cell.augmentation,
        'setting': outcome.run.cell.setting,
        'method': outcome.run.cell.method,
        'seed': outcome.run.seed,
        'status': outcome.status,
        study.metric: outcome.value,
        'epoch': outcome.epoch,
        'folder': os.path.relpath(outcome.run.folder, os.path.dirname(path)),
        'error': outcome.error,
    } for outcome in outcomes])


def write_table(rows: list[Row], path: str) -> None:
    """table.csv: the numbers of the table, unrounded."""
    write_rows(path, [{
        'augmentation': row.cell.augmentation,
        'setting': row.cell.setting,
        'method': row.cell.method,
        'n': len(row.values),
        'mean': row.mean,
        'deviation': row.deviation,
        'pairs': row.difference.n,
        'difference': row.difference.mean,
        'low': row.difference.low,
        'high': row.difference.high,
        'published': row.published,
        'published_difference': row.published_difference,
    } for row in rows])


def markdown(study: Study, rows: list[Row], outcomes: list[Outcome]) -> str:
    """table.md: the same for people."""
    axes = {'augmentation': study.augmentations, 'setting': study.settings, 'method': study.methods}
    named = [axis for axis, levels in axes.items() if levels != [Level()]]
    with_published = any(row.published is not None for row in rows)
    header = [*named, study.metric, 'n', f'minus {study.baseline}', '95 % interval',
              *(['published', f'published minus {study.baseline}'] if with_published else [])]
    lines = [line(header), '|' + '---|' * len(header)]
    for row in rows:
        cells = [*(getattr(row.cell, axis) for axis in named), _mean(row), str(len(row.values)),
                 signed(row.difference.mean), interval(row.difference)]
        if with_published:
            cells += [_number(row.published), signed(row.published_difference)]
        lines.append(line(cells))
    return '\n\n'.join([f'# {study.title}', _caption(study, rows), '\n'.join(lines), *_gaps(outcomes)]) + '\n'


def line(cells: list[str]) -> str:
    escaped = [cell.replace('|', r'\|') for cell in cells]
    return f'| {" | ".join(escaped)} |'


def _caption(study: Study, rows: list[Row]) -> str:
    chosen = 'the last epoch' if study.epoch == 'last' else 'the best epoch, chosen on the same images'
    text = (f"{study.metric} of {chosen} on the validation data: mean ± sample standard deviation over n seeds of "
            f"{', '.join(map(str, study.seeds))}. Differences are from {study.baseline} with the same seed; their "
            "interval is Student's t over those pairs.")
    if any(row.difference.n == 1 for row in rows):
        text += ' One seed has neither deviation nor interval: it says nothing of how much seeds differ.'
    return text


def _gaps(outcomes: list[Outcome]) -> list[str]:
    """What the table lacks: failures by name, what is still to be trained by number."""
    lacking = [outcome for outcome in outcomes if outcome.value is None]
    if not lacking:
        return []
    failed = [f'- {outcome.run.name}: {outcome.error}' for outcome in lacking if outcome.status == 'failed']
    to_train = len(lacking) - len(failed)
    text = f'{len(lacking)} of {len(outcomes)} runs have no result: {to_train} to train, {len(failed)} failed.'
    return [text, '\n'.join(failed)] if failed else [text]


def _mean(row: Row) -> str:
    return _number(row.mean) + (f' ± {row.deviation:.2f}' if row.deviation is not None else '')


def interval(difference: Difference) -> str:
    if difference.low is not None:
        return f'{difference.low:+.2f} to {difference.high:+.2f}'
    return 'none of one pair' if difference.n else ''


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def signed(value: float | None) -> str:
    return '' if value is None else f'{value:+.2f}'


def _place(cell: Cell) -> tuple:
    return cell.augmentation, cell.setting, cell.method


def write_rows(path: str, rows: list[dict]) -> None:
    with atomic_write.replacing(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
