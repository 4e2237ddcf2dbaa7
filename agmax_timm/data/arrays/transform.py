"""timm's training transforms on arrays: the same steps in the same order, with the same random draws.

timm and torchvision make all random draws. Only the operations on the pixels are replaced by faster ones. From the same
random state, both give the same view, except for the differences in levels that docs/performance.md states.
"""
import copy
import random
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, interp_mode_to_str
from torchvision import transforms

from ..augmentation.transforms import Lighting
from . import blur, colour
from .decoding import decode_array
from .operations import OPERATIONS

Step = Callable[[np.ndarray], np.ndarray]  # from pixels [H, W, 3], uint8, to pixels

_RESIZES = ('bilinear', 'bicubic')


class ArrayTransform:
    """timm's training transform, on arrays.

    A DecodedDataset decodes files to arrays while it has such a transform, alone or in TwoViews.

    Args:
        transform: transforms.Compose of timm.data.create_transform or extend_transform that ends in a uint8 tensor.

    Attributes:
        batches: SmallBatches, or None to transform the images one by one.

    Raises:
        NotImplementedError: A step has no equivalent on arrays. The message names the step.
    """
    decode_pixels = staticmethod(decode_array)

    def __init__(self, transform: transforms.Compose):
        self.batches: Callable | None = None
        *steps, last = transform.transforms
        if type(last) is not MaybePILToTensor:
            raise NotImplementedError('normalisation by the workers')
        self.transform = transform
        self.steps = [on_arrays(step) for step in steps]

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """Return a view [3, height, width], uint8, with channels last. It does not share memory with the image.

        Args:
            image: RGB image, or its pixels [H, W, 3], uint8.
        """
        pixels = np.array(image) if isinstance(image, Image.Image) else image
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"images must be RGB, got pixels of {pixels.shape}: use image.convert('RGB')")
        view = np.ascontiguousarray(in_turn(self.steps, pixels))
        if np.may_share_memory(view, pixels):  # no step made new pixels
            view = view.copy()  # timm mixes pairs of images in place
        return torch.from_numpy(view).permute(2, 0, 1)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'


class KeepPixels:
    """Transform that returns the pixels of an image, for a data set whose ArrayTransform is applied elsewhere."""
    decode_pixels = staticmethod(decode_array)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


@singledispatch
def on_arrays(step: Any) -> Step:
    """Return the equivalent of a transform of PIL images. Raise NotImplementedError if there is none."""
    raise NotImplementedError(type(step).__name__)


@on_arrays.register
def _(step: transforms.Compose) -> Step:
    return partial(in_turn, [on_arrays(inner) for inner in step.transforms])


@on_arrays.register
def _(step: transforms.RandomApply) -> Step:
    return partial(_apply, step, [on_arrays(inner) for inner in step.transforms])


@on_arrays.register
def _(step: RandomResizedCropAndInterpolation) -> Step:
    modes = step.interpolation if isinstance(step.interpolation, tuple) else (step.interpolation,)
    return partial(_resized_crop, step, [_resize_name(mode) for mode in modes])


@on_arrays.register
def _(step: transforms.Resize) -> Step:
    if isinstance(step.size, int) or len(step.size) != 2:
        raise NotImplementedError('Resize of the smaller side')
    return partial(resize, size=tuple(step.size), mode=_resize_name(step.interpolation))


@on_arrays.register
def _(step: transforms.RandomCrop) -> Step:
    if step.pad_if_needed or step.padding_mode != 'constant' or step.fill or len(step.padding) != 2:
        raise NotImplementedError(f'RandomCrop with padding {step.padding_mode}')
    return partial(_pad_and_crop, step)


@on_arrays.register
def _(step: transforms.GaussianBlur) -> Step:
    if step.kernel_size[0] != step.kernel_size[1]:
        raise NotImplementedError(f'GaussianBlur of {step.kernel_size}')
    return partial(_gaussian_blur, step)


on_arrays.register(transforms.RandomHorizontalFlip, lambda step: partial(_flip, step, 1))
on_arrays.register(transforms.RandomVerticalFlip, lambda step: partial(_flip, step, 0))
on_arrays.register(transforms.ColorJitter, lambda step: partial(_jitter, step))
on_arrays.register(transforms.RandomGrayscale, lambda step: partial(_grayscale, step))
on_arrays.register(Lighting, lambda step: partial(_lighting, step))


@on_arrays.register
def _(step: auto_augment.AutoAugment) -> Step:
    return auto_augment.AutoAugment([[_operation(op) for op in sub_policy] for sub_policy in step.policy])


