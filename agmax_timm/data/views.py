"""Two views of an image: it is decoded once and transformed twice, at random."""
import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from ..base.random_state import kept_random_state
from ..base.wrapping import passed_on

_logger = logging.getLogger(__name__)

_DRAWS = 64  # number of calls with the same result after which a transform counts as constant


class TwoViews:
    """Make two views of one decoded image, independently. Returns a tuple of both.

    It replaces the transform of a data set, so every kind of data set with a transform can give two views.

    Args:
        transform: Random transform of an image.
        second: Transform of the second view, such as a stronger one. None is `transform`.
    """

    decode_pixels = passed_on('transform', 'decode_pixels')  # as in ArrayTransform
    batches = passed_on('transform', 'batches')

    def __init__(self, transform: Callable[[Any], Any], second: Callable[[Any], Any] | None = None):
        self.transform = transform
        self.second = transform if second is None else second

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.transform(image), self.second(image)

    def __repr__(self) -> str:
        second = '' if self.second is self.transform else f', {self.second}'
        return f'{type(self).__name__}({self.transform}{second})'


class TransformedDataset(Dataset):
    """A wrapper of a data set that transforms its images with the attribute `transform`.

    The wrapped data set is not changed, so the two parts of a random_split can have different transforms.

    Args:
        dataset: Map-style data set of samples: (PIL image, class index), or a dict of both.
        keys: Keys of image and class index in a dict.
    """

    def __init__(self, dataset: Any, keys: tuple[str, str] = ('image', 'label')):
        self.dataset = dataset
        self.keys = keys
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        """Return the sample with its image transformed, as a tuple. Raises ValueError if it has no PIL image."""
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            missing = [key for key in self.keys if key not in sample]
            if missing:
                raise ValueError(f"samples of {type(self.dataset).__name__} have no {missing[0]!r}, only "
                                 f"{', '.join(map(repr, sample))}: give image_key and label_key")
            sample = tuple(sample[key] for key in self.keys)
        is_tuple = isinstance(sample, (tuple, list))
        if not is_tuple or len(sample) < 2 or not isinstance(sample[0], Image.Image):
            got = f"({', '.join(type(part).__name__ for part in sample)})" if is_tuple else type(sample).__name__
            raise ValueError(f'two views need samples (PIL image, class index), {type(self.dataset).__name__} gives '
                             f'{got}: create the data set without a transform, or convert its samples')
        image, *rest = sample
        return image if self.transform is None else self.transform(image), *rest


def with_transform(dataset: Dataset, keys: tuple[str, str] = ('image', 'label')) -> Dataset:
    """Return a data set that applies its attribute `transform`: the given one, or a TransformedDataset around it.

    torch's Subset and ConcatDataset ignore the attribute. The collate function refuses samples of other data sets that
    ignore it, see pair_of.
    """
    if isinstance(dataset, IterableDataset):
        return dataset
    # Subclasses may apply a transform of their own.
    ignores = type(dataset) in (Subset, ConcatDataset) or not hasattr(dataset, 'transform')
    return TransformedDataset(dataset, keys) if ignores else dataset


def warn_of_equal_views(transforms: Iterable[Callable[[Image.Image], torch.Tensor]], mode: str) -> None:
    """Log a warning if every transform always gives the same view of an image.

    Args:
        transforms: All training transforms of a loader without mixing and erasing.
        mode: PIL mode of the images.
    """
    if all(_is_constant(transform, mode) for transform in transforms):
        _logger.warning(
            'The two views of an image are the same, or only differ in the interpolation: the augmentation has no '
            'random crop, flip, colour, erasing or mixing.')


def _is_constant(transform: Callable[[Image.Image], torch.Tensor], mode: str) -> bool:
    """Return whether a transform gives the same result for an image of noise each time, except for interpolation."""
    sizes = (64, 64), (72, 48)  # some crops are random in one of these sizes only
    transform = copy.deepcopy(transform)
    for step in getattr(transform, 'transforms', []):
        if isinstance(getattr(step, 'interpolation', None), tuple):
            step.interpolation = step.interpolation[0]
    try:
        images = [Image.merge('RGB', [Image.effect_noise(size, 64) for _ in range(3)]).convert(mode) for size in sizes]
    except ValueError:  # PIL cannot convert to this mode
        return False
    with kept_random_state():
        for image in images:
            view = transform(image)
            if any(not torch.equal(transform(image), view) for _ in range(_DRAWS)):
                return False
    return True
