"""The loaders that are measured against each other, by name: timm's own with one view, ours with two."""
from typing import Any

import timm.data
import torch
from torch.utils.data import DataLoader

from ..base.errors import DataError
from ..data.loader import create_train_loader, create_two_view_loader
from ..data.sources.datasets import create_dataset
from .recipes import Recipe

TIMM = 'timm, one view'
TWO_VIEWS: dict[str, dict[str, Any]] = {
    'two views, timm': dict(augment_backend='timm'),
    'two views, fast': dict(augment_backend='fast'),
}
_HALF = '0.5'  # of the free memory
IN_MEMORY: dict[str, dict[str, Any]] = {
    f'{name}, in memory': dict(options, image_memory=_HALF) for name, options in TWO_VIEWS.items()}
_OURS = {**TWO_VIEWS, **IN_MEMORY}


def build(name: str, root: str, **options) -> DataLoader:
    """The torch loader inside timm's prefetcher, whose batches are uint8; see build_prefetched."""
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
    """The pipeline of this name, whose batches are normalised on the device.

    Args:
        name: TIMM, or one of TWO_VIEWS and IN_MEMORY.
        root: Folder with the split train.
        size: Channels, height and width of a view.
        **kwargs: Further arguments of create_two_view_loader.

    Raises:
        ValueError: the loader cannot be, the packages of the extra `fast` are missing, or images do not fit in memory.
    """
    common = dict(
        input_size=size, batch_size=batch_size, num_workers=workers, device=torch.device(device),
        interpolation='random', **_sized(recipe, root), **kwargs)
    if name == TIMM:
        return _timm_loader(root, **common)
    loader = create_two_view_loader(create_dataset('', root=root, split='train'), **common, **_OURS[name])
    if name in IN_MEMORY and loader.dataset.memory is None:
        raise DataError(f'the images, decoded, are more than {_HALF} of the free memory: use fewer --images')
    return loader


def run(loader: DataLoader) -> int:
    """One epoch, its batches dropped. Returns how many views there were."""
    return sum(len(images) for images, _ in loader)


def _timm_loader(root: str, mixup: Any = None, **kwargs) -> Any:
    dataset = timm.data.create_dataset('', root=root, split='train')
    if kwargs.get('train_crop_mode') == 'pad':  # timm has none: its loader with this one crop of torchvision's
        return create_train_loader(dataset, augment_backend='timm', **kwargs)
    collate = timm.data.FastCollateMixup(**mixup) if mixup else None
    return timm.data.create_loader(dataset, is_training=True, collate_fn=collate, **kwargs)


def _sized(recipe: Recipe, root: str) -> Recipe:
    """The recipe, its mixing told the number of classes."""
    if 'mixup' not in recipe:
        return recipe
    classes = len(create_dataset('', root=root, split='train').reader.class_to_idx)
    return dict(recipe, mixup=dict(recipe['mixup'], num_classes=max(2, classes)))
