"""One pass over all files of a data set in worker processes: properties of the images, and damaged files."""
import hashlib
import io
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from timm.data.readers.reader import Reader
from torch.utils.data import DataLoader, Dataset

from .damage import path_of
from .decoding import UndecodableError, decode, read_sample, reason_of, turn_of


@dataclass(frozen=True)
class Finding:
    """Properties of a sample: target, size in pixels, PIL mode, EXIF rotation, digest of its bytes, and its problem.

    `problem` says why the image cannot be decoded; it is empty if the image is valid.
    """
    index: int
    target: Any = None
    width: int = 0
    height: int = 0
    mode: str = ''
    rotated: bool = False
    digest: bytes = bytes(16)
    problem: str = ''


class ScanDataset(Dataset):
    """A data set of the Finding of each sample."""

    def __init__(self, reader: Any):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Finding:
        target, digest = None, bytes(16)
        try:
            file, target, *_ = read_sample(self.reader, index)
            with closing(file):
                content = file.read()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            image = decode(io.BytesIO(content), mode=None)
            return Finding(index, target, *image.size, image.mode, turn_of(image) is not None, digest)
        except UndecodableError as error:
            return Finding(index, target, digest=digest, problem=str(error))
        except (OSError, tarfile.TarError) as error:
            return Finding(index, target, digest=digest, problem=reason_of(error))


def scan(reader: Reader, workers: int = 0) -> Iterator[list[Finding]]:
    """Iterate over lists of findings, in the order of the reader."""
    return iter(DataLoader(ScanDataset(reader), batch_size=64, num_workers=workers, collate_fn=list))


class Inventory:
    """Totals over the findings of a split. Takes 24 bytes of memory per sample."""

    def __init__(self, split: str, reader: Any):
        self.split = split
        self.reader = reader
        self.classes: Counter = Counter()
        self.modes: Counter = Counter()
        self.widths, self.heights = array('I'), array('I')
        self.rotated = 0
        self.damaged: dict[int, str] = {}
        self._digests = bytearray()

    def add(self, finding: Finding) -> None:
        self._digests += finding.digest
        if isinstance(finding.target, (int, np.integer)) or (
                isinstance(finding.target, float) and finding.target.is_integer()):
            self.classes[int(finding.target)] += 1
        if finding.problem:
            self.damaged[finding.index] = finding.problem
            return
        self.modes[finding.mode] += 1
        self.rotated += finding.rotated
        self.widths.append(finding.width)
        self.heights.append(finding.height)

    @property
    def digests(self) -> np.ndarray:
        """Digest of each sample's bytes, as two integers [N, 2]."""
        return np.frombuffer(bytes(self._digests), np.uint64).reshape(-1, 2)

    def path(self, index: int) -> str:
        return path_of(self.reader, index)


class Duplicate(NamedTuple):
    """A sample with the same bytes as an earlier one. `leak` is True if that is in another split."""
    split: str
    path: str
    original: str
    original_split: str

    @property
    def leak(self) -> bool:
        return self.split != self.original_split


def duplicates(inventories: list[Inventory]) -> Iterator[Duplicate]:
    """Find samples with the same bytes as an earlier one, over all splits, without those that cannot be decoded."""
    if not inventories:
        return
    digests = np.concatenate([inventory.digests for inventory in inventories])
    starts = np.cumsum([0] + [len(inventory.digests) for inventory in inventories])
    _, first, which = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    originals = first[which.reshape(-1)]

    def place(number):
        part = int(np.searchsorted(starts, number, 'right')) - 1
        return inventories[part], int(number - starts[part])

    for number in np.flatnonzero(originals != np.arange(len(originals))):
        inventory, index = place(number)
        original, original_index = place(originals[number])
        if index not in inventory.damaged:
            yield Duplicate(inventory.split, inventory.path(index), original.path(original_index), original.split)
