"""Images that are decoded once and kept as pixels in memory that loader workers share."""
import logging
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from timm.data import ImageDataset
from torch.utils.data import Dataset
from tqdm import tqdm

from ...base.processes import cores
from ..sources.decoding import DecodedDataset, UndecodableError
from ..sources.folder import FolderReader
from .free_memory import free_memory

_logger = logging.getLogger(__name__)

_PROBES = 64  # number of images from which the size of all images is estimated
_CHUNK = 1024
_SMALL = 128 * 128 * 3  # bytes of an image up to which one thread is faster than several, which wait for Python's lock
_MODES = ('RGB', 'L')  # modes for which PIL accepts an array


class ImageMemory:
    """Pixels of the images of a data set, by index. Forked processes share them; other processes have no images.

    Args:
        num_bytes: Maximum size of the pixels of all images. The system allocates memory when an image is added.
    """

    def __init__(self, count: int, num_bytes: int):
        self._pixels: np.ndarray | None = np.frombuffer(mmap.mmap(-1, max(1, num_bytes)), np.uint8)
        self._shapes = np.zeros((count, 3), np.int32)
        self._starts = np.zeros(count, np.int64)
        self._targets = np.zeros(count, np.int64)
        self.num_bytes = 0

    def add(self, index: int, pixels: np.ndarray, target: int) -> bool:
        """Keep an image [H, W, C], uint8, and its target. Return whether there was enough memory."""
        if self._pixels is None or self.num_bytes + pixels.size > len(self._pixels):
            return False
        self._pixels[self.num_bytes:self.num_bytes + pixels.size] = pixels.reshape(-1)
        self._shapes[index], self._starts[index], self._targets[index] = pixels.shape, self.num_bytes, target
        self.num_bytes += pixels.size
        return True

    def get(self, index: int) -> tuple[np.ndarray, int] | None:
        """Return the pixels [H, W, C], which are read-only, and the target. None if the image is not kept."""
        return None if self._pixels is None or not self._shapes[index, 0] else self.get_kept(index)

    def get_kept(self, index: int) -> tuple[np.ndarray, int]:
        """Return the pixels and the target of an image that is kept, in a process that has the images."""
        assert self._pixels is not None
        start, shape = self._starts[index], self._shapes[index]
        pixels = self._pixels[start:start + shape.prod()].reshape(shape)
        pixels.flags.writeable = False  # all workers share them
        return pixels, int(self._targets[index])

    @property
    def common_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of all images. None if they differ or an image is not kept."""
        first = tuple(self._shapes[0].tolist())
        return first if first[0] and (self._shapes == first).all() else None

    @property
    def is_available(self) -> bool:
        """Whether this process has the images: it decoded them, or was forked from the process that did."""
        return self._pixels is not None

    def __getstate__(self):
        return {**self.__dict__, '_pixels': None}


def keep_decoded(dataset: Dataset, limit: int) -> bool:
    """Decode the images of a data set and keep them, if all images together fit into `limit` bytes.

    Only for folders of images. Damaged images are not kept: the policy of the data set applies when they are loaded.

    Args:
        dataset: Data set, changed in place.
        limit: Maximum size of the pixels in bytes. 0 keeps no images.

    Returns:
        Whether images are kept.
    """
    if limit and type(dataset) is ImageDataset:
        _logger.warning('Images are not kept in memory: this needs a data set of agmax_timm.create_dataset.')
    if not limit or type(dataset) is not DecodedDataset or dataset.load_bytes:
        return False
    if dataset.input_img_mode not in _MODES or not isinstance(dataset.reader, FolderReader):
        return False  # other readers may have open files, which workers must not share
    count = len(dataset)
    limit = min(limit, free_memory() or limit)  # free_memory() is 0 if the system does not report it
    probes = (_decode(dataset, index) for index in np.linspace(0, count - 1, min(count, _PROBES)).astype(int))
    sizes = [found[0].size for found in probes if found is not None] or [0]
    expected = int(np.mean(sizes) * count)
    if expected > limit:
        _logger.info(f'Images are not kept in memory: {count} images need {_gib(expected)}, the limit is '
                     f'{_gib(limit)}.')
        return False
    memory = ImageMemory(count, limit)
    hidden = None if os.environ.get('LOCAL_RANK', '0') == '0' else True  # None hides the bar without a terminal
    decoded = _decode_all(dataset, threads=cores() if np.mean(sizes) > _SMALL else 1)
    with tqdm(decoded, total=count, desc='Decoding', unit='image', disable=hidden, leave=False) as bar:
        kept = sum(memory.add(index, *found) for index, found in enumerate(bar) if found is not None)
    dataset.memory = memory
    _logger.info(f'{kept} of {count} images are decoded and kept in {_gib(memory.num_bytes)} of memory.')
    return True


def _decode_all(dataset: DecodedDataset, threads: int) -> Iterator[tuple[np.ndarray, int] | None]:
    """Iterate over the decoded images in order. A damaged image is None."""
    decode = partial(_decode, dataset)
    if threads == 1:
        yield from map(decode, range(len(dataset)))
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(dataset), _CHUNK):
            yield from pool.map(decode, range(start, min(start + _CHUNK, len(dataset))))


def _decode(dataset: DecodedDataset, index: int) -> tuple[np.ndarray, int] | None:
    try:
        image, target = dataset.load(int(index))
    except UndecodableError:
        return None
    return np.atleast_3d(np.asarray(image)), target


def _gib(num_bytes: int) -> str:
    return f'{num_bytes / 2 ** 30:.2f} GiB'
