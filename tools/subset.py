#!/usr/bin/env python3
"""Link the first images of every training class of a folder data set, and all of its other splits.

Usage: python tools/subset.py SOURCE TARGET --per-class N
"""
import argparse
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--per-class', type=int, required=True)
    args = parser.parse_args()
    for split in sorted(path for path in args.source.iterdir() if path.is_dir()):
        if split.name != 'train':
            (args.target / split.name).parent.mkdir(parents=True, exist_ok=True)
            (args.target / split.name).symlink_to(split.resolve())
            continue
        for folder in sorted(split.iterdir()):
            linked = args.target / split.name / folder.name
            linked.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:args.per_class]:
                (linked / image.name).symlink_to(image.resolve())


if __name__ == '__main__':
    main()
