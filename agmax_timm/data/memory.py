"""Images that are decoded once and kept as pixels, in memory that loader workers share."""
import logging
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Iterator, Optional, Tuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ..processes import cores
from .decoding import DecodedDataset, UndecodableError
from .folder import FolderReader

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
        self._pixels: Optional[np.ndarray] = np.frombuffer(mmap.mmap(-1, max(1, num_bytes)), np.uint8)
        self._shapes = np.zeros((count, 3), np.int32)
        self._starts = np.zeros(count, np.int64)
        self._targets = np.zeros(count, np.int64)
        self.num_bytes = 0

    def add(self, index: int, pixels: np.ndarray, target: int) -> bool:
        """Keep an image [H, W, C], uint8, and its target. Returns whether there was room."""
        if self.num_bytes + pixels.size > len(self._pixels):
            return False
        self._pixels[self.num_bytes:self.num_bytes + pixels.size] = pixels.reshape(-1)
        self._shapes[index], self._starts[index], self._targets[index] = pixels.shape, self.num_bytes, target
        self.num_bytes += pixels.size
        return True

    def get(self, index: int) -> Optional[Tuple[np.ndarray, int]]:
        """Pixels [H, W, C], not to be written to, and target; None of an image that is not kept."""
        height, width, channels = self._shapes[index].tolist()
        if not height or self._pixels is None:
            return None
        start = self._starts[index]
        pixels = self._pixels[start:start + height * width * channels]
        return pixels.reshape(height, width, channels), int(self._targets[index])

    @property
    def common_shape(self) -> Optional[Tuple[int, int, int]]:
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
    if not limit or type(dataset) is not DecodedDataset or dataset.load_bytes:
        return False
    if dataset.input_img_mode not in _MODES or not isinstance(dataset.reader, FolderReader):
        return False  # other readers may hold files open that workers must not share
    count = len(dataset)
    probes = [_decode(dataset, index) for index in np.linspace(0, count - 1, min(count, _PROBES)).astype(int)]
    sizes = [found[0].size for found in probes if found is not None] or [0]
    expected = int(np.mean(sizes) * count)
    if expected > limit:
        _logger.info(f'{count} images would take {_gib(expected)} of memory, more than {_gib(limit)}: not kept there.')
        return False
    memory = ImageMemory(count, limit)
    hidden = None if os.environ.get('LOCAL_RANK', '0') == '0' else True  # None: where there is no terminal
    decoded = _decode_all(dataset, threads=cores() if np.mean(sizes) > _SMALL else 1)
    with tqdm(decoded, total=count, desc='Decoding', unit='image', disable=hidden, leave=False) as bar:
        for index, found in enumerate(bar):
            if found is not None:
                memory.add(index, *found)
    dataset.memory = memory
    _logger.info(f'{count} images are decoded and kept in {_gib(memory.num_bytes)} of memory.')
    return True


def memory_limit(amount: str) -> int:
    """Bytes of an amount of memory: '0.1' of what is free, shared by the processes of this machine, or '8G', '500M'.

    Raises:
        ValueError: neither.
    """
    unit = {'M': 2 ** 20, 'G': 2 ** 30}.get(str(amount)[-1:].upper())
    number = float(str(amount)[:-1] if unit else amount)
    if not 0. <= number < float('inf') or (not unit and number > 1):
        raise ValueError(f'memory is a share of what is free in [0, 1], or ends in G or M, got {amount}')
    return int(number * (unit or free_memory() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))))


def free_memory() -> int:
    """Bytes that this process and others may still take: of the machine, or of its control group where that is less."""
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    with suppress(OSError, StopIteration):  # with what is only cached, on Linux
        lines = Path('/proc/meminfo').read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith('MemAvailable:')).split()[1])
    with suppress(OSError, ValueError):  # 'max' where there is no limit
        group = Path('/sys/fs/cgroup')
        free = min(free, int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text()))
    return max(0, free)


def _decode_all(dataset: DecodedDataset, threads: int) -> Iterator[Optional[Tuple[np.ndarray, int]]]:
    """What _decode gives of each image, in their order."""
    decode = partial(_decode, dataset)
    if threads == 1:
        yield from map(decode, range(len(dataset)))
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(dataset), _CHUNK):
            yield from pool.map(decode, range(start, min(start + _CHUNK, len(dataset))))


def _decode(dataset: DecodedDataset, index: int) -> Optional[Tuple[np.ndarray, int]]:
    try:
        image, target = dataset.load(int(index))
    except UndecodableError:
        return None
    return np.atleast_3d(np.asarray(image)), target


def _gib(num_bytes: int) -> str:
    return f'{num_bytes / 2 ** 30:.2f} GiB'
