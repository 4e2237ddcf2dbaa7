"""Colours of uint8 arrays [H, W, 3], with the pixels of PIL's ImageOps and ImageEnhance and of torchvision's on PIL.

Each function has the arguments of timm's or torchvision's function of its name; further keywords, of which timm hands
over two to every operation, are ignored. No image is changed in place; it may be returned itself where nothing changes.
"""
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from torchvision.transforms import functional

from .truncation import TRUNCATE

# PIL's luma in 1/65536. Sums of such numbers below 256 have 24 bits, so that float32 holds them exactly; the last
# column rounds what is then cut off.
_LUMA = np.array([[19595, 38470, 7471, 32768]], np.float32) / 65536


def blend(image1: np.ndarray, image2: np.ndarray, alpha: float) -> np.ndarray:
    """Image.blend: image1 + alpha * (image2 - image1), cut off to whole levels."""
    return cv2.addWeighted(image2, alpha, image1, 1. - alpha, TRUNCATE)


def luma(image: np.ndarray) -> np.ndarray:
    """Image.convert('L'): uint8 [H, W]. cv2.cvtColor is 1 level off in a few pixels."""
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)


def grayscale(image: np.ndarray) -> np.ndarray:
    """The luma in all three channels."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def adjust_brightness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with black; factor 1 is the image, 0 is black."""
    return cv2.addWeighted(image, factor, image, 0., TRUNCATE)


def adjust_contrast(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with the mean luma; factor 1 is the image, 0 is gray."""
    gray = luma(image)
    mean = int(cv2.sumElems(gray)[0] / gray.size + .5)
    return cv2.addWeighted(image, factor, image, 0., (1. - factor) * mean + TRUNCATE)


def adjust_saturation(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Blend with the luma of each pixel; factor 1 is the image, 0 is gray."""
    return blend(grayscale(image), image, factor)


def desaturate(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Take so much of the saturation away."""
    return adjust_saturation(image, min(1., max(0., 1. - factor)))


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by this part of a turn; by PIL, whose HSV has 8 bits and a rounding of its own."""
    return np.array(functional.adjust_hue(Image.fromarray(image), factor))


def lighting(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Add a number of levels, rounded to the nearest, to each channel; clipped to 0 and 255.

    Args:
        image: uint8 [H, W, 3].
        shift: Levels [3], as the PCA lighting draws them.
    """
    return cv2.add(image, np.array([*np.rint(np.asarray(shift)), 0.]))


def invert(image: np.ndarray, **_) -> np.ndarray:
    return cv2.bitwise_not(image)


def solarize(image: np.ndarray, thresh: float, **_) -> np.ndarray:
    """Invert the levels that are not below the threshold."""
    inverted = cv2.threshold(image, math.ceil(thresh) - 1, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_xor(image, inverted)


def solarize_add(image: np.ndarray, add: int, thresh: float = 128, **_) -> np.ndarray:
    """Add to the levels that are below the threshold; add is not negative."""
    added = cv2.threshold(image, math.ceil(thresh) - 1, min(255, add), cv2.THRESH_BINARY_INV)[1]
    return cv2.add(image, added)


def posterize(image: np.ndarray, bits_to_keep: int, **_) -> np.ndarray:
    if bits_to_keep >= 8:
        return image
    return image & np.uint8(256 - 2 ** (8 - max(0, bits_to_keep)))


def auto_contrast(image: np.ndarray, **_) -> np.ndarray:
    """Stretch each channel to all levels."""
    return _map_planes(image, _stretched_levels)


def equalize(image: np.ndarray, **_) -> np.ndarray:
    """Give each channel a histogram as even as can be."""
    return _map_planes(image, _equal_levels)


def _stretched_levels(plane: np.ndarray) -> np.ndarray:
    """PIL's table [256] for one channel [H, W]."""
    low, high, *_ = cv2.minMaxLoc(plane)
    if high <= low:
        return np.arange(256)
    scale = 255. / (high - low)
    return np.trunc(np.arange(256) * scale - low * scale)


def _equal_levels(plane: np.ndarray) -> np.ndarray:
    """PIL's table [256] for one channel [H, W]."""
    histogram = cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    below = np.cumsum(histogram) - histogram
    # Pixels below the highest level there is.
    step = below[histogram.nonzero()[0][-1]] // 255
    return (below + step // 2) // step if step else np.arange(256)


def _map_planes(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Replace each level of a channel by table(channel)'s, clipped to 0 and 255. Faster than on all at a time."""
    planes = cv2.split(image)
    return cv2.merge([cv2.LUT(plane, table(plane).clip(0, 255).astype(np.uint8)) for plane in planes])
