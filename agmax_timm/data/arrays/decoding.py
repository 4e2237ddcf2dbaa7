"""Decoding of a file to an array with PIL's pixels. JPEG is decoded without PIL."""
import io
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image

from ..sources.decoding import decode, turn_of

_COLORS = ('YCbCr', 'RGB', 'Gray')  # libjpeg-turbo and PIL convert CMYK to different RGB


def decode_array(file: BinaryIO, mode: str = 'RGB', exif_orientation: bool = False) -> np.ndarray:
    """Decode a file to the pixels of decode(), bit for bit.

    Args:
        mode: 'RGB'.
        exif_orientation: Whether to turn the image as its EXIF orientation says.

    Returns:
        Pixels [H, W, 3], uint8.

    Raises:
        UndecodableError: The file is not a complete image, see decode.
    """
    content = file.read()
    if content[:2] == b'\xff\xd8':
        try:
            height, width, color, _ = simplejpeg.decode_jpeg_header(content)
            if color in _COLORS and height * width <= (Image.MAX_IMAGE_PIXELS or float('inf')):
                turn = turn_of(Image.open(io.BytesIO(content))) if exif_orientation else None
                pixels = simplejpeg.decode_jpeg(content)
                return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
        except (ValueError, OSError):  # damaged or unsupported; PIL decides
            pass
    return np.array(decode(io.BytesIO(content), mode, exif_orientation))
