"""A reader of folders of images in timm's order, with a compact index that worker processes share.

timm's reader has two objects per sample. Counting their references writes to their memory pages, so every worker
process gets its own copy. The index of this reader is a few buffers, which no process writes to.
"""
import copy
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from .class_map import number_classes, read_class_map
from .natural_order import natural_keys, natural_sort

_logger = logging.getLogger(__name__)

APPLE_DOUBLE = '._'  # prefix of files in which macOS keeps the attributes of another file
Run = tuple[str, bytes]  # a folder, and names of successive samples in it, joined by \0


class FolderReader(Reader):
    """A reader with the samples and classes of timm's ReaderImageFolder, in timm's order.

    The index takes about the memory of the file names. Unlike timm's reader, this one skips hidden folders and
    AppleDouble files. Names can differ only in case or leading zeros ('a' and 'A', '1' and '01'). Such files are in the
    order of os.walk, as in timm. Such classes are in the order of their names; in timm, their order changes from
    process to process.

    Args:
        root: Folder to search. Links to folders are followed.
        class_map: File of class names or dict from class name to index. Other classes are left out.
        input_key: File endings with their dot, in lower case, separated by ';'. If empty, timm's endings.

    Attributes:
        class_to_idx: Index of each class.
        left_out: Names of class folders with images that are not in class_map.
        other_files: Number of files with other endings, by ending. Hidden files do not count.

    Raises:
        RuntimeError: There are no images.
        ValueError: A link leads to the folder that contains it, or to a folder above.
    """

    def __init__(self, root: str, class_map: Any = '', input_key: str | None = None):
        super().__init__()
        self.root = os.fspath(root)
        class_to_idx = read_class_map(class_map, self.root)
        types = set(input_key.split(';')) if input_key else get_img_extensions(as_set=True)
        self.other_files: Counter = Counter()
        runs = _scan(self.root, '', types, self.other_files)
        labels = {os.path.basename(folder) for folder, _ in runs}
        self.class_to_idx, self.left_out = number_classes(labels, class_to_idx, self.root)
        runs = [run for run in runs if os.path.basename(run[0]) in self.class_to_idx]
        if not runs:
            raise RuntimeError(f"found 0 images in '{self.root}' and its folders: images are files that end in "
                               f'{", ".join(sorted(types))}')
        self._index(runs)

    def _index(self, runs: list[Run]) -> None:
        folders = {folder: number for number, folder in enumerate(dict.fromkeys(folder for folder, _ in runs))}
        self._folders = _Strings(os.fsencode('\0'.join(folders)))
        self._targets = np.array([self.class_to_idx[os.path.basename(folder)] for folder in folders])
        self._names = _Strings(b'\0'.join(names for _, names in runs))
        numbers = np.array([folders[folder] for folder, _ in runs], np.min_scalar_type(len(folders)))
        self._numbers = numbers.repeat([names.count(b'\0') + 1 for _, names in runs])  # folder of each sample

    def subset(self, indices: np.ndarray) -> 'FolderReader':
        """Return a reader of some of the samples, with the classes and folders of all."""
        part = copy.copy(self)
        part._names = _Strings(b'\0'.join(os.fsencode(self._names[index]) for index in indices.tolist()))
        part._numbers = self._numbers[indices]
        return part

    @property
    def targets(self) -> np.ndarray:
        """Class index of each sample [N]."""
        return self._targets[self._numbers]

    @property
    def folders(self) -> list[str]:
        """Folders of the samples, relative to the root."""
        return [self._folders[number] for number in range(len(self._folders))]

    @property
    def outside(self) -> str:
        """Name of the first image directly in the root, '' if there is none."""
        folders = self.folders
        return self._names[int((self._numbers == folders.index('')).argmax())] if '' in folders else ''

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Paths and targets, as in timm. The list is created at each access."""
        return [self._sample(index) for index in range(len(self))]

    @property
    def fingerprint(self) -> str:
        """A hash of the names of files and folders, in order. Contents and the root do not matter."""
        parts = (self._folders.joined, self._names.joined, self._numbers.astype('<u4').tobytes())
        return hashlib.blake2b(b'\0\0'.join(parts), digest_size=16).hexdigest()

    @property
    def nbytes(self) -> int:
        """Size of the index in bytes."""
        return self._folders.nbytes + self._targets.nbytes + self._names.nbytes + self._numbers.nbytes

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int):
        path, target = self._sample(index)
        return open(path, 'rb'), target

    def _sample(self, index: int) -> tuple[str, int]:
        return self._filename(index, absolute=True), self._targets[self._numbers[index]].item()

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        index = range(len(self))[index]  # a negative index counts from the end; IndexError past the end
        name = self._names[index]
        if basename:
            return name
        name = os.path.join(self._folders[self._numbers[index]], name)
        return os.path.join(self.root, name) if absolute else name


class _Strings:
    """A sequence of strings without \\0, as one buffer and the end of each string.

    Args:
        joined: Encoded strings, joined by \\0.
    """

    def __init__(self, joined: bytes):
        ends = np.append(np.flatnonzero(np.frombuffer(joined, np.uint8) == 0), len(joined))
        self.joined = joined
        self._ends = ends.astype(np.min_scalar_type(len(joined)))

    @property
    def nbytes(self) -> int:
        return len(self.joined) + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.joined[start:self._ends[index]])


def is_hidden(path: str) -> bool:
    """Whether a file is in a hidden folder such as .ipynb_checkpoints, or an AppleDouble file such as ._IMG_0001.jpg.

    Args:
        path: Path in a data set or an archive, separated by '/'.
    """
    *folders, name = path.split('/')
    return name.startswith(APPLE_DOUBLE) or any(folder.startswith('.') and folder.strip('.') for folder in folders)


def _scan(root: str, folder: str, types: Collection[str], others: Counter) -> list[Run]:
    """Return the images of a folder, relative to the root, and of its subfolders, in natural order of their paths."""
    images, subfolders = _list(root, folder, types, others)
    if not subfolders:
        return [_run(folder, natural_sort(images))] if images else []
    names = images + [name + os.sep for name in subfolders]
    keys = natural_keys(names)
    order = sorted(range(len(names)), key=keys.__getitem__)
    runs = []
    for is_image, members in groupby(order, lambda i: i < len(images)):
        if is_image:
            runs.append(_run(folder, [images[i] for i in members]))
            continue
        for _, equals in groupby(members, keys.__getitem__):
            inner = [_scan(root, os.path.join(folder, names[i][:-1]), types, others) for i in equals]
            runs += inner[0] if len(inner) == 1 else _merge(inner)
    return runs


def _run(folder: str, names: list[str]) -> Run:
    return folder, os.fsencode('\0'.join(names))


def _list(root: str, folder: str, types: Collection[str], others: Counter) -> tuple[list[str], list[str]]:
    """Return the visible images and folders in a folder, in the order of the file system.

    Args:
        folder: Folder to list, relative to the root.
        others: Numbers of other files by ending, changed in place.
    """
    images, subfolders = [], []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = entry.name
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link to itself
                    is_folder = False
                if is_folder:
                    if name[0] == '.':
                        continue
                    if entry.is_symlink():
                        _check_link(entry.path, root, folder)
                    subfolders.append(name)
                    continue
                stem, dot, suffix = name.rpartition('.')  # takes a third of the time of os.path.splitext
                ending = (dot + suffix).lower() if stem.strip('.') else ''
                if ending in types and name[:2] != APPLE_DOUBLE:
                    images.append(name)
                elif name[0] != '.':
                    others[ending] += 1
    except OSError as error:
        _logger.warning(f'A folder is left out because it cannot be read: {error}')
        return [], []
    return images, subfolders


def _check_link(link: str, root: str, folder: str) -> None:
    """Raise ValueError for a link in `folder` to that folder or a folder above, which would be followed forever."""
    while True:
        above = os.path.join(root, folder)
        if os.path.samefile(above, link):
            raise ValueError(f"the link '{link}' leads to the folder '{above}', which contains the link: remove the "
                             'link')
        if not folder:
            return
        folder = os.path.dirname(folder)


def _merge(inner: list[list[Run]]) -> list[Run]:
    """Merge folders whose names differ only in case or leading zeros. In timm's order, their images interleave."""
    paths = [(folder, name) for runs in inner for folder, names in runs for name in os.fsdecode(names).split('\0')]
    keys = natural_keys([os.path.join(*path) for path in paths])
    paths = [paths[i] for i in sorted(range(len(paths)), key=keys.__getitem__)]
    return [_run(folder, [name for _, name in group]) for folder, group in groupby(paths, itemgetter(0))]
