"""Evaluation transforms with a random step: strong colour jitter, or random crops in place of the central one.

Both are those of the original implementation of AgMax, by transforms of torchvision and timm.
"""
from collections.abc import Callable
from typing import Any

from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from ...data.augmentation.transforms import tensor_step

_JITTER = 1.  # brightness, contrast and saturation by a factor from 0 to 2
_CROP_SCALE = (0.2, 1.)  # fraction of the area


def stress_transform(kind: str, transform: transforms.Compose, size: tuple[int, int], interpolation: str):
    """Return an evaluation transform with a random step.

    Args:
        kind: 'jitter': colour jitter after the crop; 'crop': a random resized crop in place of timm's.
        transform: timm's evaluation transform.
        size: Height and width of the crop.
        interpolation: timm's name of the interpolation of 'crop'.
    """
    if kind == 'jitter':
        return before_tensor(transform, transforms.ColorJitter(_JITTER, _JITTER, _JITTER))
    crop = RandomResizedCropAndInterpolation(size, scale=_CROP_SCALE, interpolation=interpolation)
    return transforms.Compose([crop, *transform.transforms[tensor_step(transform.transforms):]])


def before_tensor(transform: transforms.Compose, step: Callable[[Any], Any]) -> transforms.Compose:
    """Return the transform with a further step directly before the conversion to a tensor."""
    steps = list(transform.transforms)
    steps.insert(tensor_step(steps), step)
    return transforms.Compose(steps)
