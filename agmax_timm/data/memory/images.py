"""Images that are decoded once and kept as pixels, in memory that loader workers share."""
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

_PROBES = 64  # images that the size of all is estimated from
_CHUNK = 1024
_SMALL = 128 * 128 * 3  # bytes of an image up to which one thread is faster than several that wait for Python's lock
_MODES = ('RGB', 'L')  # that PIL takes an array for


class ImageMemory:
    """Pixels of the images of a data set, by index. Forked processes share them; others do without.

    Args:
        count: Number of images.
        num_bytes: The most that their pixels take. Memory is taken as they come.
    """

    def __init__(self, count: int, num_bytes: int):
        self._pixels: np.ndarray | None = np.frombuffer(mmap.mmap(-1, max(1, num_bytes)), np.uint8)
        self._shapes = np.zeros((count, 3), np.int32)
        self._starts = np.zeros(count, np.int64)
        self._targets = np.zeros(count, np.int64)
        self.num_bytes = 0

    def add(self, index: int, pixels: np.ndarray, target: int) -> bool:
        """Keep an image [H, W, C], uint8, and its target. Returns whether there was room."""
        if self._pixels is None or self.num_bytes + pixels.size > len(self._pixels):
            return False
        self._pixels[self.num_bytes:self.num_bytes + pixels.size] = pixels.reshape(-1)
        self._shapes[index], self._starts[index], self._targets[index] = pixels.shape, self.num_bytes, target
        self.num_bytes += pixels.size
        return True

    def get(self, index: int) -> tuple[np.ndarray, int] | None:
        """Pixels [H, W, C], not to be written to, and target; None of an image that is not kept."""
        return None if self._pixels is None or not self._shapes[index, 0] else self.get_kept(index)

    def get_kept(self, index: int) -> tuple[np.ndarray, int]:
        """Pixels and target of an image that is kept, in a process that has the images."""
        assert self._pixels is not None
        start, shape = self._starts[index], self._shapes[index]
        return self._pixels[start:start + shape.prod()].reshape(shape), int(self._targets[index])

    @property
    def common_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of all images, None where they differ or one is not kept."""
        first = tuple(self._shapes[0].tolist())
        return first if first[0] and (self._shapes == first).all() else None

    @property
    def at_hand(self) -> bool:
        """Whether this process has the images: it was forked from the one that decoded them, or is that one."""
        return self._pixels is not None

    def __getstate__(self):
        return {**self.__dict__, '_pixels': None}


def keep_decoded(dataset: Dataset, limit: int) -> bool:
    """Decode the images of a data set now and keep them, if all of them together take no more than `limit` bytes.

    Of folders of images; other data sets are left as they are. Images that cannot be decoded are not kept: they meet
    the data set's policy when they are loaded.

    Returns:
        Whether images are kept.
    """
    if limit and type(dataset) is ImageDataset:
        _logger.warning("Images are kept in memory for data of agmax_timm.create_dataset, not of timm's.")
    if not limit or type(dataset) is not DecodedDataset or dataset.load_bytes:
        return False
    if dataset.input_img_mode not in _MODES or not isinstance(dataset.reader, FolderReader):
        return False  # other readers may hold files open that workers must not share
    count = len(dataset)
    limit = min(limit, free_memory() or limit)  # 0: the system does not say
    sizes = _sizes(dataset, np.linspace(0, count - 1, min(count, _PROBES)).astype(int).tolist()) or [0]
    expected = int(np.mean(sizes) * count)
    if expected > limit:
        _logger.info(f'{count} images would take {_gib(expected)} of memory, more than {_gib(limit)}: not kept there.')
        return False
    memory = ImageMemory(count, limit)
    hidden = None if os.environ.get('LOCAL_RANK', '0') == '0' else True  # None: where there is no terminal
    decoded = _decode_all(dataset, threads=cores() if np.mean(sizes) > _SMALL else 1)
    with tqdm(decoded, total=count, desc='Decoding', unit='image', disable=hidden, leave=False) as bar:
        kept = sum(memory.add(index, *found) for index, found in enumerate(bar) if found is not None)
    dataset.memory = memory
    of_all = '' if kept == count else f' of {count}'
    _logger.info(f'{kept}{of_all} images are decoded and kept in {_gib(memory.num_bytes)} of memory.')
    return True


def _sizes(dataset: DecodedDataset, indices: list[int]) -> list[int]:
    """Bytes of the pixels of these images, one at a time, without those that cannot be decoded."""
    decoded = (_decode(dataset, index) for index in indices)
    return [found[0].size for found in decoded if found is not None]


def _decode_all(dataset: DecodedDataset, threads: int) -> Iterator[tuple[np.ndarray, int] | None]:
    """What _decode gives of each image, in their order."""
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
