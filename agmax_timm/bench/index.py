"""timm's index of a folder of images against ours: time to open it, and memory of a loader's worker."""
import argparse
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader

from ..data.sources.datasets import check_root, find_split
from ..data.sources.folder import FolderReader
from . import passes
from .report import Result

_READERS = {'timm': ReaderImageFolder, 'agmax_timm': FolderReader}
_IN_A_CLASS = 1000
_PARTS = (1, 12, 50, 100)  # percent of the samples


def measure(args: argparse.Namespace) -> Result:
    with _folder(args.source) as root:
        measured = passes.interleaved(
            {name: _open(reader, root) for name, reader in _READERS.items()}, args.repeats)
        rows = [{
            'index': name,
            'images': measured[name][0].count,
            's': median(map(passes.seconds, measured[name])),
            **passes.ratios(measured, name, 'timm', passes.seconds),
            'CPU s': median(one.cpu_seconds for one in measured[name]),
            **_memory(reader(root)),
        } for name, reader in _READERS.items()]
    return Result("ratio: seconds to open the folder against timm's reader; private MiB of a worker after parts of the "
                  'samples, in random order', rows)


def _open(reader, root: str):
    return lambda: len(reader(root))


def _memory(reader: Any) -> dict[str, float | None]:
    """Bytes of the index for each image, where it knows them, and private memory of a worker in MiB."""
    def collate(indices):
        for index in indices:
            reader[index][0].close()
        return _private_mib()

    batch_size = max(1, len(reader) // 100)
    indices: Any = range(len(reader))
    grown = list(DataLoader(indices, batch_size, shuffle=True, num_workers=1, collate_fn=collate))
    nbytes = getattr(reader, 'nbytes', None)
    return {'bytes/image': nbytes and nbytes / len(reader)} | {
        f'MiB after {part}%': grown[max(1, len(grown) * part // 100) - 1] for part in _PARTS}


def _private_mib() -> float:
    try:
        with open('/proc/self/smaps_rollup') as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024
    except OSError:
        return float('nan')


@contextmanager
def _folder(source: str) -> Iterator[str]:
    """The folder of training images in `source`, or a temporary one of so many empty files."""
    if not source.isdecimal():
        check_root(source, 'train')
        yield find_split(source, 'train') or source
        return
    count = int(source)
    if not count:
        raise ValueError('DIR_OR_COUNT must be a folder, or 1 or more, got 0')
    with tempfile.TemporaryDirectory() as root:
        for number, start in enumerate(range(0, count, _IN_A_CLASS)):
            folder = f'n{7919 * number:08d}'
            os.mkdir(os.path.join(root, folder))
            for image in random.sample(range(20 * _IN_A_CLASS), min(_IN_A_CLASS, count - start)):
                os.close(os.open(os.path.join(root, folder, f'{folder}_{image}.JPEG'), os.O_CREAT))
        yield root
