#!/usr/bin/env python3
"""Make agmax_timm/data/demo.npz from the four files of Fashion-MNIST.

Usage: python tools/make_demo.py FOLDER

FOLDER holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and
t10k-labels-idx1-ubyte.gz, as in https://github.com/zalandoresearch/fashion-mnist or Debian's package
dataset-fashion-mnist (under /usr/share/datasets/fashion-mnist). The same files give the same output, byte for byte.
"""
import gzip
import sys
from pathlib import Path

import numpy as np

CLASS_NAMES = ['t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']
PER_CLASS = {'train': 100, 't10k': 400}
OUTPUT = Path(__file__).parent.parent / 'agmax_timm' / 'data' / 'demo.npz'


def read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def choose(folder: Path, part: str, random: np.random.RandomState):
    """A class-balanced subset in random order: images [N, 28, 28], labels [N]."""
    labels = read_idx(folder / f'{part}-labels-idx1-ubyte.gz', header=8)
    images = read_idx(folder / f'{part}-images-idx3-ubyte.gz', header=16).reshape(len(labels), 28, 28)
    chosen = np.concatenate([
        random.permutation(np.flatnonzero(labels == label))[:PER_CLASS[part]] for label in range(len(CLASS_NAMES))])
    chosen = random.permutation(chosen)
    return images[chosen], labels[chosen]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    random = np.random.RandomState(0)
    train_images, train_labels = choose(Path(sys.argv[1]), 'train', random)
    val_images, val_labels = choose(Path(sys.argv[1]), 't10k', random)
    np.savez_compressed(
        OUTPUT, train_images=train_images, train_labels=train_labels, val_images=val_images, val_labels=val_labels,
        class_names=np.array(CLASS_NAMES))
    print(f'{OUTPUT}: {len(train_labels)} + {len(val_labels)} images, {OUTPUT.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
