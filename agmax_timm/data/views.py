"""Two views of an image: one decode, one transform, two draws."""
from typing import Any, Callable, Optional, Tuple

from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset


class TwoViews:
    """Apply one random transform twice, independently, to one decoded image.

    It stands where the transform stood, so every kind of dataset that takes a transform gives two views: an image
    becomes a tuple of two.

    Args:
        transform: Random transform of one image.
    """

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform = transform

    def __call__(self, image: Any) -> Tuple[Any, Any]:
        return self.transform(image), self.transform(image)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'


class TransformedDataset(Dataset):
    """Samples of a data set that transforms no images, with the `transform` of this one applied to them.

    The data set itself is left as it is, so the two parts of a random_split have a transform each.

    Args:
        dataset: Data set of samples (PIL image, class index), with an index.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.transform: Optional[Callable[[Image.Image], Any]] = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple:
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
    """Return a data set whose attribute `transform` is applied to its images: this one, or one around it.

    torch's Subset and ConcatDataset ignore the attribute, and a data set that has none would as well. One that has
    the attribute and ignores it is found by the collate function, see pair_of.
    """
    if isinstance(dataset, IterableDataset):
        return dataset
    # Subclasses may apply a transform of their own.
    ignores = type(dataset) in (Subset, ConcatDataset) or not hasattr(dataset, 'transform')
    return TransformedDataset(dataset) if ignores else dataset
