"""Charts as SVG, drawn with the page's colours."""
import math

from ..evaluation.analysis import Calibration
from .markup import Html, join, tag

Points = list[tuple[float, float]]
_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
_MARKED = 40  # points of a line, up to which each has a dot


def line_chart(title: str, series: dict[str, Points]) -> Html:
    """Lines over epochs with their last values. Points that are not finite are left out."""
    series = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return Html()
    xs, ys = (sorted(point[axis] for points in series.values() for point in points) for axis in (0, 1))
    frame = _Frame(xs[0], xs[-1], ys[0], ys[-1])
    lines = []
    for number, points in enumerate(series.values()):
        places = [frame.place(*point) for point in points]
        lines.append(tag('polyline', points=' '.join(f'{x:.1f},{y:.1f}' for x, y in places), class_=f'line s{number}'))
        if len(places) <= _MARKED:
            lines += [tag('circle', cx=f'{x:.1f}', cy=f'{y:.1f}', r=2, class_=f'dot s{number}') for x, y in places]
    keys = [tag('span', tag('i', class_=f's{number}'), f'{name} {points[-1][1]:.4g}')
            for number, (name, points) in enumerate(series.items())]
    return tag('figure', tag('figcaption', title), _svg(title, frame.axes(), *lines),
               tag('div', *keys, class_='keys'))


def reliability_diagram(calibration: Calibration) -> Html:
    """Accuracy of each bin of confidence as a bar; on the diagonal the two are equal."""
    frame = _Frame(0., 1., 0., 1.)
    bins = len(calibration.count)
    bars = []
    for number, (count, confidence, accuracy) in enumerate(zip(*(values.tolist() for values in calibration[1:]))):
        if not count:
            continue
        (left, top), (right, bottom) = frame.place(number / bins, accuracy), frame.place((number + 1) / bins, 0.)
        note = f'{count} images, confidence {confidence:.3f}, accuracy {accuracy:.3f}'
        bars.append(tag(
            'rect', tag('title', note), class_='bar', x=f'{left + 1:.1f}', y=f'{top:.1f}',
            width=f'{right - left - 2:.1f}', height=f'{bottom - top:.1f}'))
    (x1, y1), (x2, y2) = frame.place(0., 0.), frame.place(1., 1.)
    diagonal = tag('line', x1=x1, y1=y1, x2=x2, y2=y2, class_='diagonal')
    title = 'Accuracy by confidence'
    return tag('figure', tag('figcaption', title), _svg(title, frame.axes(), *bars, diagonal))


class _Frame:
    """From values to places in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float):
        self.x, self.y = (left, right), (low, high)

    def place(self, x: float, y: float) -> tuple[float, float]:
        return (_LEFT + _share(x, *self.x) * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - _share(y, *self.y) * (_HEIGHT - _TOP - _BOTTOM))

    def axes(self) -> Html:
        parts = []
        for value in ticks(*self.y):
            y = self.place(self.x[0], value)[1]
            parts += [tag('line', x1=_LEFT, y1=f'{y:.1f}', x2=_WIDTH - _RIGHT, y2=f'{y:.1f}', class_='grid'),
                      tag('text', f'{value:.4g}', x=_LEFT - 4, y=f'{y + 3:.1f}', text_anchor='end')]
        for value in ticks(*self.x):
            x = self.place(value, self.y[0])[0]
            parts.append(tag('text', f'{value:.5g}', x=f'{x:.1f}', y=_HEIGHT - 6, text_anchor='middle'))
        return join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, `most` at most; the number itself where both are one."""
    if high <= low:
        return [low]
    power = 10. ** math.floor(math.log10((high - low) / (most - 1)))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f'{number * step:.12g}') for number in range(first, last + 1)]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _svg(title: str, *content: Html) -> Html:
    return tag('svg', *content, viewBox=f'0 0 {_WIDTH} {_HEIGHT}', role='img', aria_label=title)
