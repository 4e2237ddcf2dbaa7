"""Benchmarks of loaders in views per second."""
import argparse
from collections.abc import Sequence
from functools import partial

from PIL import Image

from . import passes
from .output import Result, Row
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS, build, open_images, run, some_images
from .recipes import BASELINES, RECIPES, SMALL_RECIPES, Recipe


def loader(args: argparse.Namespace) -> Result:
    """Measure loaders of photographs."""
    names = [TIMM, *TWO_VIEWS, *(IN_MEMORY if args.memory else ())]
    with some_images(args.folder, args.split, args.images) as root:
        rows = _compare(args, root, (3, args.img_size, args.img_size), names, RECIPES)
    measured = {row['recipe'] for row in rows}
    stated = ''.join(f'; for {name}, its recipe is {other}' for name, other in BASELINES.items() if name in measured)
    return Result(f"ratio: views per second against timm's own loader with one view{stated}", rows)


def small(args: argparse.Namespace) -> Result:
    """Measure loaders that keep small images in memory."""
    with some_images(args.folder, args.split, args.images) as root:
        with Image.open(open_images(root).reader.filename(0, absolute=True)) as image:
            size = (3, image.height, image.width)
        rows = _compare(args, root, size, [TIMM, *IN_MEMORY], SMALL_RECIPES)
    return Result(f"ratio: views per second against timm's loader of the files with one view, all padded by an eighth, "
                  f'cropped to {size[1]} x {size[2]} and flipped', rows)


def _compare(
        args: argparse.Namespace,
        root: str,
        size: tuple[int, int, int],
        names: Sequence[str],
        recipes: dict[str, Recipe],
) -> list[Row]:
    """Return a row per recipe and pipeline. Ratios refer to the first pipeline."""
    rows: list[Row] = []
    for recipe in args.recipes or recipes:
        chosen = {name: recipes[recipe] for name in names}
        chosen[TIMM] = recipes[BASELINES.get(recipe, recipe)]
        with passes.one_thread():
            measured = passes.interleaved({
                name: partial(run, build(name, root, size=size, batch_size=args.batch_size, workers=args.workers,
                                         recipe=chosen[name])) for name in names}, args.repeats)
        rows += [{'recipe': recipe, **row} for row in passes.rows(measured, 'loader', {
            'views': passes.count, 'views/s': passes.rate, 'ratio': passes.rate,
            'CPU s/1000 views': lambda one: 1000 * one.cpu_seconds / one.count})]
    return rows
