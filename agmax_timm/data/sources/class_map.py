"""The index of each class: by a file of --class-map, or in timm's order."""
import os
from collections.abc import Collection
from numbers import Integral
from typing import Any

from timm.data.readers.class_map import load_class_map

from ...base.errors import DataError
from ...base.text_file import read_text
from .classes import normalised
from .natural_order import natural_sort


def read_class_map(class_map: Any, *folders: str | None) -> dict[Any, int] | None:
    """Read a class map like timm.data.readers.class_map.load_class_map, but refuse mistakes in the file.

    Args:
        class_map: Text file (.txt) with a class name on each line, in order; pickled dict (.pkl); or a dict.
        *folders: Further folders in which a relative path is searched.

    Returns:
        Index of each class; None if class_map is None or ''.

    Raises:
        DataError: The file is missing or of another kind, a line is empty, or a name is on two lines.
    """
    if not class_map or isinstance(class_map, dict):
        return class_map or None
    paths = [os.path.join(folder, class_map) for folder in ('', *filter(None, folders))]
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
        raise DataError(f"--class-map '{class_map}': no such file")
    kind = os.path.splitext(path)[1].lower()
    if kind not in ('.txt', '.pkl'):
        raise DataError(f"--class-map '{class_map}': must be a text file (.txt) with a class name on each line, or a "
                        'pickled dict (.pkl)')
    try:
        return _read_names(path) if kind == '.txt' else _read_pickle(path)
    except (ValueError, OSError) as error:
        raise DataError(f"--class-map '{class_map}': {error}") from error


def _read_names(path: str) -> dict[str, int]:
    names: dict[str, int] = {}
    lines = read_text(path).split('\n')
    if not lines[-1]:
        lines.pop()  # the last line ends with a newline
    for index, line in enumerate(lines):
        name = line.strip()
        if not name:
            raise ValueError(f'line {index + 1} is empty: remove it, each line is a class')
        if name in names:
            raise ValueError(f'line {index + 1}: {name!r} is in line {names[name] + 1} as well: remove one of them')
        names[name] = index
    if not names:
        raise ValueError('the file is empty')
    return names


def _read_pickle(path: str) -> dict[Any, int]:
    try:
        class_to_idx = load_class_map(path)
    except Exception as error:  # a damaged file can make pickle raise anything
        raise ValueError(f'not a pickled dict from class name to index: {error}') from error
    for name, index in class_to_idx.items():
        if not isinstance(index, Integral):
            raise ValueError(f'{name!r} has the index {index!r}: indices are whole numbers')
    return {name: int(index) for name, index in class_to_idx.items()}


def number_classes(
        labels: Collection[str], class_map: dict[Any, int] | None, root: str) -> tuple[dict[Any, int], frozenset[str]]:
    """Return the index of each class, and the labels that a class map leaves out.

    Args:
        labels: Names of the folders with images.
        class_map: Index of each class. None numbers the labels in timm's order.
        root: Folder or tar file of the images, for the message.

    Raises:
        RuntimeError: The class map has none of the labels.
    """
    labels = sorted(labels)
    if class_map is None:
        return {label: index for index, label in enumerate(natural_sort(labels))}, frozenset()
    class_to_idx = _with_spellings(class_map, labels)
    left_out = frozenset(labels) - set(class_to_idx)
    if labels and len(left_out) == len(labels):
        raise RuntimeError(f"found 0 images in '{root}' for --class-map: it does not have the name of any folder, such "
                           f'as {labels[0]!r}')
    return class_to_idx, left_out


def _with_spellings(class_to_idx: dict[Any, int], labels: list[str]) -> dict[Any, int]:
    """Add labels to a class map if they differ from a name only in their Unicode form."""
    spelt = {normalised(name): index for name, index in class_to_idx.items()}
    others = {label: spelt[normalised(label)] for label in labels
              if label not in class_to_idx and normalised(label) in spelt}
    return {**class_to_idx, **others} if others else class_to_idx
