"""timm's training transforms on arrays: the same steps in the same order, with the same random draws.

timm and torchvision draw everything as before; only what is done to the pixels is done by faster means. From one random
state both make the same view, but for the levels that docs/performance.md states.
"""
import copy
import random
from functools import partial, singledispatch
from typing import Any, Callable, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, interp_mode_to_str
from torchvision import transforms

from ..augment import Lighting
from ..errors import UnequalError
from . import blur, colour
from .operations import OPERATIONS

Step = Callable[[np.ndarray], np.ndarray]  # of pixels [H, W, 3], uint8

_RESIZES = ('bilinear', 'bicubic')


class ArrayTransform:
    """timm's training transform, on arrays.

    Args:
        transform: transforms.Compose of timm.data.create_transform, extended or not, that ends in a uint8 tensor.

    Raises:
        UnequalError: a step has no equal on arrays.
    """

    def __init__(self, transform: transforms.Compose):
        *steps, last = transform.transforms
        if type(last) is not MaybePILToTensor:
            raise UnequalError('pixels that the workers normalise')
        self.transform = transform
        self.steps = [on_arrays(step) for step in steps]

    def __call__(self, image: Union[Image.Image, np.ndarray]) -> torch.Tensor:
        """
        Args:
            image: RGB image, or its pixels [H, W, 3], uint8.

        Returns:
            A view [3, height, width], uint8, its channels last in memory.
        """
        pixels = np.array(image) if isinstance(image, Image.Image) else image
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f'images must be RGB, got pixels of {pixels.shape}: use augment_backend timm')
        for step in self.steps:
            pixels = step(pixels)
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'


@singledispatch
def on_arrays(step: Any) -> Step:
    """The equal of a transform of PIL images. Raises UnequalError where there is none."""
    raise UnequalError(type(step).__name__)


@on_arrays.register
def _(step: transforms.Compose) -> Step:
    return _Chain([on_arrays(inner) for inner in step.transforms])


@on_arrays.register
def _(step: transforms.RandomApply) -> Step:
    chain = _Chain([on_arrays(inner) for inner in step.transforms])
    return lambda pixels: pixels if step.p < torch.rand(1) else chain(pixels)


@on_arrays.register
def _(step: RandomResizedCropAndInterpolation) -> Step:
    modes = step.interpolation if isinstance(step.interpolation, tuple) else (step.interpolation,)
    names = [_resize_name(mode) for mode in modes]

    def crop(pixels: np.ndarray) -> np.ndarray:
        top, left, height, width = step.get_params(_planes(pixels), step.scale, step.ratio)
        name = random.choice(names) if len(names) > 1 else names[0]
        return resize(pixels[top:top + height, left:left + width], step.size, name)
    return crop


@on_arrays.register
def _(step: transforms.Resize) -> Step:
    name = _resize_name(step.interpolation)
    if isinstance(step.size, int) or len(step.size) != 2:
        raise UnequalError('Resize of the smaller side')
    return lambda pixels: resize(pixels, step.size, name)


@on_arrays.register
def _(step: transforms.RandomCrop) -> Step:
    if step.pad_if_needed or step.padding_mode != 'constant' or step.fill or len(step.padding) != 2:
        raise UnequalError(f'RandomCrop with padding {step.padding_mode}')
    width, height = step.padding

    def crop(pixels: np.ndarray) -> np.ndarray:
        padded = cv2.copyMakeBorder(pixels, height, height, width, width, cv2.BORDER_CONSTANT)
        top, left, rows, columns = step.get_params(_planes(padded), step.size)
        return padded[top:top + rows, left:left + columns]
    return crop


@on_arrays.register
def _(step: transforms.RandomHorizontalFlip) -> Step:
    return lambda pixels: cv2.flip(pixels, 1) if torch.rand(1) < step.p else pixels


@on_arrays.register
def _(step: transforms.RandomVerticalFlip) -> Step:
    return lambda pixels: cv2.flip(pixels, 0) if torch.rand(1) < step.p else pixels


@on_arrays.register
def _(step: transforms.ColorJitter) -> Step:
    adjust = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)

    def jitter(pixels: np.ndarray) -> np.ndarray:
        order, *factors = step.get_params(step.brightness, step.contrast, step.saturation, step.hue)
        for number in order.tolist():
            if factors[number] is not None:
                pixels = adjust[number](pixels, factors[number])
        return pixels
    return jitter


@on_arrays.register
def _(step: transforms.RandomGrayscale) -> Step:
    return lambda pixels: colour.grayscale(pixels) if torch.rand(1) < step.p else pixels


@on_arrays.register
def _(step: transforms.GaussianBlur) -> Step:
    if step.kernel_size[0] != step.kernel_size[1]:
        raise UnequalError(f'GaussianBlur of {step.kernel_size}')
    return lambda pixels: blur.convolve_gaussian(pixels, step.kernel_size[0], step.get_params(*step.sigma))


@on_arrays.register
def _(step: Lighting) -> Step:
    return lambda pixels: colour.lighting(pixels, step.draw_shift().numpy())


@on_arrays.register
def _(step: auto_augment.AutoAugment) -> Step:
    policy = [[_operation(op) for op in sub_policy] for sub_policy in step.policy]
    return auto_augment.AutoAugment(policy)


@on_arrays.register
def _(step: auto_augment.RandAugment) -> Step:
    return auto_augment.RandAugment([_operation(op) for op in step.ops], step.num_layers, step.choice_weights)


@on_arrays.register
def _(step: auto_augment.AugMixAugment) -> Step:
    if step.blended:
        raise UnequalError('AugMix with b1')
    mix = copy.copy(step)
    mix.ops = [_operation(op) for op in step.ops]
    mix._apply_basic = partial(_mix_chains, mix)
    return mix


def resize(pixels: np.ndarray, size: Tuple[int, int], mode: str) -> np.ndarray:
    """PIL's resize of pixels [H, W, 3] to (height, width), by torch's antialiased one: 'bilinear' or 'bicubic'."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    # With the batch's own stride torch sees that channels are last in memory, and keeps them there.
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(planes, tuple(size), mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()


class _Chain:
    def __init__(self, steps: Sequence[Step]):
        self.steps = steps

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        for step in self.steps:
            pixels = step(pixels)
        return pixels


def _planes(pixels: np.ndarray) -> torch.Tensor:
    """As a tensor [3, H, W], whose size is all that is looked at."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _resize_name(mode: Any) -> str:
    name = interp_mode_to_str(mode)
    if name not in _RESIZES:
        raise UnequalError(f'interpolation {name}')
    return name


def _operation(op: auto_augment.AugmentOp) -> auto_augment.AugmentOp:
    """timm's operation of a policy, with its draws, on arrays."""
    if op.name not in OPERATIONS:
        raise UnequalError(op.name)
    op = copy.copy(op)
    op.aug_fn = OPERATIONS[op.name]
    return op


def _mix_chains(mix: auto_augment.AugMixAugment, pixels: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """AugMix: the weighted sum of chains of operations, blended with the image. Draws and rounds as timm does."""
    total = np.zeros(pixels.shape, np.float32)
    for weight in weights:
        depth = mix.depth if mix.depth > 0 else np.random.randint(1, 4)
        chain = _Chain(np.random.choice(mix.ops, depth, replace=True))
        total += weight * chain(pixels).astype(np.float32)
    return colour.blend(pixels, total.clip(0, 255).astype(np.uint8), share)
