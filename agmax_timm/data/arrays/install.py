"""Changes a loader of timm from PIL images to arrays: its transforms, decoding and collate function."""
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import torch
from timm.data.loader import PrefetchLoader
from timm.data.scheduled_sampler import ScheduledTransformDataset
from torchvision.transforms import ColorJitter, Compose

from ..augmentation.extensions import LoaderExtensions
from ..augmentation.transforms import change_transforms, transforms_of
from ..memory.buffers import is_reusable
from ..sources.decoding import DecodedDataset
from .collate import FastCollate
from .jitter import DTYPES, DeviceJitter
from .transform import ArrayTransform, KeepPixels


def work_on_arrays(loader: PrefetchLoader, extensions: LoaderExtensions) -> str:
    """Change a loader in place to work on arrays, see select_backend.

    Returns:
        Remark for the log, '' if there is none.

    Raises:
        NotImplementedError: A step of the transforms has no equivalent on arrays. The loader is not changed.
    """
    mixup, two_views = extensions.mixup, extensions.two_views
    jitter = _device_jitter(transforms_of(loader.dataset)[0], loader, mixup)
    change_transforms(loader.dataset, partial(_on_arrays, without_jitter=jitter is not None))
    if isinstance(loader.dataset, ScheduledTransformDataset) and type(loader.dataset.dataset) is DecodedDataset:
        loader.dataset.dataset.transform = KeepPixels()
    if two_views or mixup is None:
        loader.loader.collate_fn = FastCollate(mixup, two_views, is_reusable(loader.device, loader.loader.pin_memory))
    loader.loader.worker_init_fn = partial(_init_with_one_thread, loader.loader.worker_init_fn)
    on_device: list[Callable] = []
    if not extensions.channels_last:
        on_device.append(torch.Tensor.contiguous)  # a layout other than that of the weights slows down each layer
    if jitter is not None:
        on_device.append(DeviceJitter(jitter, loader.mean, loader.std, loader.loader.pin_memory))
    on_device += filter(None, [loader.random_erasing])
    loader.random_erasing = Compose(on_device)
    return f', colour jitter on {loader.device}' if jitter is not None else ''


def _on_arrays(transform: Compose, without_jitter: bool) -> ArrayTransform:
    *steps, last = transform.transforms
    return ArrayTransform(Compose([*steps[:-1], last]) if without_jitter else transform)


def _device_jitter(transform: Compose, loader: PrefetchLoader, mixup: dict[str, Any] | None) -> ColorJitter | None:
    """Return the colour jitter of a transform if it is the last step and the device can do it.

    With mixup, the workers must jitter, because they mix the images afterwards.
    """
    *_, jitter, _ = transform.transforms
    on_device = (loader.device.type != 'cpu' and mixup is None and loader.img_dtype in DTYPES
                 and type(jitter) is ColorJitter and jitter.hue is None)
    return jitter if on_device else None


def _init_with_one_thread(init: Any, worker: int) -> None:
    """Turn the threads of OpenCV off, because there are other workers. Then call another worker_init_fn."""
    cv2.setNumThreads(0)
    init(worker)
