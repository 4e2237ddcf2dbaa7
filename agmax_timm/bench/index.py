"""Benchmark of the index of an image folder against timm's: opening time, and memory of a loader worker."""
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader

from ..data.sources.dataset_factory import check_root, find_split
from ..data.sources.folder import FolderReader
from . import passes
from .output import Result

_READERS: dict[str, Any] = {'timm': ReaderImageFolder, 'agmax_timm': FolderReader}
_CLASS_SIZE = 1000  # images
_PARTS = (1, 12, 50, 100)  # percent of the samples


def index(source: str, repeats: int) -> Result:
    with _folder(source) as root:
        measured = passes.interleaved({
            name: partial(lambda reader: len(reader(root)), reader) for name, reader in _READERS.items()}, repeats)
        rows = passes.rows(measured, 'index', {
            'images': passes.count, 's': passes.seconds, 'ratio': passes.seconds, 'CPU s': passes.cpu})
        for row in rows:
            row.update(_memory(_READERS[row['index']](root)))
    return Result("ratio: seconds to open the folder against timm's reader; private MiB of a worker after parts of the "
                  'samples, in random order', rows)


def _memory(reader: Any) -> dict[str, float | None]:
    """Return the bytes of the index per image, if known, and the private memory of a worker in MiB."""
    def collate(indices):
        for index in indices:
            reader[index][0].close()
        private = [mib for kind, mib in passes.sizes('/proc/self/smaps_rollup').items() if kind.startswith('Private_')]
        return sum(private) if private else float('nan')

    batch_size = max(1, len(reader) // 100)
    indices: Any = range(len(reader))
    grown = list(DataLoader(indices, batch_size, shuffle=True, num_workers=1, collate_fn=collate))
    nbytes = getattr(reader, 'nbytes', None)
    return {'bytes/image': nbytes and nbytes / len(reader)} | {
        f'MiB after {part}%': grown[max(1, len(grown) * part // 100) - 1] for part in _PARTS}


@contextmanager
def _folder(source: str) -> Iterator[str]:
    """Yield the folder of training images in `source`, or a temporary one with that number of empty files."""
    if not source.isdecimal():
        check_root(source, 'train')
        yield find_split(source, 'train') or source
        return
    count = int(source)
    if not count:
        raise ValueError('DIR_OR_COUNT must be a folder, or 1 or more, got 0')
    with tempfile.TemporaryDirectory() as root:
        for number, start in enumerate(range(0, count, _CLASS_SIZE)):
            folder = f'n{7919 * number:08d}'
            os.mkdir(os.path.join(root, folder))
            for image in random.sample(range(20 * _CLASS_SIZE), min(_CLASS_SIZE, count - start)):
                os.close(os.open(os.path.join(root, folder, f'{folder}_{image}.JPEG'), os.O_CREAT))
        yield root
