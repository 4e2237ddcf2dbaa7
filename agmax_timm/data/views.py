"""Two views of an image: one decode, one transform, two draws."""
import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from ..base.random_state import kept_random_state

_logger = logging.getLogger(__name__)

_DRAWS = 64  # calls of a transform, all with the same result, after which it counts as constant


class TwoViews:
    """Apply one random transform twice, independently, to one decoded image.

    It stands where the transform stood, so every kind of dataset that takes a transform gives two views: an image
    becomes a tuple of two.

    Args:
        transform: Random transform of one image.
    """

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.transform(image), self.transform(image)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'


class TransformedDataset(Dataset):
    """A data set around another one, whose images it transforms by its attribute `transform`.

    The inner data set stays as it is, so the two parts of a random_split can have different transforms.

    Args:
        dataset: Map-style data set of samples (PIL image, class index).
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        """Return the sample with its image transformed. Raises ValueError if there is no PIL image in it."""
        sample = self.dataset[index]
        is_tuple = isinstance(sample, (tuple, list))
        if not is_tuple or len(sample) < 2 or not isinstance(sample[0], Image.Image):
            got = f"({', '.join(type(part).__name__ for part in sample)})" if is_tuple else type(sample).__name__
            raise ValueError(f'two views need samples (PIL image, class index), {type(self.dataset).__name__} gives '
                             f'{got}: create the data set without a transform of its own, or convert its samples')
        image, *rest = sample
        return image if self.transform is None else self.transform(image), *rest


def with_transform(dataset: Dataset) -> Dataset:
    """Return a data set that applies its attribute `transform`: the given one, or a TransformedDataset around it.

    torch's Subset and ConcatDataset ignore the attribute, and so do data sets without it. The collate function finds
    those that have the attribute and ignore it, see pair_of.
    """
    if isinstance(dataset, IterableDataset):
        return dataset
    # Subclasses may apply a transform of their own.
    ignores = type(dataset) in (Subset, ConcatDataset) or not hasattr(dataset, 'transform')
    return TransformedDataset(dataset) if ignores else dataset


def warn_of_equal_views(transforms: Iterable[Callable[[Image.Image], torch.Tensor]], mode: str) -> None:
    """Log a warning if all transforms make two equal views of an image.

    Args:
        transforms: All training transforms of a loader that neither mixes nor erases.
        mode: PIL mode of the images.
    """
    if all(_is_constant(transform, mode) for transform in transforms):
        _logger.warning(
            'The two views of an image are the same, or only differ in the interpolation: no random crop, flip or '
            'colour is left of the augmentation, no erasing and no mixing.')


def _is_constant(transform: Callable[[Image.Image], torch.Tensor], mode: str) -> bool:
    """Whether a transform gives the same result for an image of noise each time, except for its interpolation."""
    sizes = (64, 64), (72, 48)  # some crops only fit into, and so are random in, one of them
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
