#!/usr/bin/env python3
"""Draw the pictures of README.md: docs/images/two_views.png and docs/images/results.png.

Usage: python tools/figures.py

The views are drawn from the built-in images. The results are read from the table of docs/agmax.md. The same seed gives
the same views. Needs pip install '.[plot]'.
"""
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from timm.data import create_transform
from timm.utils import random_seed

from agmax_timm import TwoViews, create_dataset
from agmax_timm.base.output_files import COLOURS, save_figure

DOCS = Path(__file__).parent.parent / 'docs'
SEED = 7  # of the views
NUMBER = r'[+-]?\d+\.\d+'


class Effect(NamedTuple):
    """A difference in points, and its 95 % interval if it has one."""
    mean: float
    interval: tuple[float, float] | None


def read_effects(text: str) -> list[tuple[str, list[Effect], list[Effect]]]:
    """Return setting, effects at equal epochs and effects at equal compute, from the table of docs/agmax.md."""
    table = text.split('AgMax minus baseline, equal epochs |')[1].split('\n\n')[0].splitlines()[2:]
    return [(setting, _effects(epochs), _effects(compute))
            for setting, epochs, compute, *_ in (re.split(r' *\| *', line.strip('| ')) for line in table)]


def _effects(cell: str) -> list[Effect]:
    return [Effect(float(mean), (float(low), float(high)) if low else None)
            for mean, low, high in re.findall(rf'({NUMBER})(?: \(({NUMBER}) to ({NUMBER})\))?', cell)]


def draw_results(figure: Any) -> None:
    effects = read_effects((DOCS / 'agmax.md').read_text())
    axes = figure.subplots()
    for column, (name, colour, marker) in enumerate((
            ('equal epochs (AgMax sees twice the views)', COLOURS[0], 'o'), ('equal compute', COLOURS[1], 's'))):
        for row, line in enumerate(effects):
            for number, effect in enumerate(line[1 + column]):
                place = row + (.15 if column else -.15) + .18 * number
                if effect.interval:
                    axes.plot(effect.interval, [place] * 2, '-', color=colour, linewidth=2.5)
                axes.plot([effect.mean], [place], marker, color=colour, markersize=8, linestyle='none',
                          fillstyle='full' if effect.interval else 'none',
                          label=name if (row, number) == (1, 0) else None)
    axes.axvline(0, color='black', linewidth=1, linestyle='-')
    axes.set_yticks(range(len(effects)), [textwrap.fill(setting, 48) for setting, *_ in effects], fontsize=10)
    axes.set_ylim(len(effects) - .5, -.5)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', color='0.9')
    axes.set_axisbelow(True)
    axes.set_xlabel('AgMax minus baseline: top-1, points, with 95 % interval over seeds\n'
                    '(hollow: published, without an interval; equal compute is interpolated)', fontsize=10)
    figure.legend(loc='outside upper center', ncols=2, fontsize=10, frameon=False)


def draw_two_views(figure: Any) -> None:
    figure.set_layout_engine('none')
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 5.2), aspect='equal')
    axes.axis('off')
    random_seed(SEED)
    image = create_dataset('demo', split='train')[4][0]
    transform = create_transform((3, 28, 28), is_training=True, scale=(.5, 1), hflip=.5, auto_augment='rand-m9-mstd0.5',
                                 interpolation='bilinear', mean=(0,) * 3, std=(1,) * 3)
    views = [view.permute(1, 2, 0).clip(0, 1) for view in TwoViews(transform)(image)]

    def show(picture: Any, left: float, bottom: float, label: str) -> None:
        axes.imshow(picture, extent=(left, left + 1.3, bottom, bottom + 1.3), zorder=2)
        axes.plot(*zip((left, bottom), (left + 1.3, bottom), (left + 1.3, bottom + 1.3), (left, bottom + 1.3),
                       (left, bottom)), '-', color='0.6', linewidth=1)
        axes.text(left + .65, bottom - .12, label, ha='center', va='top', fontsize=11)

    def box(left: float, bottom: float, width: float, height: float, text: str, colour: str) -> None:
        from matplotlib.patches import FancyBboxPatch
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle='round,pad=0,rounding_size=.12',
                                      facecolor='white', edgecolor=colour, linewidth=2, zorder=2))
        axes.text(left + width / 2, bottom + height / 2, text, ha='center', va='center', fontsize=11, zorder=3)

    def arrow(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points), '-', color='0.35', linewidth=1.4, zorder=1)
        axes.annotate('', points[-1], points[-2], arrowprops=dict(
            arrowstyle='-|>', color='0.35', linewidth=1.4, shrinkA=0, shrinkB=0))

    show(image, .2, 1.95, 'image')
    show(views[0], 2.4, 3.5, 'view 1')
    show(views[1], 2.4, .4, 'view 2')
    arrow((1.5, 2.6), (1.9, 2.6), (1.9, 4.15), (2.4, 4.15))
    arrow((1.5, 2.6), (1.9, 2.6), (1.9, 1.05), (2.4, 1.05))
    axes.text(2.02, 2.6, 'two random\naugmentations', va='center', fontsize=9.5, color='0.25')
    box(4.2, .7, 1.1, 3.8, 'network,\nthe same\nfor both', COLOURS[0])
    arrow((3.7, 4.15), (4.2, 4.15))
    arrow((3.7, 1.05), (4.2, 1.05))
    box(5.6, 2.1, 1.2, 1., 'Q-network,\ntraining\nonly', COLOURS[2])
    for height, text, side in ((4.15, 'prediction 1', 'bottom'), (1.05, 'prediction 2', 'top')):
        arrow((5.3, height), (7.9, height))
        arrow((6.2, height), (6.2, 3.1 if side == 'bottom' else 2.1))
        axes.text(6.2, height + (.1 if side == 'bottom' else -.1), text, ha='center', va=side, fontsize=10)
    arrow((6.8, 2.6), (7.9, 2.6))
    axes.text(7.35, 2.42, 'joint\nprediction', ha='center', va='top', fontsize=10)
    box(7.9, .45, 2.95, 4.3, '', COLOURS[1])
    for height, name, text in (
            (4.05, 'cross-entropy', 'predictions 1 and 2:\nthe right class'),
            (2.6, 'divergence', 'joint prediction close\nto predictions 1 and 2'),
            (1.15, 'agreement', 'each prediction, averaged\nover the batch: all classes')):
        axes.text(9.375, height + .3, name, ha='center', va='center', fontsize=11, fontweight='bold', zorder=3)
        axes.text(9.375, height - .2, text, ha='center', va='center', fontsize=10, zorder=3)
    for height in (3.34, 1.89):
        axes.text(9.375, height, '+', ha='center', va='center', fontsize=14, zorder=3)
    axes.text(9.375, 4.92, 'loss', ha='center', va='center', fontsize=11)


def main() -> None:
    (DOCS / 'images').mkdir(exist_ok=True)
    save_figure(str(DOCS / 'images' / 'two_views.png'), draw_two_views, dpi=150, figsize=(9, 9 * 5.2 / 11))
    results = DOCS / 'images' / 'results.png'
    save_figure(str(results), draw_results, dpi=150, figsize=(9, 4.2))
    text = PngInfo()
    text.add_text('effects', repr(read_effects((DOCS / 'agmax.md').read_text())))  # a test compares them with the table
    with Image.open(results) as picture:
        picture.load()
    picture.save(results, pnginfo=text, optimize=True)


if __name__ == '__main__':
    main()
