"""Put arrays in the place of PIL images in a loader of timm's: its transforms, decoding and collate."""
from collections.abc import Callable
from typing import Any

import cv2
import torch
from timm.data.loader import PrefetchLoader
from torchvision.transforms import ColorJitter, Compose

from ..augment import Chain, replace_transforms, transforms_of
from ..memory.buffers import is_reusable
from ..sources.decoding import DecodedDataset
from .collate import FastCollate
from .decoding import decode_array
from .jitter import DTYPES, DeviceJitter
from .transform import ArrayTransform


def work_on_arrays(
        loader: PrefetchLoader,
        mixup: dict[str, Any] | None,
        two_views: bool,
        channels_last: bool,
) -> str:
    """Change the loader in place, unless a step has no equal; see take_backend.

    Returns:
        What the log should tell besides.

    Raises:
        NotImplementedError: a step of the transforms has no equal on arrays; nothing is changed then.
    """
    on_host, jitter = _split_jitter(transforms_of(loader.dataset), loader, mixup)
    replace_transforms(loader.dataset, [ArrayTransform(transform) for transform in on_host])
    base = getattr(loader.dataset, 'dataset', loader.dataset)
    if type(base) is DecodedDataset and base.input_img_mode == 'RGB':
        base.decode = decode_array
    if two_views or mixup is None:
        loader.loader.collate_fn = FastCollate(mixup, two_views, is_reusable(loader.device, loader.loader.pin_memory))
    loader.loader.worker_init_fn = _OneThread(loader.loader.worker_init_fn)
    on_device: list[Callable] = []
    if not channels_last:
        on_device.append(torch.Tensor.contiguous)  # a layout that the weights do not have costs time in each layer
    if jitter is not None:
        on_device.append(DeviceJitter(jitter, loader.mean, loader.std, loader.loader.pin_memory))
    loader.random_erasing = Chain(*on_device, loader.random_erasing)  # type: ignore[assignment]  # any function
    return f', colour jitter on {loader.device}' if jitter is not None else ''


def _split_jitter(
        transforms: list[Compose],
        loader: PrefetchLoader,
        mixup: dict[str, Any] | None,
) -> tuple[list[Compose], ColorJitter | None]:
    """Take colour jitter that is the last step out of the transforms, where batches go to a device that can do it.

    What is mixed in the collate is jittered before, by the workers.
    """
    *_, jitter, _ = transforms[0].transforms
    if (loader.device.type == 'cpu' or mixup is not None or loader.img_dtype not in DTYPES
            or type(jitter) is not ColorJitter or jitter.hue is not None):
        return transforms, None
    return [Compose([*transform.transforms[:-2], transform.transforms[-1]]) for transform in transforms], jitter


class _OneThread:
    """Start a worker without threads of OpenCV's, beside the other workers."""

    def __init__(self, init: Any):
        self.init = init

    def __call__(self, worker: int) -> None:
        cv2.setNumThreads(0)
        self.init(worker)
