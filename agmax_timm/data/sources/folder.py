"""Folders of images, read as timm reads them, from an index that is made fast and that worker processes share.

timm's reader keeps two objects a sample. Counting references to them writes to their pages, so every worker process
ends up with a copy of its own. Here the index is a few buffers, which nobody writes to.
"""
import logging
import os
import re
from collections import Counter
from collections.abc import Collection
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from .class_map import read_class_map
from .classes import normalised

_logger = logging.getLogger(__name__)

APPLE_DOUBLE = '._'  # prefix of files in which macOS keeps the attributes of another file
Run = tuple[str, bytes]  # a folder, and names of successive samples in it, joined by \0


class FolderReader(Reader):
    """The samples and classes of timm's ReaderImageFolder, in its order, in about the bytes of the file names.

    Where names differ only in case or leading zeros ('a' and 'A', '1' and '01') timm's order is that of os.walk for
    files, which is kept, and that of a set for classes, which changes from process to process: here such classes are
    in the order of their names. Unlike timm's reader, this one skips hidden folders and AppleDouble files.

    Args:
        root: Folder to search, links to folders included.
        class_map: File of class names or dict from class name to index; other classes are left out.
        input_key: Extensions with their dot, lower case, separated by ';'; timm's extensions if empty.

    Attributes:
        class_to_idx: Index of each class.
        left_out: Names of class folders with images that class_map lacks.
        other_files: Number of files with endings that are not of images, by ending; hidden files do not count.

    Raises:
        RuntimeError: no images.
        ValueError: a link that leads back to a folder above it.
    """

    def __init__(self, root: str, class_map: Any = '', input_key: str | None = None):
        super().__init__()
        self.root = os.fspath(root)
        class_to_idx = read_class_map(class_map, self.root)
        types = set(input_key.split(';')) if input_key else get_img_extensions(as_set=True)
        self.other_files: Counter = Counter()
        runs = _scan(self.root, '', types, self.other_files)
        labels = sorted({os.path.basename(folder) for folder, _ in runs})
        if class_to_idx is None:
            class_to_idx = {label: index for index, label in enumerate(_natural_sort(labels))}
        else:
            class_to_idx = _with_spellings(class_to_idx, labels)
        self.class_to_idx: dict[str, int] = class_to_idx
        self.left_out = frozenset(labels) - set(class_to_idx)  # by class_map
        if labels and len(self.left_out) == len(labels):
            raise RuntimeError(f'found 0 images in {self.root} for --class-map: it names no folder there, such as '
                               f'{labels[0]!r}')
        runs = [run for run in runs if os.path.basename(run[0]) in class_to_idx]
        if not runs:
            raise RuntimeError(f'found 0 images in {self.root} and its folders: they end in {", ".join(sorted(types))}')
        self._index(runs)

    def _index(self, runs: list[Run]) -> None:
        folders = {folder: number for number, folder in enumerate(dict.fromkeys(folder for folder, _ in runs))}
        self._folders = _Strings(os.fsencode('\0'.join(folders)))
        self._targets = np.array([self.class_to_idx[os.path.basename(folder)] for folder in folders])
        self._names = _Strings(b'\0'.join(names for _, names in runs))
        numbers = np.array([folders[folder] for folder, _ in runs], np.min_scalar_type(len(folders)))
        self._numbers = numbers.repeat([names.count(b'\0') + 1 for _, names in runs])  # folder of each sample

    @property
    def folders(self) -> list[str]:
        """Folders that samples are in, relative to the root."""
        return [self._folders[number] for number in range(len(self._folders))]

    @property
    def outside(self) -> str:
        """Name of the first image that lies in the root itself, '' without any."""
        folders = self.folders
        return self._names[int((self._numbers == folders.index('')).argmax())] if '' in folders else ''

    @property
    def samples(self) -> list[tuple[str, int]]:
        """timm's list of paths and targets, made anew at each call."""
        return [self._sample(index) for index in range(len(self))]

    @property
    def nbytes(self) -> int:
        """Bytes that the index takes."""
        return self._folders.nbytes + self._targets.nbytes + self._names.nbytes + self._numbers.nbytes

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int):
        path, target = self._sample(index)
        return open(path, 'rb'), target

    def _sample(self, index: int) -> tuple[str, int]:
        return self._filename(index, absolute=True), self._targets[self._numbers[index]].item()

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        index = range(len(self))[index]  # counts from the end where negative, raises where there is none
        name = self._names[index]
        if basename:
            return name
        name = os.path.join(self._folders[self._numbers[index]], name)
        return os.path.join(self.root, name) if absolute else name


def _with_spellings(class_to_idx: dict[str, int], labels: list[str]) -> dict[str, int]:
    """Add the labels to a class map that differ from its names only in their Unicode form."""
    spelt = {normalised(name): index for name, index in class_to_idx.items()}
    others = {label: spelt[normalised(label)] for label in labels
              if label not in class_to_idx and normalised(label) in spelt}
    return {**class_to_idx, **others} if others else class_to_idx


