"""Intervals and paired differences, against numbers by hand and scipy."""
import math

import pytest

from agmax_timm.study import results

# Of Student's t, two-sided 95 %, as printed in any table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize('freedom, t', TABLE.items())
def test_quantiles_equal_the_published_table(freedom, t):
    assert results.t_quantile(freedom) == pytest.approx(t, abs=5e-4)


@pytest.mark.slow
def test_quantiles_and_intervals_equal_those_of_scipy():
    stats = pytest.importorskip('scipy.stats')
    for freedom in range(1, 60):
        assert results.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    values, baseline = {3: 84.5, 1: 85.3, 2: 85.1, 0: 86.}, {0: 85., 1: 84.2, 2: 83.8, 3: 84.9}
    theirs = stats.ttest_rel([values[seed] for seed in range(4)], [baseline[seed] for seed in range(4)])
    ours = results.paired_difference(values, baseline)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)


def test_an_interval_equals_that_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, half width 4.302653 / sqrt(3) = 2.484138. Seeds of one are left out.
    found = results.paired_difference({0: 11., 7: 22., 2: 43., 5: 0.}, {2: 40., 0: 10., 7: 20., 9: 100.})
    assert (found.n, found.mean) == (3, 2.)
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_intervals_are_paired():
    """Seeds differ by 10 points. Within each, the difference is about 1."""
    baseline = {0: 50., 1: 60., 2: 70.}
    found = results.paired_difference({0: 51., 1: 61.1, 2: 70.9}, baseline)
    assert found.mean == pytest.approx(1.)
    assert found.high - found.mean == pytest.approx(4.302653 * .1 / math.sqrt(3), abs=1e-6)
    unpaired = 2.776445 * math.sqrt(2 * 10 ** 2 / 3)  # of two groups of deviation 10
    assert found.high - found.mean < unpaired / 50


def test_one_pair_has_no_interval():
    assert results.paired_difference({0: 2.}, {0: 1., 1: 5.}) == results.Difference((1.,), 1.)
    assert results.paired_difference({0: 2.}, {1: 5.}) == results.Difference()
    assert results.sample_deviation([3.]) is None
