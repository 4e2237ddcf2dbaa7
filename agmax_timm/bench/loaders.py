"""Benchmarks of loaders in views per second."""
from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL import Image

from . import passes
from .output import Result, Row
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS, build, open_images, run, some_images
from .recipes import BASELINES, RECIPES, SMALL_RECIPES, Recipe


def loader(folder: str, split: str, images: int, img_size: int, memory: bool, **compared: Any) -> Result:
    """Measure loaders of photographs. `compared` has further arguments of _compare."""
    names = [TIMM, *TWO_VIEWS, *(IN_MEMORY if memory else ())]
    with some_images(folder, split, images) as root:
        rows = _compare(root, (3, img_size, img_size), names, RECIPES, **compared)
    measured = {row['recipe'] for row in rows}
    stated = ''.join(f'; for {name}, its recipe is {other}' for name, other in BASELINES.items() if name in measured)
    return Result(f"ratio: views per second against timm's own loader with one view{stated}", rows)


def small(folder: str, split: str, images: int, **compared: Any) -> Result:
    """Measure loaders that keep small images in memory. `compared` has further arguments of _compare."""
    with some_images(folder, split, images) as root:
        with Image.open(open_images(root).reader.filename(0, absolute=True)) as image:
            size = (3, image.height, image.width)
        rows = _compare(root, size, [TIMM, *IN_MEMORY], SMALL_RECIPES, **compared)
    return Result(f"ratio: views per second against timm's loader of the files with one view, all padded by an eighth, "
                  f'cropped to {size[1]} x {size[2]} and flipped', rows)


def _compare(
        root: str, size: tuple[int, int, int], names: Sequence[str], known: dict[str, Recipe],
        recipes: list[str] | None, batch_size: int, workers: int, repeats: int) -> list[Row]:
    """Return a row per recipe and pipeline. Ratios refer to the first pipeline. None for `recipes` is all of them."""
    rows: list[Row] = []
    for recipe in recipes or known:
        chosen = {name: known[recipe] for name in names}
        chosen[TIMM] = known[BASELINES.get(recipe, recipe)]
        with passes.one_thread():
            measured = passes.interleaved({
                name: partial(run, build(name, root, size=size, batch_size=batch_size, workers=workers,
                                         recipe=chosen[name])) for name in names}, repeats)
        rows += [{'recipe': recipe, **row} for row in passes.rows(measured, 'loader', {
            'views': passes.count, 'views/s': passes.rate, 'ratio': passes.rate,
            'CPU s/1000 views': lambda one: 1000 * one.cpu_seconds / one.count})]
    return rows
