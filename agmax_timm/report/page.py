"""The page report.html, without scripts and external files. The template is page.html.jinja."""
import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..evaluation.analysis import Analysis
from ..evaluation.outcomes import Mistake
from ..options.option_file import as_yaml
from .charts import Frame, Points, line_chart

_MOST_ROWS = 30  # largest number of rows of a table that is not folded
_LOWEST = 10  # number of classes that are shown above a folded table


@dataclass
class Report:
    """Content of the page."""
    title: str
    about: str  # one line about model, data and training
    trained: str  # one line about time, device, speed and date; '' if they are not known
    headline: list[tuple[str, str]]  # name and value
    notes: list[str]
    command: str
    changed: dict[str, tuple[Any, Any]]  # option: value, default
    options: dict[str, Any]
    versions: dict[str, str]
    curves: Mapping[str, Mapping[str, Points]]
    views: list[tuple[list[Image.Image], str]] = field(default_factory=list)  # views of an image, and their label
    analysis: Analysis | None = None
    mistakes: list[tuple[Mistake, str]] = field(default_factory=list)  # with file names
    class_names: list[str] | None = None

    def class_name(self, index: int) -> str:
        known = self.class_names
        return known[index] if known and index < len(known) else str(index)


def render(report: Report) -> str:
    """Return the HTML document."""
    return render_template('page.html.jinja', {
        **vars(report),
        'class_name': report.class_name,
        'charts': charts(report.curves),
        'changed': [(name, *map(as_yaml, values)) for name, values in report.changed.items()],
        'options': {name: as_yaml(value) for name, value in report.options.items()},
        **(_analysis_values(report, report.analysis) if report.analysis else {}),
    })


def render_template(name: str, values: dict[str, Any]) -> str:
    """Return the HTML document of a template in this folder. All values are escaped."""
    import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters['inline'] = inline
    return environment.get_template(name).render(values).lstrip()


def charts(curves: Mapping[str, Mapping[str, Points]]) -> list[tuple]:
    """Return the charts of panels of curves, without panels that have no point."""
    return [chart for chart in (line_chart(*panel) for panel in curves.items()) if chart]


def _analysis_values(report: Report, analysis: Analysis) -> dict[str, Any]:
    """Return the rows of the tables about the evaluation, and the calibration bins."""
    per_class = analysis.per_class
    supports = per_class.support.tolist()
    rows = [[report.class_name(index), *(f'{100 * values[index].item():.1f}' for values in per_class[:3]), support]
            for index, support in enumerate(supports)]
    lowest = sorted((index for index, support in enumerate(supports) if support), key=per_class.f1.tolist().__getitem__)
    error, bins = analysis.calibration
    return dict(
        class_rows=rows,
        lowest_classes=[rows[index] for index in lowest[:_LOWEST]] if len(rows) > _MOST_ROWS else [],
        confused_rows=[(report.class_name(pair.target), report.class_name(pair.prediction), pair.count,
                        f'{100 * pair.count / supports[pair.target]:.1f}') for pair in analysis.confused],
        confusion_rows=[] if analysis.confusion is None else [
            (report.class_name(index), counts) for index, counts in enumerate(analysis.confusion.tolist())],
        calibration_error=error,
        bins=bins,
        bin_rows=[(f'{bin.low:.2f} to {bin.high:.2f}', bin.count, f'{bin.confidence:.3f}', f'{bin.accuracy:.3f}')
                  for bin in bins if bin.count],
        unit_frame=Frame([0., 1.], [0., 1.]),
    )


def inline(image: Image.Image, most: int = 224) -> dict[str, Any]:
    """Return `source`, `width`, `height` and `small` of an image that is embedded in the page.

    The image is at most `most` pixels wide and high. Small images are stored without loss.
    """
    image = image.copy()
    image.thumbnail((most, most))
    small = max(image.size) <= 64
    file = io.BytesIO()
    image.save(file, format='PNG' if small else 'JPEG', quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return dict(source=f'data:image/{"png" if small else "jpeg"};base64,{data}', width=image.width,
                height=image.height, small=small)
