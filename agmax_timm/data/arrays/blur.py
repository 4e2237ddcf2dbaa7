"""Sharpness and blur of uint8 arrays [H, W, 3]. The pixels are those of PIL's filters and of torchvision's blur."""
import math
import random

import cv2
import numpy as np
from PIL import Image
from timm.data import auto_augment

from .colour import blend

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_BOX_BLURS = 3


def sharpness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with a smoothed image, like ImageEnhance.Sharpness. Factor 1 is the image, factor 2 is sharper."""
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    # PIL's filter does not change the border.
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[border] = image[border]
    return blend(smooth, image, factor)


def gaussian_blur(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blur with the radius `factor`, by PIL.

    For a whole radius, the weights of PIL's boxes are simple fractions, so many sums are half-way between two levels.
    float32 would round them to the wrong side: 3 levels difference at radius 1.
    """
    return np.array(auto_augment.gaussian_blur(Image.fromarray(image), factor))


def gaussian_blur_rand(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blur with a radius between 0.1 and 2 * factor, drawn as in timm."""
    box = _box(random.uniform(.1, 2. * factor))
    # PIL's order: the boxes of one dimension, then those of the other. Each result is rounded.
    for kernel in [box] * _BOX_BLURS + [box.T] * _BOX_BLURS:
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return image


def _box(radius: float) -> np.ndarray:
    """Return the box kernel [1, N] that approximates a Gaussian when it is applied three times.

    All weights are equal except the first and the last one. These are smaller, so that the variance is a third of the
    Gaussian's. See 'Theoretical Foundations of Gaussian Convolution by Extended Box Filtering',
    https://doi.org/10.1007/978-3-642-24785-9_38

    Args:
        radius: Standard deviation of the Gaussian in pixels.
    """
    variance = radius ** 2 / _BOX_BLURS
    whole = math.floor((math.sqrt(12. * variance + 1.) - 1.) / 2.)
    count = 2 * whole + 1
    part = count * (whole * (whole + 1) - 3. * variance) / (6. * (variance - (whole + 1) ** 2))
    box = np.full((1, count + 2), 1. / (count + 2. * part), np.float32)
    box[0, [0, -1]] *= part
    return box


def convolve_gaussian(image: np.ndarray, kernel_size: int, sigma: float) -> np.ndarray:
    """Blur like torchvision's gaussian_blur: a square kernel, reflection at the border, rounded to the nearest level.

    Args:
        image: uint8 [H, W, 3].
        kernel_size: Odd side of the kernel in pixels.
        sigma: Standard deviation in pixels.
    """
    distance = np.arange(kernel_size) - kernel_size // 2
    kernel = np.exp(-.5 * (distance / sigma) ** 2)
    kernel /= kernel.sum()
    # Smaller weights change no level.
    kernel = kernel[kernel > 1e-6]
    blurred = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.convertScaleAbs(blurred)
