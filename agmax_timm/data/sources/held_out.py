"""A share of the training images that is held out for validation: the same images on every machine."""
import copy
import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Subset

from ...base.class_labels import index_names
from ...base.errors import DataError
from ...base.wrapping import Wrapper, passed_on
from .classes import normalised
from .damage import Damage
from .dataset_factory import TorchFolder
from .decoding import DecodedDataset
from .folder import FolderReader
from .labels import check_column


def part_of(dataset: Any, share: float, seed: int, held_out: bool) -> Any:
    """Return the held-out part of a data set, or the remaining part. Each has its own transform and damage record.

    No image of the held-out part may be damaged, as in all data for evaluation.

    Args:
        dataset: Data set with an index and one label per image.
        share: Share of the images of each class that is held out, see choose().
        held_out: Which of the two parts to return.

    Raises:
        DataError: The data set has no index, or its labels are not known before the images are read.
    """
    names, labels = _names_and_labels(dataset)
    chosen = choose(names, labels, share, seed)
    if not chosen.any():
        raise DataError(f'--val-split {share:g} holds out no image: no class has two images: add images, or train '
                        "without validation: --val-split ''")
    indices = np.flatnonzero(chosen == held_out)
    if not isinstance(dataset, DecodedDataset):
        return Part(dataset, indices)
    part = copy.copy(dataset)
    part.reader = _subset(dataset.reader, indices)
    part.damage = Damage(part.reader, None if held_out else dataset.damage.max_share)
    return part


def choose(names: Sequence[str], labels: Any, share: float, seed: int) -> np.ndarray:
    """Return whether each image is held out [N].

    The images of a class are sorted by a digest of the seed and their name, and the first ones are held out: `share`
    of them, rounded, but at least one and not all. A class of one image is not held out. So the choice depends neither
    on the order of the images nor on other classes, and a larger share contains a smaller one.
    """
    digests = b''.join(blake2b(f'{seed}/{name}'.encode('utf-8', 'surrogateescape'), digest_size=8).digest()
                       for name in names)
    _, classes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    quotas = np.where(counts > 1, np.floor(share * counts + 0.5).clip(1, counts - 1), 0)
    order = np.lexsort((np.frombuffer(digests, '>u8'), classes))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
    chosen = np.zeros(len(order), bool)
    chosen[order] = rank < np.repeat(quotas, counts)
    return chosen


class Part(Subset, Wrapper):
    """Some samples of a map-style data set that has no reader of timm, with transforms of their own."""
    wraps = 'dataset'
    transform = passed_on('dataset', 'transform')

    def __init__(self, dataset: Any, indices: Any):
        super().__init__(copy.copy(dataset), indices)
        self.targets = np.asarray(dataset.targets)[indices]


def _names_and_labels(dataset: Any) -> tuple[list[str], Any]:
    """Return a name of each image that is the same on every machine, and its label.

    Names are paths in the folder or tar file of the split. Other data has a fixed order: names are indices.
    """
    reader: Any = getattr(dataset, 'reader', None)
    labels: Any
    if isinstance(reader, (FolderReader, ReaderImageInTar)):
        names, labels = [reader.filename(index) for index in range(len(reader))], reader.targets
    elif isinstance(dataset, TorchFolder):
        names, labels = [os.path.relpath(path, dataset.root) for path, _ in dataset.samples], dataset.targets
    elif hasattr(reader, 'iter_targets'):
        check_column(dataset)
        names, labels = index_names(len(dataset)), list(map(str, reader.iter_targets()))
    elif hasattr(dataset, 'targets'):
        names, labels = index_names(len(dataset)), dataset.targets
    else:
        raise DataError(f'{type(dataset).__name__} has no index of labels, from which a share of each class could be '
                        'held out: name a split')
    return [normalised(name.replace(os.sep, '/')) for name in names], labels


def _subset(reader: Any, indices: np.ndarray) -> Any:
    """Return a copy of a reader of timm or of this package with some of its samples."""
    if isinstance(reader, FolderReader):
        return reader.subset(indices)
    part = copy.copy(reader)
    if isinstance(reader, ReaderImageInTar):
        part.samples, part.targets = reader.samples[indices], reader.targets[indices]
    else:  # hfds/
        part.dataset = reader.dataset.select(indices)
        part.num_samples = len(indices)
        part.rows = indices
    return part
