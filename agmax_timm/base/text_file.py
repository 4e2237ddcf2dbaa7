"""Text files in UTF-8, with or without the byte-order mark that editors on Windows write."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

BYTE_ORDER_MARK = '\ufeff'


def read_text(path: str, most: int = -1) -> str:
    """Return the text of a file, without a byte-order mark.

    Args:
        most: Maximum number of characters to read; all if negative.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has another encoding.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read(most)
    except UnicodeDecodeError as error:
        raise ValueError(f'not text in UTF-8: {error.reason} at byte {error.start}: save it as UTF-8') from error


@contextmanager
def without_mark(path: str) -> Iterator[str]:
    """Give the path of a text file, or of a copy without byte-order mark, for libraries that refuse the mark."""
    mark = BYTE_ORDER_MARK.encode()
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
