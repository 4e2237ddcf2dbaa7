"""Text files of users: UTF-8, with or without the byte-order mark that editors on Windows write."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

MARK = '\ufeff'  # the byte-order mark


def read_text(path: str, most: int = -1) -> str:
    """Return the text of a file, without byte-order mark.

    Args:
        path: Path of the file.
        most: Number of characters to read at most, all if negative.

    Raises:
        OSError: it cannot be read.
        ValueError: it is in another encoding.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read(most)
    except UnicodeDecodeError as error:
        raise ValueError(f'not text in UTF-8: {error.reason} at byte {error.start}: save it as UTF-8') from error


@contextmanager
def without_mark(path: str) -> Iterator[str]:
    """The path of a text file, or of a copy without its byte-order mark, for libraries that refuse the mark."""
    mark = MARK.encode()
    with open(path, 'rb') as file:
        if file.read(len(mark)) != mark:
            yield path
            return
        content = file.read()
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        with open(copy, 'wb') as file:
            file.write(content)
        yield copy
