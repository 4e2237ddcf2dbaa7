"""Training loaders: timm's loader, with further augmentations and with two views."""
import sys
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.data import IMAGENET_DEFAULT_MEAN, AugMixDataset, Mixup, create_loader
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import Compose

from ..base.distributed import world_size
from ..base.image_modes import BACKENDS, CROP_MODES, check_mode, mode_of, timm_policy
from ..base.text import even_next_to
from ..base.wrapping import passed_on
from .augmentation.extensions import LoaderExtensions
from .augmentation.mixup import (
    CollateMixup,
    LambdaCollate,
    LambdaMixup,
    TwoViewCollate,
    TwoViewMixup,
)
from .augmentation.transforms import (
    CutOut,
    change_transforms,
    extend_transform,
    pad_and_crop,
    transforms_of,
    use_published_policy,
)
from .backend import select_backend, use_batched_views
from .loading.device import DeviceMixupLoader
from .loading.ranks import batch_sampler_of, check_batch, check_group, follow_group
from .loading.workers import data_loader_of
from .memory.buffers import is_pinned, is_reusable
from .memory.free_memory import memory_limit
from .memory.images import keep_decoded
from .views import TwoViews, warn_of_equal_views, with_transform


def create_train_loader(
        dataset: Any,
        input_size: int | tuple[int, int] | tuple[int, int, int],
        batch_size: int,
        *,
        device: Any = None,
        pin_memory: bool | None = None,
        distributed: bool | None = False,
        **kwargs,
):
    """Return timm's training loader with extensions.

    timm creates the loader for one view, which is then changed in place, in this order:

    1. The published policies and the augmentations that timm lacks are added to the transform of one view.
    2. The fast backend replaces this complete transform, the decoding and the collate function. It falls back to timm
       if a step has no equivalent, so it must see all steps.
    3. Images that fit into the memory are decoded once, by the decoder of the chosen backend.
    4. The transform of one view becomes that of two.
    5. Without the prefetcher, batches are mixed on the device, unless in the workers.

    Without extensions, the result is that of timm.data.create_loader, to the last random draw.

    Args:
        dataset: Data set of samples (image, class index) that sets its `transform`, see with_transform.
        input_size: See create_two_view_loader.
        batch_size: Number of images in a batch.
        device, pin_memory, distributed: See create_two_view_loader.
        **kwargs: Fields of LoaderExtensions, and arguments of timm.data.create_loader.

    Raises:
        ValueError: See create_two_view_loader.
    """
    names = {field.name for field in fields(LoaderExtensions)}
    extensions = LoaderExtensions(**{name: kwargs.pop(name) for name in names & set(kwargs)})
    size = (input_size,) * 2 if isinstance(input_size, int) else tuple(input_size)
    channels = size[0] if len(size) == 3 else len(kwargs.get('mean', IMAGENET_DEFAULT_MEAN))
    follow = distributed is None
    if follow:
        check_group(dataset, is_dataloader=not kwargs.get('use_prefetcher', True))
    kwargs['distributed'] = world_size() > 1 if follow else distributed
    _check_arguments(dataset, batch_size, channels, extensions, kwargs)
    mixup, two_views = extensions.mixup, extensions.two_views
    prefetch, splits = kwargs.get('use_prefetcher', True), kwargs.get('num_aug_splits')
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    pin_memory = is_pinned(pin_memory, device)
    collate: Any = None
    if two_views:
        dataset = with_transform(dataset)
        collate = TwoViewCollate(mixup if extensions.mix_in_workers or prefetch else None, levels=prefetch)
    elif mixup is not None and prefetch:
        collate = (LambdaCollate if extensions.lambdas else CollateMixup)(**mixup)

    read: Any = AugMixDataset(dataset, num_splits=splits) if splits else dataset
    loader: Any = create_loader(
        read,
        input_size,
        batch_size,
        is_training=True,
        train_crop_mode=None if extensions.train_crop_mode == 'pad' else extensions.train_crop_mode,
        collate_fn=collate,
        device=device,
        pin_memory=pin_memory,
        **{**kwargs, 'auto_augment': timm_policy(kwargs.get('auto_augment') or '')},
    )
    _check_repeats(loader, batch_size, kwargs.get('num_aug_repeats'))
    _add_augmentation(loader, size, extensions, kwargs)
    mixes = mixup is not None and mixup.get('prob', 1.) > 0.
    if two_views and not mixes and getattr(loader, 'random_erasing', None) is None:
        warn_of_equal_views(transforms_of(loader.dataset), mode_of(dataset, channels))
    if not splits:
        select_backend(loader, extensions, channels)
    _keep_in_memory(loader, extensions, reused=is_reusable(device, pin_memory))
    if two_views:
        change_transforms(loader.dataset, TwoViews)
    if mixup is not None and not (extensions.mix_in_workers or prefetch):
        mix = TwoViewMixup if two_views else LambdaMixup if extensions.lambdas else Mixup
        loader = DeviceMixupLoader(loader, mix(**mixup), device, kwargs.get('img_dtype', torch.float32))
    if follow:
        follow_group(loader, data_loader_of(loader))
    return loader


