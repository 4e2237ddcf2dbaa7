"""Classes of unequal size: the class of each image, and a sampler that draws all classes equally often."""
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ...base.errors import DataError
from .ranks import batch_sampler_of
from .workers import data_loader_of


def labels_of(dataset: Any) -> np.ndarray:
    """Return the class index of each image [N]. Reads no image.

    Raises:
        DataError: The data has no index of class indices.
    """
    reader: Any = getattr(dataset, 'reader', None)
    labels = getattr(reader, 'targets', None)
    if labels is None and hasattr(reader, 'iter_targets'):  # hfds/
        labels = list(reader.iter_targets())
    if labels is None:
        labels = getattr(dataset, 'targets', None)
    if labels is None or np.ndim(labels) != 1:
        raise DataError(f'{type(dataset).__name__} has no index of its classes: drop --class-stats auto and '
                        '--balanced-sampling, or use a folder or hfds/')
    return np.asarray(labels).astype(np.int64)


class BalancedSampler(Sampler):
    """Draw images with replacement: a class, each as likely as any other, then one of its images.

    The order depends on the seed, the epoch, and the number of iterations since set_epoch: timm's schedules of sizes
    iterate several times in an epoch. Each rank takes its share of the order.

    Args:
        labels: Class index of each image [N]. An epoch has N draws, rounded up to a multiple of the ranks.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0, ranks: int = 1, rank: int = 0):
        self.order = np.argsort(labels, kind='stable')
        _, self.starts, self.counts = np.unique(labels[self.order], return_index=True, return_counts=True)
        self.seed, self.ranks, self.rank = seed, ranks, rank
        self.epoch = self.passes = 0

    def __len__(self) -> int:
        return -(-len(self.order) // self.ranks)

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.passes = epoch, 0

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch, self.passes))
        self.passes += 1
        classes = generator.integers(len(self.counts), size=len(self) * self.ranks)
        images = self.order[self.starts[classes] + generator.integers(self.counts[classes])]
        return iter(images[self.rank::self.ranks].tolist())


def use_sampler(loader: Any, sampler: Sampler) -> None:
    """Let a training loader draw its samples from this sampler."""
    loader = data_loader_of(loader)
    batch_sampler_of(loader).sampler = sampler
    object.__setattr__(loader, 'sampler', sampler)  # for set_epoch; DataLoader.__setattr__ refuses it
