"""Rotation, shear and translation of uint8 arrays. The pixels are those of PIL's Image.transform.

PIL interpolates at pixel centres in double precision and repeats the pixels at the border. It truncates the result to
an integer, and gives the fill colour to positions outside of the image. Shear and translation move each row (or column)
as a whole, so a row has one set of weights: 2 for bilinear, 4 for bicubic. Rotation uses OpenCV. Its bicubic kernel
(a = -0.75) is converted to PIL's (a = -1). PIL itself applies other filters than bilinear and bicubic.
"""
import math
import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image
from timm.data import auto_augment

from .colour import TRUNCATE

Fill = tuple[int, int, int] | None
Resample = int | Sequence[int]

_BILINEAR, _BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_LARGEST = 2 ** 15 - 2  # maximum side of an image for cv2.remap


def _is_exact(interpolation: int) -> bool:
    """Whether cv2.remap interpolates at the exact position. Older releases round it to 1/32 pixel."""
    ramp = np.arange(8, dtype=np.float32)[None, :, None].repeat(8, 0).repeat(3, 2)
    x = np.array([[4., 4. + 1 / 64, 4. + 1 / 32]], np.float32)
    return len(np.unique(cv2.remap(ramp, x, np.full_like(x, 4.), interpolation)[..., 0])) == 3


_IS_EXACT = all(map(_is_exact, (cv2.INTER_LINEAR, cv2.INTER_CUBIC)))


def shear_x(image: np.ndarray, factor: float, **kwargs) -> np.ndarray:
    """Shear horizontally: each pixel comes from factor * y pixels further right."""
    return _slide(auto_augment.shear_x, image, factor, factor * _centres(image.shape[0]), **kwargs)


def shear_y(image: np.ndarray, factor: float, **kwargs) -> np.ndarray:
    """Shear vertically: each pixel comes from factor * x pixels further down."""
    return _slide(auto_augment.shear_y, image, factor, factor * _centres(image.shape[1]), down=True, **kwargs)


def translate_x_abs(image: np.ndarray, pixels: float, **kwargs) -> np.ndarray:
    """Translate horizontally: each pixel comes from `pixels` pixels further right."""
    return _slide(auto_augment.translate_x_abs, image, pixels, np.full(image.shape[0], float(pixels)), **kwargs)


def translate_y_abs(image: np.ndarray, pixels: float, **kwargs) -> np.ndarray:
    """Translate vertically: each pixel comes from `pixels` pixels further down."""
    shifts = np.full(image.shape[1], float(pixels))
    return _slide(auto_augment.translate_y_abs, image, pixels, shifts, down=True, **kwargs)


def translate_x_rel(image: np.ndarray, pct: float, **kwargs) -> np.ndarray:
    """Translate horizontally: each pixel comes from the fraction `pct` of the width further right."""
    return translate_x_abs(image, pct * image.shape[1], **kwargs)


def translate_y_rel(image: np.ndarray, pct: float, **kwargs) -> np.ndarray:
    """Translate vertically: each pixel comes from the fraction `pct` of the height further down."""
    return translate_y_abs(image, pct * image.shape[0], **kwargs)


def rotate(image: np.ndarray, degrees: float, fillcolor: Fill = None, resample: Resample = _BICUBIC) -> np.ndarray:
    """Rotate counter-clockwise around the centre, without a change of size.

    PIL rotates by multiples of 90 degrees, which it transposes, and whatever OpenCV cannot do exactly.
    """
    resample = _draw(resample)
    by_opencv = _IS_EXACT and resample in (_BILINEAR, _BICUBIC) and max(image.shape) <= _LARGEST
    if degrees % 90. == 0. or not by_opencv:
        return _by_timm(auto_augment.rotate, image, degrees, fillcolor, resample)

    height, width = image.shape[:2]
    # As in PIL: rounded to 15 digits, with the sign of the inverse rotation.
    angle = -math.radians(degrees % 360.)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    rows, columns = _centres(height), _centres(width)
    x_offsets = sine * rows + (cosine * -width / 2 + sine * -height / 2 + width / 2)
    y_offsets = cosine * rows + (-sine * -width / 2 + cosine * -height / 2 + height / 2)
    # In OpenCV, position 0 is the centre of the first pixel.
    x = np.add.outer(x_offsets - .5, cosine * columns, dtype=np.float32)
    y = np.add.outer(y_offsets - .5, -sine * columns, dtype=np.float32)
    rotated = (_bilinear if resample == _BILINEAR else _bicubic)(image.astype(np.float32), x, y)

    x_first, x_end = _inside(cosine, x_offsets, width)
    y_first, y_end = _inside(-sine, y_offsets, height)
    return _fill_outside(rotated, np.maximum(x_first, y_first), np.minimum(x_end, y_end), fillcolor)


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate an image, float32 [H, W, 3], at positions [H, W] like PIL's bilinear filter. Returns uint8."""
    return cv2.convertScaleAbs(_interpolate(image, x, y, cv2.INTER_LINEAR), beta=TRUNCATE)


