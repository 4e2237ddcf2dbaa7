"""Colour operations on uint8 arrays [H, W, 3]. The pixels are those of PIL's ImageOps and ImageEnhance.

Each function has the arguments of timm's or torchvision's function of the same name. Further keywords are ignored,
because timm gives two of them to every operation. Images are not changed in place. An unchanged image may be returned
itself.
"""
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from torchvision.transforms import functional

# Truncates results to integers, as in PIL: it is added before OpenCV rounds to the nearest integer. It is slightly more
# than -0.5, so that a whole number with an error of float32 arithmetic (at most 5e-5) is not changed. PIL may truncate
# such a number to 1 level less, depending on its last bits.
TRUNCATE = -.5 + 2. ** -13
# Weights of PIL's luma, in multiples of 1/65536. Their sums below 256 have 24 bits, so they are exact in float32. The
# last column is added before truncation, so the result is rounded.
_LUMA = np.array([[19595, 38470, 7471, 32768]], np.float32) / 65536


def blend(image1: np.ndarray, image2: np.ndarray, alpha: float) -> np.ndarray:
    """Return image1 + alpha * (image2 - image1), truncated to whole levels, like Image.blend."""
    return cv2.addWeighted(image2, alpha, image1, 1. - alpha, TRUNCATE)


def luma(image: np.ndarray) -> np.ndarray:
    """Return the luma, uint8 [H, W], of Image.convert('L'). cv2.cvtColor differs by 1 level in a few pixels."""
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)


def grayscale(image: np.ndarray) -> np.ndarray:
    """Return the luma in all three channels."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def adjust_brightness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with black. Factor 1 is the image, factor 0 is black."""
    return cv2.addWeighted(image, factor, image, 0., TRUNCATE)


def adjust_contrast(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with the mean luma. Factor 1 is the image, factor 0 is gray."""
    gray = luma(image)
    mean = int(cv2.sumElems(gray)[0] / gray.size + .5)
    return cv2.addWeighted(image, factor, image, 0., (1. - factor) * mean + TRUNCATE)


def adjust_saturation(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with the luma of each pixel. Factor 1 is the image, factor 0 is gray."""
    return blend(grayscale(image), image, factor)


def desaturate(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Reduce the saturation. Factor 0 is the image, factor 1 is gray."""
    return adjust_saturation(image, min(1., max(0., 1. - factor)))


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Rotate the hue by a fraction of a turn. Done by PIL, because its HSV has 8 bits and a special rounding."""
    return np.array(functional.adjust_hue(Image.fromarray(image), factor))


def lighting(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shift each channel by a number of levels, rounded to the nearest. The result is clipped to [0, 255].

    Args:
        image: Image [H, W, 3], uint8.
        shift: Shift [3] in levels, see Lighting.draw_shift.
    """
    return cv2.add(image, np.array([*np.rint(np.asarray(shift)), 0.]))


def invert(image: np.ndarray, **_) -> np.ndarray:
    return cv2.bitwise_not(image)


def solarize(image: np.ndarray, thresh: float, **_) -> np.ndarray:
    """Invert the levels that are equal to the threshold or above."""
    inverted = cv2.threshold(image, math.ceil(thresh) - 1, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_xor(image, inverted)


def solarize_add(image: np.ndarray, add: int, thresh: float = 128, **_) -> np.ndarray:
    """Add `add`, which is not negative, to the levels below the threshold."""
    added = cv2.threshold(image, math.ceil(thresh) - 1, min(255, add), cv2.THRESH_BINARY_INV)[1]
    return cv2.add(image, added)


def posterize(image: np.ndarray, bits_to_keep: int, **_) -> np.ndarray:
    if bits_to_keep >= 8:
        return image
    return image & np.uint8(256 - 2 ** (8 - max(0, bits_to_keep)))


def auto_contrast(image: np.ndarray, **_) -> np.ndarray:
    """Stretch the levels of each channel to [0, 255]."""
    return _map_planes(image, _stretched_levels)


def equalize(image: np.ndarray, **_) -> np.ndarray:
    """Equalize the histogram of each channel."""
    return _map_planes(image, _equal_levels)


def _stretched_levels(plane: np.ndarray) -> np.ndarray:
    """Return PIL's lookup table [256] of autocontrast for one channel [H, W]."""
    low, high, *_ = cv2.minMaxLoc(plane)
    if high <= low:
        return np.arange(256)
    scale = 255. / (high - low)
    return np.trunc(np.arange(256) * scale - low * scale)


def _equal_levels(plane: np.ndarray) -> np.ndarray:
    """Return PIL's lookup table [256] of equalize for one channel [H, W]."""
    histogram = cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    below = np.cumsum(histogram) - histogram
    # Number of pixels below the highest level of the image.
    step = below[histogram.nonzero()[0][-1]] // 255
    return (below + step // 2) // step if step else np.arange(256)


def _map_planes(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply the lookup table of each channel, clipped to [0, 255]. Faster than one call for all channels."""
    planes = cv2.split(image)
    return cv2.merge([cv2.LUT(plane, table(plane).clip(0, 255).astype(np.uint8)) for plane in planes])
