"""Statistics over seeds: means, sample standard deviations, and confidence intervals of paired differences."""
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from .definition import Study
from .outcome import Outcome
from .plan import Cell

CONFIDENCE = 0.95


@dataclass
class Difference:
    """Paired differences of two methods, for the seeds that both have, with their mean and its interval."""
    values: tuple[float, ...] = ()
    mean: float | None = None  # None without a pair
    low: float | None = None  # None with fewer than two pairs
    high: float | None = None

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.values)


@dataclass
class Row:
    """One cell of the study, over its seeds."""
    cell: Cell
    values: dict[int, float]  # by seed
    deviation: float | None
    difference: Difference  # to the baseline; empty for the baseline itself
    published: float | None = None
    published_difference: float | None = None

    @property
    def mean(self) -> float | None:
        return mean(self.values.values()) if self.values else None


@dataclass
class Comparison:
    """One method minus another, in one setting."""
    setting: str
    method: str
    other: str
    difference: Difference


def aggregate(study: Study, outcomes: Iterable[Outcome]) -> list[Row]:
    """Return a row for each cell, in the order of the file."""
    cells: dict[tuple, Cell] = {}
    values: dict[tuple, dict[int, float]] = {}
    for outcome in outcomes:
        place = outcome.run.cell.place
        cells[place] = outcome.run.cell
        values.setdefault(place, {})
        if outcome.value is not None:
            values[place][outcome.run.seed] = outcome.value
    rows = []
    for place, cell in cells.items():
        row = Row(
            cell, values[place], sample_deviation(values[place].values()), Difference(), study.published.get(place))
        if cell.method != study.baseline:
            baseline = (*place[:2], study.baseline)
            row.difference = paired_difference(values[place], values[baseline])
            if row.published is not None and baseline in study.published:
                row.published_difference = row.published - study.published[baseline]
        rows.append(row)
    return rows


def compare(study: Study, rows: list[Row]) -> list[Comparison]:
    """Return the comparisons of the study: differences of means over the augmentations, paired by seed."""
    return [
        Comparison(setting.name, method, other, paired_difference(
            _seed_means(rows, setting.name, method), _seed_means(rows, setting.name, other)))
        for setting in study.settings for method, other in study.comparisons]


def _seed_means(rows: list[Row], setting: str, method: str) -> dict[int, float]:
    """Return the mean over the augmentations for each seed that has results for all of them."""
    values = [row.values for row in rows if (row.cell.setting, row.cell.method) == (setting, method)]
    return {seed: mean(one[seed] for one in values) for seed in values[0] if all(seed in one for one in values)}


def sample_deviation(values) -> float | None:
    """Return the sample standard deviation, or None for fewer than two values."""
    values = list(values)
    return stdev(values) if len(values) > 1 else None


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference:
    """Return the mean difference with its 95 % confidence interval by Student's t.

    Args:
        values, baseline: Metrics by seed. Only seeds of both are used.
    """
    differences = tuple(value - baseline[seed] for seed, value in values.items() if seed in baseline)
    if not differences:
        return Difference()
    centre, deviation, n = mean(differences), sample_deviation(differences), len(differences)
    if deviation is None:
        return Difference(differences, centre)
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Difference(differences, centre, centre - half, centre + half)


def t_quantile(freedom: int) -> float:
    """Return the two-sided quantile for CONFIDENCE of Student's distribution with `freedom` degrees of freedom.

    The share within t has a closed form in the angle atan(t / sqrt(freedom)): Abramowitz and Stegun 26.7.3, 26.7.4.
    """
    low, high = 0., math.pi / 2
    for _ in range(100):  # bisection to full precision
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, freedom) < CONFIDENCE else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.
    for k in range(2 + odd, freedom, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * (total if freedom > 1 else 0.))
