#!/usr/bin/env python3
"""Write a data set of --dataset as PNG files, in one folder for each split and class.

Usage: python tools/image_folders.py NAME TARGET [--root DIR] [--tune-per-class M]

NAME is that of --dataset, such as torch/cifar10 or demo. Data sets of torchvision are downloaded to DIR. The images of
a class keep their order. Each / in the name of a class becomes -, because a class is one folder. With --tune-per-class,
the first M images of every class of val become the split tune, for choosing hyperparameters, and val has the others.
"""
import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from agmax_timm.base.errors import UserError
from agmax_timm.data.loading.balance import labels_of
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.dataset_factory import create_dataset


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name')
    parser.add_argument('target', type=Path, help='folder to write; must not exist')
    parser.add_argument('--root', default='.', help='folder of the downloaded files (default: %(default)s)')
    parser.add_argument('--tune-per-class', type=int, default=0)
    args = parser.parse_args()
    if args.target.exists():
        parser.error(f'{args.target} exists: name a folder that does not')
    try:
        datasets = {split: create_dataset(args.name, args.root, split, download=True) for split in ('train', 'val')}
    except UserError as error:
        parser.error(str(error))
    for split, dataset in datasets.items():
        names, seen = class_names(dataset), Counter()
        if names is None:
            parser.error(f'{args.name} names no classes: use a data set that does, such as torch/cifar10')
        folders = [name.replace('/', '-') for name in names]
        try:
            largest = max(np.bincount(labels_of(dataset)))
        except UserError:  # the labels are not in one list
            largest = len(dataset)
        digits = max(4, len(str(largest - 1)))
        for image, label in dataset:
            part = 'tune' if split == 'val' and seen[label] < args.tune_per_class else split
            folder = args.target / part / folders[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f'{seen[label]:0{digits}}.png')
            seen[label] += 1


if __name__ == '__main__':
    main()
