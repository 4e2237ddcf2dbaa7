#!/usr/bin/env python3
"""Write a data set of 100 classes, made of the built-in demo images, as folders with the splits train and val.

Usage: python tools/demo_pairs.py TARGET

An image of 28 x 28 shows two demo images at half their height, one above the other. Its class is the pair of their
classes, in this order, so 10 classes make 100. train has 20 images per class, made of the 1,000 training images. val
has 50 per class, made of the 4,000 validation images.
"""
import argparse
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

DEMO = Path(__file__).parent.parent / 'agmax_timm' / 'data' / 'demo.npz'
PER_CLASS = {'train': 20, 'val': 50}


def half(image):
    return Image.fromarray(image).resize((28, 14), Image.Resampling.BOX)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', type=Path, help='folder to write; must not exist')
    target = parser.parse_args().target
    if target.exists():
        parser.error(f'{target} exists: name a folder that does not')
    rng = np.random.default_rng(0)
    with np.load(DEMO, allow_pickle=False) as data:
        names = [str(name) for name in data['class_names']]
        for split, count in PER_CLASS.items():
            images, labels = data[f'{split}_images'], data[f'{split}_labels']
            of_class = [np.flatnonzero(labels == label) for label in range(len(names))]
            for upper, lower in product(range(len(names)), repeat=2):
                folder = target / split / f'{names[upper]} over {names[lower]}'
                folder.mkdir(parents=True)
                pairs = zip(rng.permutation(of_class[upper]), rng.permutation(of_class[lower]))
                for number, pair in zip(range(count), pairs):
                    image = np.concatenate([half(images[index]) for index in pair])
                    Image.fromarray(image).save(folder / f'{number:03}.png')


if __name__ == '__main__':
    main()
