"""Changes a loader of timm from PIL images to arrays: its transforms, decoding and collate function."""
from collections.abc import Callable
from typing import Any

import cv2
import torch
from timm.data.loader import PrefetchLoader
from torchvision.transforms import ColorJitter, Compose

from ..augment import Chain, Extensions, replace_transforms, transforms_of
from ..memory.buffers import is_reusable
from ..sources.decoding import DecodedDataset
from .collate import FastCollate
from .decoding import decode_array
from .jitter import DTYPES, DeviceJitter
from .transform import ArrayTransform


def work_on_arrays(loader: PrefetchLoader, extensions: Extensions) -> str:
    """Change a loader in place to work on arrays, see select_backend.

    Returns:
        Remark for the log, '' if there is none.

    Raises:
        NotImplementedError: A step of the transforms has no equal on arrays. The loader is not changed.
    """
    mixup, two_views = extensions.mixup, extensions.two_views
    on_host, jitter = _split_jitter(transforms_of(loader.dataset), loader, mixup)
    replace_transforms(loader.dataset, [ArrayTransform(transform) for transform in on_host])
    base = getattr(loader.dataset, 'dataset', loader.dataset)
    if type(base) is DecodedDataset and base.input_img_mode == 'RGB':
        base.decode = decode_array
    if two_views or mixup is None:
        loader.loader.collate_fn = FastCollate(mixup, two_views, is_reusable(loader.device, loader.loader.pin_memory))
    loader.loader.worker_init_fn = _OneThread(loader.loader.worker_init_fn)
    on_device: list[Callable] = []
    if not extensions.channels_last:
        on_device.append(torch.Tensor.contiguous)  # a layout other than that of the weights slows down each layer
    if jitter is not None:
        on_device.append(DeviceJitter(jitter, loader.mean, loader.std, loader.loader.pin_memory))
    loader.random_erasing = Chain(*on_device, loader.random_erasing)  # type: ignore[assignment]  # any function
    return f', colour jitter on {loader.device}' if jitter is not None else ''


def _split_jitter(
        transforms: list[Compose],
        loader: PrefetchLoader,
        mixup: dict[str, Any] | None,
) -> tuple[list[Compose], ColorJitter | None]:
    """Remove colour jitter from the transforms if it is the last step and the device can do it.

    With mixup, the workers must jitter, because they mix the images afterwards.

    Returns:
        (transforms, jitter): Transforms of the workers, and the removed jitter or None.
    """
    *_, jitter, _ = transforms[0].transforms
    if (loader.device.type == 'cpu' or mixup is not None or loader.img_dtype not in DTYPES
            or type(jitter) is not ColorJitter or jitter.hue is not None):
        return transforms, None
    return [Compose([*transform.transforms[:-2], transform.transforms[-1]]) for transform in transforms], jitter


class _OneThread:
    """A worker_init_fn that turns the threads of OpenCV off, because there are other workers."""

    def __init__(self, init: Any):
        self.init = init

    def __call__(self, worker: int) -> None:
        cv2.setNumThreads(0)
        self.init(worker)
