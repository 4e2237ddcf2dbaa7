"""Views a second of loaders of small images that are kept in memory."""
import argparse

from PIL import Image

from ..data.sources.datasets import create_dataset
from .images import some_images
from .loader import compare
from .pipelines import IN_MEMORY, TIMM
from .recipes import SMALL_RECIPES
from .report import Result


def measure(args: argparse.Namespace) -> Result:
    with some_images(args.folder, args.split, args.images) as root:
        first = create_dataset('', root=root, split='train').reader.filename(0, absolute=True)
        with Image.open(first) as image:
            size = (3, image.height, image.width)
        rows = compare(args, root, size, [TIMM, *IN_MEMORY], SMALL_RECIPES)
    return Result(f"ratio: views a second against timm's loader of the files with one view, all padded by an eighth, "
                  f'cropped to {size[1]} x {size[2]} and flipped', rows)