def _check_arguments(
        dataset: Dataset, batch_size: int, channels: int, extensions: LoaderExtensions, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for arguments of create_train_loader that do not fit each other or the data set."""
    cutout, lighting = extensions.cutout, extensions.lighting
    backend, crop_mode = extensions.augment_backend, extensions.train_crop_mode
    # Several sizes of images may have batch sizes of their own, and several passes in an epoch, which fill any batch.
    scheduled = kwargs if kwargs.get('input_size_choices') else {}
    sizes = scheduled.get('batch_size_choices') or [batch_size]
    for size in sizes:
        if extensions.mixup is not None and size % 2:
            raise ValueError(f'mixup needs an even batch_size, got {size}: use {even_next_to(size)}')
    if isinstance(dataset, IterableDataset):
        _check_iterable(dataset, batch_size, kwargs)
    elif not scheduled.get('num_batches'):
        check_batch(dataset, min(sizes), ranks=dist.get_world_size() if kwargs.get('distributed') else 1)
    if crop_mode is not None and crop_mode not in CROP_MODES:
        raise ValueError(f"train_crop_mode must be one of {', '.join(CROP_MODES)}, got '{crop_mode}'")
    if kwargs.get('no_aug') and (cutout or lighting or crop_mode == 'pad'):
        raise ValueError('no_aug turns augmentation off, but cutout, lighting or train_crop_mode pad asks for some')
    if extensions.two_views and kwargs.get('num_aug_splits'):
        raise ValueError('two views cannot be combined with num_aug_splits')
    if crop_mode == 'pad' and kwargs.get('input_size_choices'):
        raise ValueError('train_crop_mode pad is for one input_size, not for input_size_choices')
    if backend not in BACKENDS:
        raise ValueError(f"augment_backend must be one of {', '.join(BACKENDS)}, got '{backend}'")
    if backend == 'fast' and kwargs.get('num_aug_splits'):
        raise ValueError('augment_backend fast: num_aug_splits has no fast equivalent: use timm or auto')
    if lighting and (channels != 3 or mode_of(dataset, channels) != 'RGB'):
        raise ValueError(f'lighting needs RGB images, got lighting {lighting} for images of another mode: leave it out')
    check_mode(dataset, channels, kwargs)


def _check_iterable(dataset: IterableDataset, batch_size: int, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for options that data in sequence does not have, or a batch size that differs from its own."""
    for name in ('num_aug_repeats', 'num_aug_splits', 'use_multi_epochs_loader'):
        if kwargs.get(name):
            raise ValueError(f'{name} needs a data set with an index; one that is read in sequence has none')
    planned = getattr(getattr(dataset, 'reader', None), 'batch_size', None) or batch_size
    if planned != batch_size:
        raise ValueError(f'batch_size {batch_size} is not the {planned} that the data set was created with, and counts '
                         f'its samples by: give create_dataset batch_size={batch_size}')


def _check_repeats(loader: Any, batch_size: int, repeats: float | None) -> None:
    """Raise ValueError if the share of a rank with repeated augmentation does not fill a batch.

    timm rounds the number of images down to a multiple of 256 before it divides them among the ranks.
    """
    if repeats and not len(loader):
        share = len(batch_sampler_of(data_loader_of(loader)).sampler)
        raise ValueError(f'num_aug_repeats {repeats:g} gives each process {share} images, less than the batch_size of '
                         f'{batch_size}: use {share} or less')


def _add_augmentation(loader: Any, size: tuple[int, ...], extensions: LoaderExtensions, kwargs: dict[str, Any]) -> None:
    """Add the augmentation that timm lacks to a loader. timm's prefetcher erases after it has normalised."""
    prefetch, lighting, cutout = kwargs.get('use_prefetcher', True), extensions.lighting, extensions.cutout
    in_splits = getattr(loader.dataset, 'augmentation', None)  # where timm keeps the policy with num_aug_splits
    use_published_policy([*transforms_of(loader.dataset), in_splits], kwargs.get('auto_augment') or '')
    crop = None
    if extensions.train_crop_mode == 'pad':
        crop = pad_and_crop((size[-2], size[-1]), kwargs.get('interpolation', 'bilinear'))
    if crop is not None or lighting or (cutout and not prefetch):
        own = partial(extend_transform, crop=crop, lighting=lighting, cutout=0 if prefetch else cutout)
        change_transforms(loader.dataset, own)
    if cutout and prefetch:
        loader.random_erasing = Compose([*filter(None, [loader.random_erasing]), CutOut(cutout)])


def _keep_in_memory(loader: Any, extensions: LoaderExtensions, reused: bool) -> None:
    """Decode the images of a loader and keep them, if they fit into the memory. Its workers then share them."""
    dataset, data_loader = loader.dataset, data_loader_of(loader)
    in_memory = keep_decoded(getattr(dataset, 'dataset', dataset), memory_limit(extensions.image_memory))
    if in_memory and data_loader.num_workers and sys.platform == 'linux':
        data_loader.multiprocessing_context = 'fork'  # Python newer than 3.13 starts workers in another way
    if extensions.two_views or extensions.mixup is None:
        use_batched_views(dataset, views=2 if extensions.two_views else 1, reused=reused)


def create_two_view_loader(
        dataset: Dataset,
        input_size: int | tuple[int, int] | tuple[int, int, int],
        batch_size: int,
        *,
        mixup: dict[str, Any] | None = None,
        cutout: int = 0,
        lighting: float = 0.,
        augment_backend: str = 'auto',
        image_memory: str = '0',
        channels_last: bool = False,
        pin_memory: bool | None = None,
        distributed: bool | None = None,
        image_key: str = 'image',
        label_key: str = 'label',
        **kwargs,
):
    """Return timm's training loader with two views of every image. Each image is decoded once and augmented twice.

    Iteration gives batches for AgMaxTask: images [2B, C, H, W], all first views and then all second views, with class
    indices [2B] or, with mixup, soft targets [2B, K].

    Every kind of data set that timm opens works, map-style or iterable. The loader sets its `transform`. For data sets
    without that attribute (Subset, random_split, ConcatDataset, Hugging Face's, your own), the loader transforms the
    PIL images that they return, and does not change the data set.

    With `use_prefetcher=False`, the result is a torch DataLoader of normalised images on the CPU. Lightning and
    accelerate can wrap it, and share its samples among the ranks.

    Args:
        dataset: Data set of samples (image, class index). It has a `transform` attribute, like those of
            timm.data.create_dataset, or returns PIL images. These samples may also be dicts.
        input_size: Size of a view in pixels: (channels, height, width), (height, width) or one side.
        batch_size: Number of images B in a batch. A batch has 2B views.
        mixup: Dict of timm.data.Mixup's arguments, or None. Each view has its own lambda and its own random partners
            (see TwoViewMixup). Images are mixed in the collate function. `loader.mixup_enabled = False` turns mixing
            off between epochs, also in persistent workers. If a framework wrapped a DataLoader, set
            `loader.collate_fn.mixup_enabled`.
        cutout: Side in pixels of a CutOut square in each view, after normalisation. 0 is off.
        lighting: Standard deviation of PCA lighting in each view. 0 is off.
        augment_backend: 'timm' augments PIL images. 'fast' augments arrays; docs/performance.md states the differences
            in levels. 'auto' is 'fast' if each step has a fast equivalent, else 'timm'.
        image_memory: Share of the free memory, such as '0.1', or an amount, such as '8G'. If all images fit, they are
            decoded once, in this call, and kept as uint8. '0' keeps none.
        channels_last: Whether the model is in channels_last. Views may then have this layout if it costs no time.
        pin_memory: Whether batches go to the device from pinned memory, so that the copy of a batch can overlap the
            steps before it. None pins if the device is CUDA.
        distributed: Whether each rank gets a share of the images. None follows the process group, also if it is
            created after the loader, and shuffles anew in each epoch. True is as in timm: call
            `loader.sampler.set_epoch` before each epoch.
        image_key: Key of the image in a sample that is a dict.
        label_key: Key of the class index in a sample that is a dict.
        **kwargs: Further arguments of timm.data.create_loader. In addition, `train_crop_mode='pad'` pads an eighth of
            the size on each side and takes a random crop, and `auto_augment` may be 'cifar10', 'svhn' or 'imagenet',
            AutoAugment's published policies. `device` is CUDA if available, else the CPU.

    Returns:
        Iterable of (input, target) with the attributes of timm's loader. A DataLoader with `use_prefetcher=False`.

    Raises:
        ValueError: The batch is odd with mixup, mixup has no num_classes, the data set is smaller than a batch, a mode
            is unknown, options cannot be combined, or the ranks cannot share the data. Raised by iteration if a sample
            has no PIL image or no class index, or if the data set ignores its `transform`.
    """
    loader = create_train_loader(
        with_transform(dataset, (image_key, label_key)), input_size, batch_size, two_views=True, mixup=mixup,
        cutout=cutout, lighting=lighting, augment_backend=augment_backend, image_memory=image_memory,
        channels_last=channels_last, pin_memory=pin_memory, distributed=distributed, mix_in_workers=True, **kwargs)
    if loader is data_loader_of(loader) and mixup is not None:
        # A DataLoader with the switch of its collate function, as timm's prefetcher has it.
        switch = {'mixup_enabled': passed_on('collate_fn', 'mixup_enabled')}
        loader.__class__ = type(type(loader).__name__, (type(loader),), switch)
    return loader
