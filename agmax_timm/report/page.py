"""report.html: what is known of a run on one page that needs no other file, no script and no network."""
from dataclasses import dataclass, field
from typing import Any

import yaml
from PIL import Image

from ..evaluation.analysis import Analysis
from ..evaluation.outcomes import Mistake
from .charts import Points, line_chart, reliability_diagram
from .markup import Html, details, join, picture, section, table, tag

_MOST_ROWS = 30  # of a table that is not folded
# What the page may load: its own pictures and styles.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = '''
:root { color-scheme: light dark; --ground: #fff; --text: #1c1e21; --soft: #5c6370; --line: #d9dce1; --card: #f5f6f8;
  --cell: 37, 99, 235; --s0: #2563eb; --s1: #c2410c; --s2: #15803d; --s3: #7e22ce; --s4: #a16207; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --text: #e4e6ea; --soft: #9aa1ac; --line: #353a42;
  --card: #1f2329; --cell: 59, 130, 246; --s0: #60a5fa; --s1: #fb923c; --s2: #4ade80; --s3: #c084fc; --s4: #facc15; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 16px; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 8px 0; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
p { margin: 8px 0; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.cards, .charts, .views, .mistakes { display: grid; gap: 12px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin: 16px 0; }
.cards div { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.cards b { display: block; font-size: 1.4rem; line-height: 1.3; }
.cards span { color: var(--soft); font-size: .875rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.views { grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)); }
.mistakes { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
figure { margin: 0; min-width: 0; }
figure .pair { display: flex; gap: 4px; }
figure .pair img { min-width: 0; flex: 1 1 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
img.pixels { image-rendering: pixelated; }
.narrow { max-width: 420px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
.numbers tbody th, .numbers td.name { min-width: 8em; text-align: left; white-space: normal; }
.pairs thead th:nth-child(2) { text-align: left; }
.confusion td { text-align: center; white-space: nowrap; padding: 4px 6px;
  background: rgba(var(--cell), var(--share)); }
.confusion td.deep { color: #fff; }
.confusion thead th { writing-mode: vertical-rl; white-space: nowrap; vertical-align: bottom; padding: 6px 4px; }
.confusion thead th:first-child { writing-mode: horizontal-tb; }
.confusion tbody th { position: sticky; left: 0; background: var(--ground); overflow-wrap: normal; }
details { margin: 12px 0; }
summary { cursor: pointer; padding: 6px 0; }
pre { background: var(--card); border-radius: 8px; padding: 10px 14px; margin: 8px 0; font-size: .8125rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 10px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.75; }
svg .bar { fill: var(--s0); fill-opacity: .75; }
svg .diagonal { stroke: var(--text); stroke-dasharray: 4 3; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .8125rem; }
.keys i { display: inline-block; width: 12px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); }
i.s0, .dot.s0 { background: var(--s0); fill: var(--s0); } i.s1, .dot.s1 { background: var(--s1); fill: var(--s1); }
i.s2, .dot.s2 { background: var(--s2); fill: var(--s2); } i.s3, .dot.s3 { background: var(--s3); fill: var(--s3); }
i.s4, .dot.s4 { background: var(--s4); fill: var(--s4); }
'''


@dataclass
class Report:
    """All that the page says, as text, numbers and pictures."""
    title: str
    about: str  # a line on what was trained and evaluated
    headline: list[tuple[str, str]]  # name and value
    notes: list[str]
    command: str
    changed: dict[str, tuple[Any, Any]]  # option: value, default
    options: dict[str, Any]
    versions: dict[str, str]
    curves: dict[str, dict[str, Points]]
    views: list[tuple[list[Image.Image], str]] = field(default_factory=list)  # of an image, and its label
    analysis: Analysis | None = None
    mistakes: list[tuple[Mistake, str]] = field(default_factory=list)  # and the name of the file
    class_names: list[str] | None = None

    def name_of(self, index: int) -> str:
        known = self.class_names
        return known[index] if known and index < len(known) else str(index)


def page(report: Report) -> str:
    """The whole document."""
    sections = [_head(report), _curves(report), _views(report), _settings(report)]
    if report.analysis is not None:
        sections[2:2] = [_classes(report), _confusion(report), _mistakes(report), _calibration(report)]
    head = tag(
        'head', tag('meta', charset='utf-8'),
        tag('meta', http_equiv='Content-Security-Policy', content=_POLICY),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('title', report.title), tag('style', Html(_STYLE)))
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *sections), lang='en')}\n"


def _head(report: Report) -> Html:
    cards = [tag('div', tag('span', name), tag('b', value)) for name, value in report.headline]
    return join([
        tag('h1', report.title), tag('p', report.about), tag('div', *cards, class_='cards'),
        *(tag('p', note, class_='soft') for note in report.notes)])


def _curves(report: Report) -> Html:
    charts = [line_chart(title, lines) for title, lines in report.curves.items()]
    return section('Learning curves', tag('div', *charts, class_='charts')) if any(charts) else Html()


def _views(report: Report) -> Html:
    if not report.views:
        return Html()
    figures = [
        tag('figure', tag('div', *(picture(image, label) for image in images), class_='pair'), tag('figcaption', label))
        for images, label in report.views]
    two = len(report.views[0][0]) > 1
    return section(
        'Training images as the network saw them',
        tag('p', 'The views of an image stand side by side.', class_='soft') if two else None,
        tag('div', *figures, class_='views'))


def _classes(report: Report) -> Html:
    numbers = report.analysis.per_class
    head = ('class', 'precision', 'recall', 'F1', 'images')
    rows = [(report.name_of(index), *(f'{100 * value:.1f}' for value in (precision, recall, f1)), support)
            for index, (precision, recall, f1, support) in enumerate(zip(*(values.tolist() for values in numbers[:4])))]
    title = 'Precision, recall and F1 of each class (%)'
    if len(rows) <= _MOST_ROWS:
        return section(title, table(head, rows, 'numbers'))
    seen = [index for index, support in enumerate(numbers.support.tolist()) if support]
    worst = sorted(seen, key=lambda index: numbers.f1[index].item())[:10]
    return section(
        title, tag('p', 'The lowest F1:', class_='soft'), table(head, [rows[index] for index in worst], 'numbers'),
        details(f'All {len(rows)} classes', table(head, rows, 'numbers')))


def _confusion(report: Report) -> Html:
    analysis = report.analysis
    pairs = table(
        ('true', 'predicted', 'images', 'of the class (%)'),
        [(report.name_of(pair.target), tag('td', report.name_of(pair.prediction), class_='name'), pair.count,
          f'{100 * pair.count / int(analysis.per_class.support[pair.target]):.1f}') for pair in analysis.confused],
        'numbers pairs')
    if not analysis.confused:
        pairs = tag('p', 'No image was taken for another class.')
    if analysis.confusion is None:
        return section('Most confused classes', pairs)
    names = [report.name_of(index) for index in range(len(analysis.confusion))]
    rows = []
    for name, counts in zip(names, analysis.confusion.tolist()):
        shares = [count / max(1, sum(counts)) for count in counts]
        rows.append((name, *(
            tag('td', count or '', style=f'--share: {share:.3f}', class_='deep' if share > 0.5 else None)
            for count, share in zip(counts, shares))))
    return section(
        'Confusion', tag('p', 'Images by true class (rows) and predicted class (columns), shaded by their share of the '
                              'row.', class_='soft'),
        table(('true \\ predicted', *names), rows, 'confusion'), details('Most confused classes', pairs))


def _mistakes(report: Report) -> Html:
    if not report.mistakes:
        return Html()
    figures = []
    for mistake, name in report.mistakes:
        true, predicted = report.name_of(mistake.target), report.name_of(mistake.prediction)
        image = picture(mistake.picture, f'{true}, taken for {predicted}')
        caption = tag('figcaption', f'{true} → ', tag('b', predicted), f' {100 * mistake.confidence:.1f}\u00a0%',
                      tag('br'), name)
        figures.append(tag('figure', image, caption))
    return section(
        'Most confident mistakes', tag('p', 'True class → predicted class, and its probability.', class_='soft'),
        tag('div', *figures, class_='mistakes'))


def _calibration(report: Report) -> Html:
    calibration = report.analysis.calibration
    bins = len(calibration.count)
    values = zip(*(of_bins.tolist() for of_bins in calibration[1:]))
    rows = [(f'{number / bins:.2f} to {(number + 1) / bins:.2f}', count, f'{confidence:.3f}', f'{accuracy:.3f}')
            for number, (count, confidence, accuracy) in enumerate(values) if count]
    return section(
        'Calibration', tag('p', f'Expected calibration error {100 * calibration.error:.2f} %, by {bins} bins of equal '
                                'width.'),
        tag('div', reliability_diagram(calibration), class_='narrow'),
        details('The bins', table(('confidence', 'images', 'mean confidence', 'accuracy'), rows, 'numbers')))


def _settings(report: Report) -> Html:
    changed = table(('option', 'value', 'default'),
                    [(name, _plain(value), _plain(default)) for name, (value, default) in report.changed.items()])
    return section(
        'Settings', tag('p', 'What differs from the defaults:', class_='soft'), changed,
        details('All settings', table(('option', 'value'), [(n, _plain(v)) for n, v in report.options.items()])),
        tag('p', 'The command that repeats the run:', class_='soft'), tag('pre', report.command),
        tag('p', 'Made with ' + ', '.join(f'{name} {version}' for name, version in report.versions.items()) + '.')
        if report.versions else None)


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1e9).replace('\n...', '').strip()