def _bicubic(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate an image, float32 [H, W, 3], at positions [H, W] like PIL's bicubic filter. Returns uint8.

    The difference from PIL is 0.2 levels rms on photographs. A bicubic kernel is b + a * h. The part b is the bilinear
    kernel for the position t * t * (3 - 2 * t) between two neighbours in place of t. So along one axis, the kernel with
    a = -1 is 4/3 of OpenCV's (a = -0.75) minus 1/3 of b. In the product of both axes, the term h * h is then too small
    by 0.25. The factor 1.35 in place of 4/3 gave the smallest difference on photographs.
    """
    cubic = _interpolate(image, x, y, cv2.INTER_CUBIC)
    base = _interpolate(image, _smoothstep(x), _smoothstep(y), cv2.INTER_LINEAR)
    return cv2.addWeighted(cubic, 1.35, base, -.35, TRUNCATE, dtype=cv2.CV_8U)


def _interpolate(image: np.ndarray, x: np.ndarray, y: np.ndarray, interpolation: int) -> np.ndarray:
    return cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE)


def _smoothstep(position: np.ndarray) -> np.ndarray:
    """Replace t, the fraction of a position, by t * t * (3 - 2 * t)."""
    whole = np.floor(position)
    t = position - whole
    moved = 3. - 2. * t
    moved *= t
    moved *= t
    moved += whole
    return moved


def _draw(resample: Resample) -> int:
    """Return the filter. One of several filters is drawn as in timm's operations."""
    return resample if isinstance(resample, int) else random.choice(resample)


def _by_timm(operation: Callable, image: np.ndarray, amount: float, fill: Fill, resample: int) -> np.ndarray:
    """Apply timm's operation to a PIL image."""
    return np.array(operation(Image.fromarray(image), amount, fillcolor=fill, resample=resample))


def _centres(count: int) -> np.ndarray:
    """Return the positions of the centres of `count` pixels."""
    return np.arange(count) + .5


def _inside(slope: float, offset: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns x in [first, end) of each row with 0 <= slope * (x + 0.5) + offset < size, for slope != 0."""
    at_start, at_end = -offset / slope - .5, (size - offset) / slope - .5
    if slope > 0.:
        return np.ceil(at_start), np.ceil(at_end)
    return np.floor(at_end) + 1., np.floor(at_start) + 1.


def _fill_outside(image: np.ndarray, first: np.ndarray, end: np.ndarray, fill: Fill) -> np.ndarray:
    """Fill each row with the colour, in place, except the columns from `first` to `end`."""
    width = image.shape[1]
    columns = np.arange(width, dtype=np.int32)
    first, end = (bound.clip(0, width).astype(np.int32)[:, None] for bound in (first, end))
    outside = (columns < first) | (columns >= end)
    colour = np.empty_like(image)
    colour[0] = (0, 0, 0) if fill is None else fill
    colour[1:] = colour[0]
    return cv2.copyTo(colour, outside.view(np.uint8), image)


def _slide(
        operation: Callable,
        image: np.ndarray,
        amount: float,
        shifts: np.ndarray,
        down: bool = False,
        fillcolor: Fill = None,
        resample: Resample = _BICUBIC,
) -> np.ndarray:
    """Shift each row to the left, or each column up.

    Args:
        operation: timm's operation, which is used for filters other than bilinear and bicubic.
        image: Image [H, W, 3], uint8.
        amount: Argument of the operation.
        shifts: Shift of each row [H] or column [W] in pixels.
        down: Whether columns are shifted.
        fillcolor: Colour of positions outside of the image. None is black.
        resample: PIL's filter, or several filters of which one is drawn.
    """
    resample = _draw(resample)
    if resample not in (_BILINEAR, _BICUBIC):
        return _by_timm(operation, image, amount, fillcolor, resample)
    if down:
        return cv2.transpose(_slide_rows(cv2.transpose(image), shifts, fillcolor, resample))
    return _slide_rows(image, shifts, fillcolor, resample)


def _slide_rows(image: np.ndarray, shifts: np.ndarray, fill: Fill, resample: int) -> np.ndarray:
    height, width = image.shape[:2]
    whole = np.floor(shifts)
    weights = _weights(shifts - whole, resample)
    neighbours = weights.shape[1]
    # A position in the image has neighbours up to two pixels outside. Windows may reach into the next or previous row.
    # Such positions are outside of the image and get the fill colour.
    padded = cv2.copyMakeBorder(image, 1, 1, 2, 2, cv2.BORDER_REPLICATE)
    span, stride = width + neighbours - 1, width + 4
    windows = np.ndarray((padded.size // 3 - span + 1, 3 * span), np.uint8, padded, strides=(3, 1))
    first_neighbour = 3 - neighbours // 2 + whole.clip(-width - 1, width + 1).astype(np.int64)
    rows = windows[np.arange(1, height + 1) * stride + first_neighbour]
    if (shifts == shifts[0]).all():
        rows = rows.reshape(height, span, 3)
        moved = cv2.filter2D(rows, -1, weights[:1], anchor=(0, 0), delta=TRUNCATE)[:, :width]
        moved = np.ascontiguousarray(moved)
    else:
        moved = cv2.convertScaleAbs(_weighted(rows, weights), beta=TRUNCATE).reshape(image.shape)
    return _fill_outside(moved, *_inside(1., shifts, width), fill)


def _weights(t: np.ndarray, resample: int) -> np.ndarray:
    """Return the weights [N, 2 or 4] of the 2 or 4 neighbours of positions t [N], in [0, 1) between the middle two."""
    s = 1. - t
    weights = [s, t]
    if resample != _BILINEAR:
        weights = [-t * s * s, 1. - t * t * (1. + s), 1. - s * s * (1. + t), -s * t * t]
    return np.stack(weights, 1).astype(np.float32)


def _weighted(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of the neighbours in each row [H, 3 * W], at least 0. The colours are interleaved."""
    rows = rows.astype(np.float32)
    width = rows.shape[1] - 3 * (weights.shape[1] - 1)
    total = rows[:, :width] * weights[:, :1]
    term = np.empty_like(total)
    for i in range(1, weights.shape[1]):
        total += np.multiply(rows[:, 3 * i:3 * i + width], weights[:, i:i + 1], out=term)
    return np.maximum(total, 0., out=total)
