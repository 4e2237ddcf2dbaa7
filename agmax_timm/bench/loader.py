"""Views a second of loaders."""
import argparse
from collections.abc import Sequence
from statistics import median

from . import passes
from .images import some_images
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS, build, run
from .recipes import BASELINES, RECIPES, Recipe
from .report import Result, Row


def measure(args: argparse.Namespace) -> Result:
    names = [TIMM, *TWO_VIEWS, *(IN_MEMORY if args.memory else ())]
    with some_images(args.folder, args.split, args.images) as root:
        rows = compare(args, root, (3, args.img_size, args.img_size), names, RECIPES)
    stated = ''.join(f'; for {name}, its recipe is {other}' for name, other in BASELINES.items() if name in
                     {row['recipe'] for row in rows})
    return Result(f"ratio: views a second against timm's own loader with one view{stated}", rows)


def compare(
        args: argparse.Namespace,
        root: str,
        size: tuple[int, int, int],
        names: Sequence[str],
        recipes: dict[str, Recipe],
) -> list[Row]:
    """A row for each of args.recipes, or of all, and each pipeline; ratios are to the first pipeline."""
    rows: list[Row] = []
    for recipe in args.recipes or recipes:
        with passes.one_thread():
            loaders = {
                name: build(name, root, size=size, batch_size=args.batch_size, workers=args.workers,
                            recipe=recipes[BASELINES.get(recipe, recipe) if name == names[0] else recipe])
                for name in names}
            measured = passes.interleaved({name: _pass_of(loader) for name, loader in loaders.items()}, args.repeats)
        for name in names:
            rows.append({
                'recipe': recipe,
                'loader': name,
                'views': measured[name][0].count,
                'views/s': median(map(passes.rate, measured[name])),
                **passes.ratios(measured, name, names[0], passes.rate),
                'CPU s/1000 views': median(1000 * one.cpu_seconds / one.count for one in measured[name]),
            })
    return rows


def _pass_of(loader):
    return lambda: run(loader)
