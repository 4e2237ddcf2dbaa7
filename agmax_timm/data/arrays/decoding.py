"""From the bytes of a file to an array: PIL's pixels, for JPEG without PIL."""
import io
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image

from ..sources.decoding import decode

_COLORS = ('YCbCr', 'RGB', 'Gray')  # of CMYK, libjpeg-turbo and PIL make different RGB


def decode_array(file: BinaryIO, mode: str = 'RGB') -> np.ndarray:
    """Decode a file as decode() does, bit for bit.

    Args:
        file: Open file of an image.
        mode: 'RGB'; other modes have no array of three channels.

    Returns:
        Pixels [H, W, 3], uint8.

    Raises:
        UndecodableError: as decode().
    """
    content = file.read()
    if content[:2] == b'\xff\xd8':
        try:
            height, width, color, _ = simplejpeg.decode_jpeg_header(content)
            if color in _COLORS and height * width <= (Image.MAX_IMAGE_PIXELS or float('inf')):
                return simplejpeg.decode_jpeg(content)
        except ValueError:  # damaged, or not for it: PIL says which
            pass
    return np.array(decode(io.BytesIO(content), mode))
