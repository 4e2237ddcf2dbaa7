"""Charts of a report: ticks and lines."""
import numpy as np
import pytest

from agmax_timm.report.charts import line_chart, ticks


@pytest.mark.parametrize('low, high, expected', [
    (0, 1, [0, 0.5, 1]), (0, 100, [0, 50, 100]), (1, 5, [1, 2, 3, 4, 5]), (3, 3, [3]), (0.1, 0.35, [0.1, 0.2, 0.3]),
    (1, 300, [100, 200, 300]), (0, 45, [0, 20, 40]), (-2.3, 0.7, [-2, -1, 0])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_are_few_and_within_the_range_of_any_values():
    generator = np.random.default_rng(2)
    for low, ratio in zip(generator.normal(size=500) * 10. ** generator.integers(-6, 7, 500),
                          10. ** generator.uniform(-5, 9, 500)):
        span = abs(low) * ratio
        values = ticks(low, low + span)
        assert 1 <= len(values) <= 5 and low - span / 1e6 <= values[0] and values[-1] <= low + span * (1 + 1e-6)


def test_a_line_is_in_its_frame_and_leaves_out_values_that_are_not_finite():
    title, frame, lines = line_chart('loss', {'a': [(1, 2.), (2, float('nan')), (3, 4.)], 'b': [(1, float('inf'))]})
    assert [(frame.x(x), frame.y(y)) for x, y in lines['a']] == [(54, 178), (312, 8)]
    assert title == 'loss' and [*lines] == ['a'] and line_chart('nothing', {'a': []}) is None
