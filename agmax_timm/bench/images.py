"""The images that loaders are measured on: some of a folder, by links, so that timm's loader finds the very same."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..base.errors import DataError
from ..data.sources.datasets import create_dataset
from ..data.sources.folder import FolderReader


@contextmanager
def some_images(folder: str, split: str, count: int) -> Iterator[str]:
    """A temporary folder of class folders with links to so many images of a folder, evenly spaced, or to all.

    Raises:
        DataError: no folder of images.
    """
    reader = getattr(create_dataset('', root=folder, split=split), 'reader', None)
    if not isinstance(reader, FolderReader):
        raise DataError(f'{folder} is not a folder of images')
    with tempfile.TemporaryDirectory() as links:
        for index in np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(int).tolist():
            name = reader.filename(index)
            path = os.path.join(links, 'train', name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(os.path.abspath(reader.filename(index, absolute=True)), path)
        yield links
