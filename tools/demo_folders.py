#!/usr/bin/env python3
"""Write the built-in demo images as folders with three splits: train, tune and val.

Usage: python tools/demo_folders.py TARGET

train holds the 1,000 training images. The 4,000 validation images are halved: the first 200 images of each class go to
tune, for choosing hyperparameters, and the other 200 to val, for the results.
"""
import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

DEMO = Path(__file__).parent.parent / 'agmax_timm' / 'data' / 'demo.npz'
TUNE_PER_CLASS = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', type=Path, help='folder to write; must not exist')
    target = parser.parse_args().target
    if target.exists():
        parser.error(f'{target} exists: name a folder that does not')
    with np.load(DEMO, allow_pickle=False) as data:
        names = [str(name) for name in data['class_names']]
        for part in ('train', 'val'):
            seen = Counter()
            for image, label in zip(data[f'{part}_images'], data[f'{part}_labels']):
                number = seen[label]
                seen[label] += 1
                split = 'tune' if part == 'val' and number < TUNE_PER_CLASS else part
                folder = target / split / names[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f'{number:03}.png')


if __name__ == '__main__':
    main()
