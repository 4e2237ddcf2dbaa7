"""Means, sample standard deviations, and confidence intervals of differences that are paired by seed."""
import math
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass
class Difference:
    """Of two methods over the seeds that both have: the mean of the differences within a seed."""
    n: int  # pairs
    mean: float | None = None  # None without a pair
    low: float | None = None  # None with fewer than two: one difference says nothing of its spread
    high: float | None = None


def sample_deviation(values) -> float | None:
    """Sample standard deviation, n - 1 below the root; None of fewer than two values."""
    values = list(values)
    return stdev(values) if len(values) > 1 else None


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference:
    """The mean difference with its 95 % confidence interval by Student's t.

    Args:
        values, baseline: Metrics by seed; seeds that one of them lacks are left out.
    """
    differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    if not differences:
        return Difference(0)
    centre, deviation, n = mean(differences), sample_deviation(differences), len(differences)
    if deviation is None:
        return Difference(n, centre)
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Difference(n, centre, centre - half, centre + half)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that Student's distribution of so many degrees of freedom stays within on both sides.

    The share within t has a closed form in the angle atan(t / sqrt(freedom)): Abramowitz and Stegun 26.7.3, 26.7.4.
    """
    low, high = 0., math.pi / 2
    for _ in range(100):  # to the last bit
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, freedom) < confidence else (low, angle)
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
