"""Evaluation transforms with a random step: strong colour jitter, or random crops in place of the central one.

The two of the original implementation of AgMax, in torchvision's and timm's form.
"""
from collections.abc import Callable
from typing import Any

from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

_JITTER = 1.  # brightness, contrast and saturation by a factor from 0 to 2
_CROP_SCALE = (0.2, 1.)  # share of the area


def stress_transform(kind: str, transform: transforms.Compose, size: tuple[int, int], interpolation: str):
    """An evaluation transform under stress.

    Args:
        kind: 'jitter': colours, after the crop; 'crop': a random resized crop in place of timm's.
        transform: timm's evaluation transform.
        size: Height and width.
        interpolation: timm's name of it, of 'crop'.
    """
    if kind == 'jitter':
        return before_tensor(transform, transforms.ColorJitter(_JITTER, _JITTER, _JITTER))
    crop = RandomResizedCropAndInterpolation(size, scale=_CROP_SCALE, interpolation=interpolation)
    return transforms.Compose([crop, *_split(transform)[1]])


def before_tensor(transform: transforms.Compose, step: Callable[[Any], Any]) -> transforms.Compose:
    """The transform with one more step for images of their final size, just before they become tensors."""
    before, after = _split(transform)
    return transforms.Compose([*before, step, *after])


def _split(transform: transforms.Compose) -> tuple[list[Callable], list[Callable]]:
    """Steps of images, steps from the one on that makes a tensor of them."""
    steps = list(transform.transforms)
    at = next(i for i, step in enumerate(steps) if type(step).__name__.endswith('ToTensor'))
    return steps[:at], steps[at:]