@on_arrays.register
def _(step: auto_augment.RandAugment) -> Step:
    return auto_augment.RandAugment([_operation(op) for op in step.ops], step.num_layers, step.choice_weights)


@on_arrays.register
def _(step: auto_augment.AugMixAugment) -> Step:
    if step.blended:
        raise NotImplementedError('AugMix with b1')
    return _AugMix([_operation(op) for op in step.ops], step.alpha, step.width, step.depth)


# The steps are partial() of these functions, because they must be pickled for worker processes.

def in_turn(steps: Sequence[Step], pixels: np.ndarray) -> np.ndarray:
    for step in steps:
        pixels = step(pixels)
    return pixels


def _apply(step: transforms.RandomApply, steps: Sequence[Step], pixels: np.ndarray) -> np.ndarray:
    return pixels if step.p < torch.rand(1) else in_turn(steps, pixels)


def _resized_crop(step: RandomResizedCropAndInterpolation, modes: Sequence[str], pixels: np.ndarray) -> np.ndarray:
    top, left, height, width = step.get_params(_without_data(pixels), step.scale, step.ratio)
    mode = random.choice(modes) if len(modes) > 1 else modes[0]
    return resize(pixels[top:top + height, left:left + width], step.size, mode)


def _pad_and_crop(step: transforms.RandomCrop, pixels: np.ndarray) -> np.ndarray:
    width, height = step.padding
    padded = cv2.copyMakeBorder(pixels, height, height, width, width, cv2.BORDER_CONSTANT)
    top, left, rows, columns = step.get_params(_without_data(padded), step.size)
    return padded[top:top + rows, left:left + columns]


def _flip(step: Any, axis: int, pixels: np.ndarray) -> np.ndarray:
    return cv2.flip(pixels, axis) if torch.rand(1) < step.p else pixels


def _jitter(step: transforms.ColorJitter, pixels: np.ndarray) -> np.ndarray:
    adjust = colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue
    order, *factors = step.get_params(step.brightness, step.contrast, step.saturation, step.hue)
    for number in order.tolist():
        if factors[number] is not None:
            pixels = adjust[number](pixels, factors[number])
    return pixels


def _grayscale(step: transforms.RandomGrayscale, pixels: np.ndarray) -> np.ndarray:
    return colour.grayscale(pixels) if torch.rand(1) < step.p else pixels


def _gaussian_blur(step: transforms.GaussianBlur, pixels: np.ndarray) -> np.ndarray:
    return blur.convolve_gaussian(pixels, step.kernel_size[0], step.get_params(*step.sigma))


def _lighting(step: Lighting, pixels: np.ndarray) -> np.ndarray:
    return colour.lighting(pixels, step.draw_shift().numpy())


class _AugMix(auto_augment.AugMixAugment):
    """timm's AugMix with its draws: the weighted sum of chains of operations, blended with the image."""

    def _apply_basic(self, pixels: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
        total = np.zeros(pixels.shape, np.float32)
        for weight in weights:
            depth = self.depth if self.depth > 0 else np.random.randint(1, 4)
            total += weight * in_turn(list(np.random.choice(self.ops, depth, replace=True)), pixels).astype(np.float32)
        return colour.blend(pixels, total.clip(0, 255).astype(np.uint8), share)


def resize(pixels: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize pixels [H, W, 3] to (height, width) like PIL, by torch's antialiased 'bilinear' or 'bicubic' mode."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    if not pixels.size:  # a crop of less than half a pixel of a tiny image, which is black in PIL
        return np.zeros((*size, 3), np.uint8)
    if not pixels.flags.writeable:  # torch would warn; it copies a crop that is not contiguous anyway
        pixels = pixels.copy()
    # The batch dimension is added first, so that torch recognises channels last in memory and keeps that layout.
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(planes, tuple(size), mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()


def _without_data(pixels: np.ndarray) -> torch.Tensor:
    """Return a tensor [3, H, W] for get_params, which only uses the size."""
    return torch.empty(3, *pixels.shape[:2], device='meta')


def _resize_name(mode: Any) -> str:
    name = interp_mode_to_str(mode)
    if name not in _RESIZES:
        raise NotImplementedError(f"interpolation '{name}'")
    return name


def _operation(op: auto_augment.AugmentOp) -> auto_augment.AugmentOp:
    """Return timm's operation of a policy, with its draws, on arrays."""
    if op.name not in OPERATIONS:
        raise NotImplementedError(op.name)
    op = copy.copy(op)
    op.aug_fn = OPERATIONS[op.name]
    return op
