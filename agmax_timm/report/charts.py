"""Axes and coordinates of the charts of the report, in pixels."""
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]


class Frame:
    """The axes of a chart.

    Args:
        xs, ys: Values to show. The axes range from their minimum to their maximum.
    """
    WIDTH, HEIGHT = 320, 200
    LEFT, RIGHT, TOP, BOTTOM = 54, 312, 8, 178  # ends of the axes

    def __init__(self, xs: Sequence[float], ys: Sequence[float]):
        self._x, self._y = (min(xs), max(xs)), (min(ys), max(ys))
        self.x_ticks, self.y_ticks = ticks(*self._x), ticks(*self._y)

    def x(self, value: float) -> float:
        """Return the distance of a value from the left edge."""
        return round(self.LEFT + _share(value, *self._x) * (self.RIGHT - self.LEFT), 1)

    def y(self, value: float) -> float:
        """Return the distance of a value from the upper edge."""
        return round(self.BOTTOM - _share(value, *self._y) * (self.BOTTOM - self.TOP), 1)


def line_chart(title: str, series: Mapping[str, Points]) -> tuple[str, Frame, dict[str, list]] | None:
    """Return the title, the axes and the finite points of a chart; None without points."""
    finite = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs, ys = zip(*(point for points in finite.values() for point in points))
    return title, Frame(xs, ys), finite


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` round numbers from low to high, or [low] if both are equal."""
    if high <= low:
        return [low]
    power = 10. ** math.floor(math.log10((high - low) / (most - 1)))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f'{number * step:.12g}') for number in range(first, last + 1)]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
