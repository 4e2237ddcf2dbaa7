"""The loaders of the benchmarks by name: timm's loader with one view, and two-view loaders."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import timm.data
import torch
from torch.utils.data import DataLoader

from ..base.errors import DataError
from ..data.loader import create_train_loader, create_two_view_loader
from ..data.sources.dataset_factory import create_dataset
from ..data.sources.folder import FolderReader
from .recipes import Recipe

TIMM = 'timm, one view'
TWO_VIEWS: dict[str, dict[str, Any]] = {
    f'two views, {backend}': dict(augment_backend=backend) for backend in ('timm', 'fast')}
_HALF = '0.5'  # share of the free memory
IN_MEMORY: dict[str, dict[str, Any]] = {
    f'{name}, in memory': dict(options, image_memory=_HALF) for name, options in TWO_VIEWS.items()}


@contextmanager
def some_images(folder: str, split: str, count: int) -> Iterator[str]:
    """Make a temporary folder of class folders with links to images, so that timm's loader reads the same files.

    Args:
        count: Number of images, evenly spaced over the folder; all of them if the folder has fewer.

    Raises:
        DataError: The folder is not an image folder.
    """
    reader = getattr(create_dataset('', root=folder, split=split), 'reader', None)
    if not isinstance(reader, FolderReader):
        raise DataError(f"'{folder}' is not a folder of images")
    with tempfile.TemporaryDirectory() as links:
        for index in np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(int).tolist():
            path = os.path.join(links, 'train', reader.filename(index))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(os.path.abspath(reader.filename(index, absolute=True)), path)
        yield links


def open_images(root: str) -> Any:
    """Return the data set of a folder that some_images made."""
    return create_dataset('', root=root, split='train')


def count_classes(root: str) -> int:
    return max(2, len(open_images(root).reader.class_to_idx))


def build(name: str, root: str, **options) -> DataLoader:
    """Build a pipeline and return the loader inside timm's prefetcher, with uint8 batches (see build_prefetched)."""
    return build_prefetched(name, root, **options).loader


def build_prefetched(
        name: str,
        root: str,
        size: tuple[int, int, int],
        batch_size: int,
        workers: int,
        recipe: Recipe,
        device: str | torch.device = 'cpu',
        **kwargs,
) -> Any:
    """Build a pipeline with timm's prefetcher, which normalises batches on the device.

    Args:
        name: TIMM, or one of TWO_VIEWS and IN_MEMORY.
        root: Folder with the split `train`.
        size: Channels, height and width of a view.
        **kwargs: Further arguments of create_two_view_loader.

    Raises:
        ValueError: An argument is invalid, packages of the extra `fast` are missing, or images do not fit in memory.
    """
    common = dict(
        input_size=size, batch_size=batch_size, num_workers=workers, device=torch.device(device),
        interpolation='random', **recipe, **kwargs)
    if 'mixup' in recipe:
        common['mixup'] = dict(recipe['mixup'], num_classes=count_classes(root))
    if name == TIMM:
        return _timm_loader(root, **common)
    loader = create_two_view_loader(open_images(root), **common, **{**TWO_VIEWS, **IN_MEMORY}[name])
    if name in IN_MEMORY and loader.dataset.memory is None:
        raise DataError(f'the images, decoded, are more than {_HALF} of the free memory: use fewer --images')
    return loader


def run(loader: DataLoader) -> int:
    """Read one epoch without using the batches. Return the number of views."""
    return sum(len(images) for images, _ in loader)


def _timm_loader(root: str, mixup: Any = None, **kwargs) -> Any:
    dataset = timm.data.create_dataset('', root=root, split='train')
    if kwargs.get('train_crop_mode') == 'pad':  # timm has no such crop; use its augmentation with torchvision's crop
        return create_train_loader(dataset, augment_backend='timm', **kwargs)
    collate = timm.data.FastCollateMixup(**mixup) if mixup else None
    return timm.data.create_loader(dataset, is_training=True, collate_fn=collate, **kwargs)
