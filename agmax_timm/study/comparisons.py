"""Comparisons in a study's file: differences of means over the augmentations, paired by seed."""
from dataclasses import dataclass
from statistics import mean

from .definition import Study
from .intervals import Difference, paired_difference
from .table import Row, interval, line, signed, write_rows


@dataclass
class Comparison:
    """One method minus another, in one setting."""
    setting: str
    method: str
    other: str
    difference: Difference


def compare(study: Study, rows: list[Row]) -> list[Comparison]:
    """Compute the comparisons of a study, in the order of the file, for each setting."""
    return [
        Comparison(setting.name, method, other, paired_difference(
            _seed_means(rows, setting.name, method), _seed_means(rows, setting.name, other)))
        for setting in study.settings for method, other in study.comparisons]


def _seed_means(rows: list[Row], setting: str, method: str) -> dict[int, float]:
    """Mean over the augmentations by seed. Seeds that lack an augmentation are left out."""
    values = [row.values for row in rows if (row.cell.setting, row.cell.method) == (setting, method)]
    return {seed: mean(one[seed] for one in values) for seed in values[0] if all(seed in one for one in values)}


def write_comparisons(comparisons: list[Comparison], path: str) -> None:
    """Write comparisons.csv, with numbers that are not rounded."""
    write_rows(path, [{
        'setting': one.setting,
        'method': one.method,
        'minus': one.other,
        'pairs': one.difference.n,
        'difference': one.difference.mean,
        'low': one.difference.low,
        'high': one.difference.high,
    } for one in comparisons])


def comparisons_markdown(study: Study, comparisons: list[Comparison]) -> str:
    """Return the section of table.md on the comparisons."""
    lines = [line(['setting', 'comparison', 'difference', '95 % interval', 'pairs']), '|' + '---|' * 5]
    lines += [line([one.setting, f'{one.method} minus {one.other}', signed(one.difference.mean),
                    interval(one.difference), str(one.difference.n)]) for one in comparisons]
    text = f"Differences of {study.metric} that the study's file names, paired by seed."
    if len(study.augmentations) > 1:
        text += f' The value of a seed is its mean over the {len(study.augmentations)} augmentations.'
    return '\n\n'.join(['\n## Comparisons', text, '\n'.join(lines)]) + '\n'