class _Strings:
    """Strings without \\0, as one buffer and the place of each.

    Args:
        joined: The encoded strings, joined by \\0.
    """

    def __init__(self, joined: bytes):
        ends = np.append(np.flatnonzero(np.frombuffer(joined, np.uint8) == 0), len(joined))
        self._joined = joined
        self._ends = ends.astype(np.min_scalar_type(len(joined)))

    @property
    def nbytes(self) -> int:
        return len(self._joined) + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self._joined[start:self._ends[index]])


def is_hidden(path: str) -> bool:
    """Whether a file lies in a hidden folder, as .ipynb_checkpoints, or is an AppleDouble file, as ._IMG_0001.jpg.

    Args:
        path: Path in a data set or an archive, with '/'.
    """
    *folders, name = path.split('/')
    return name.startswith(APPLE_DOUBLE) or any(folder.startswith('.') and folder.strip('.') for folder in folders)


def _scan(root: str, folder: str, types: Collection[str], others: Counter) -> list[Run]:
    """Images of `folder`, a path relative to the root, and of those in it, in natural order of their whole paths."""
    images, subfolders = _list(root, folder, types, others)
    if not subfolders:
        return [_run(folder, _natural_sort(images))] if images else []
    names = images + [name + os.sep for name in subfolders]
    keys = _natural_keys(names)
    runs = []
    for is_image, members in groupby(sorted(range(len(names)), key=keys.__getitem__), len(images).__gt__):
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
    """Images and folders in a folder without hidden ones, in the order of the file system.

    Args:
        others: Counts other files by their ending, changed in place.
    """
    images, subfolders = [], []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = entry.name
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link that leads to itself
                    is_folder = False
                if is_folder:
                    if name[0] == '.':
                        continue
                    if entry.is_symlink():
                        _check_link(entry.path, root, folder)
                    subfolders.append(name)
                    continue
                stem, dot, suffix = name.rpartition('.')  # os.path.splitext, in a third of its time
                ending = (dot + suffix).lower() if stem.strip('.') else ''
                if ending in types and name[:2] != APPLE_DOUBLE:
                    images.append(name)
                elif name[0] != '.':
                    others[ending] += 1
    except OSError as error:
        _logger.warning(f'Left out a folder that cannot be read: {error}')
        return [], []
    return images, subfolders


def _check_link(link: str, root: str, folder: str) -> None:
    """Raise ValueError for a link in `folder` to that or a folder above it, which could be followed for ever."""
    while True:
        above = os.path.join(root, folder)
        if os.path.samefile(above, link):
            raise ValueError(f'the link {link} leads back to the folder {above} that it is in: remove the link')
        if not folder:
            return
        folder = os.path.dirname(folder)


def _merge(inner: list[list[Run]]) -> list[Run]:
    """One order for folders that differ only in case or leading zeros, and so interleave in timm's order."""
    paths = [(folder, name) for runs in inner for folder, names in runs for name in os.fsdecode(names).split('\0')]
    keys = _natural_keys([os.path.join(*path) for path in paths])
    paths = [paths[i] for i in sorted(range(len(paths)), key=keys.__getitem__)]
    return [_run(folder, [name for _, name in group]) for folder, group in groupby(paths, itemgetter(0))]


def _natural_sort(names: list[str]) -> list[str]:
    keys = _natural_keys(names)
    return [names[i] for i in sorted(range(len(names)), key=keys.__getitem__)]


def _natural_keys(names: list[str]) -> list[str]:
    """Strings that compare as timm's natural_key of the names does, all made at once, for names without \\0.

    natural_key is a list of lower-case text and numbers in turn. Where two such lists first differ, one that ends is
    less than a number, and a number less than any other text. So are strings in which all numbers have one width and
    digits are less than other characters. Superscripts between digits, where natural_key fails, are text here.
    """
    text = '\0'.join(['', *names, '']).lower()
    if not text.isascii():
        text = re.sub(r'\d+', lambda number: str(int(number[0])), text)  # digits of other scripts
    characters = np.frombuffer(text.encode('utf-8', 'surrogatepass').translate(_DIGITS_FIRST), np.uint8)
    is_digit = (characters > 0) & (characters <= 10)
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    widths = ends - starts
    steps = np.ones(len(characters), np.int64)
    steps[starts] += widths.max(initial=0) - widths
    places = steps.cumsum() - 1
    padded = np.ones(places[-1] + 1, np.uint8)  # of the digit 0
    padded[places] = characters
    return padded.tobytes().decode('latin-1').split('\0')[1:-1]


# For bytes.translate: \0 stays, the digits become 1 to 10, what ASCII has before them 11 to 57; all else stays.
_DIGITS_FIRST = bytes([0, *range(11, 58), *range(1, 11), *range(58, 256)])
