#!/usr/bin/env python3
"""Link the first images of every training class of a folder data set, and all of its other splits.

Usage: python tools/subset.py SOURCE TARGET --per-class N [--tune-per-class M]

With --tune-per-class, the first M images of every class of val become the split tune, for choosing hyperparameters, and
val has the others.
"""
import argparse
from pathlib import Path


def link(images, folder):
    folder.mkdir(parents=True)
    for image in images:
        (folder / image.name).symlink_to(image.resolve())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--per-class', type=int, required=True)
    parser.add_argument('--tune-per-class', type=int)
    args = parser.parse_args()
    for split in sorted(path for path in args.source.iterdir() if path.is_dir()):
        divided = split.name == 'val' and args.tune_per_class is not None
        if split.name != 'train' and not divided:
            args.target.mkdir(parents=True, exist_ok=True)
            (args.target / split.name).symlink_to(split.resolve())
            continue
        for folder in sorted(split.iterdir()):
            images = sorted(folder.iterdir())
            if divided:
                link(images[:args.tune_per_class], args.target / 'tune' / folder.name)
                link(images[args.tune_per_class:], args.target / 'val' / folder.name)
            else:
                link(images[:args.per_class], args.target / 'train' / folder.name)


if __name__ == '__main__':
    main()
