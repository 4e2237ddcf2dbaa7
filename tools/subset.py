#!/usr/bin/env python3
"""Link the first images of every training class of a folder data set, and all images of its other splits.

Usage: python tools/subset.py SOURCE TARGET --per-class N [--tune-per-class M] [--classes NAME ...]

With --tune-per-class, the first M images of every class of val become the split tune, for choosing hyperparameters, and
val has the others. With --classes, every split has these classes alone.
"""
import argparse
import os
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--per-class', type=int, required=True)
    parser.add_argument('--tune-per-class', type=int, default=0)
    parser.add_argument('--classes', nargs='+')
    args = parser.parse_args()
    if args.target.exists():
        parser.error(f"'{args.target}' exists: name a new folder")
    sources = sorted(source for source in args.source.glob('[!.]*/[!.]*/') if source.is_dir())
    missing = set(args.classes or ()) - {source.name for source in sources}
    if missing or not sources:
        parser.error(f"'{args.source}' has no folders SPLIT/{min(missing, default='CLASS')}")
    splits = ({'train', 'val'} if args.tune_per_class else {'train'}) - {source.parent.name for source in sources}
    if splits:
        parser.error(f"'{args.source}' has no folders {' and '.join(sorted(splits))}: rename its splits")
    sources = [source for source in sources if not args.classes or source.name in args.classes]
    for source in sources:
        if any(entry.is_dir() and not entry.name.startswith('.') for entry in os.scandir(source)):
            parser.error(f"'{source}' has folders inside: a class is a folder of images")
    for source in sources:
        images, split = sorted(path for path in source.iterdir() if not path.name.startswith('.')), source.parent.name
        parts = {split: images}
        if split == 'train':
            parts = {split: images[:args.per_class]}
        elif split == 'val' and args.tune_per_class:
            parts = {'tune': images[:args.tune_per_class], split: images[args.tune_per_class:]}
        for name, kept in parts.items():
            folder = args.target / name / source.name
            folder.mkdir(parents=True)
            for image in kept:
                (folder / image.name).symlink_to(image.resolve())


if __name__ == '__main__':
    main()
