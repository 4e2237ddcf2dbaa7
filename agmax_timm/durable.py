"""Files that are written whole or not at all, whatever stops the process, the machine or the disk in between."""
import errno
import os
import shutil
from contextlib import contextmanager, suppress
from typing import IO, Iterator, List

# What a file is called until it is whole; a killed process leaves such a file behind.
UNFINISHED = '.unfinished'
_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def replacing(path: str, mode: str = 'wb', **open_args) -> Iterator[IO]:
    """A file to write to, which takes the place of `path` when it is whole and on disk.

    Args:
        mode: And further arguments, of open(): 'w' or 'wb'.

    Raises:
        OSError: with the file's name; `path` is as it was, and no other file is left.
    """
    scratch = path + UNFINISHED
    try:
        with open(scratch, mode, **open_args) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
        _sync_folder(path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(scratch)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path
        raise


def link(source: str, path: str) -> None:
    """Let `path` name the same file as `source`, at once; a copy of it on file systems without hard links."""
    scratch = path + UNFINISHED
    if os.path.exists(path) and os.path.samefile(source, path):
        return  # os.replace would leave the second name of one file where it is
    if os.path.lexists(scratch):
        os.unlink(scratch)
    try:
        os.link(source, scratch)
    except (OSError, NotImplementedError):
        with open(source, 'rb') as whole, replacing(path) as f:
            shutil.copyfileobj(whole, f, 1 << 20)
        return
    try:
        os.replace(scratch, path)
        _sync_folder(path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def cut(path: str, size: int) -> None:
    """Leave the first `size` bytes of a file, all of it where it is shorter; a missing file stays missing."""
    if os.path.exists(path) and os.path.getsize(path) > size:
        with open(path, 'rb+') as f:
            f.truncate(size)
            os.fsync(f.fileno())


def clean(folder: str) -> List[str]:
    """Remove the unfinished files of processes that were killed, and tell which. No other may be writing there."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(UNFINISHED))
    for name in names:
        os.unlink(os.path.join(folder, name))
    return names


def _sync_folder(path: str) -> None:
    """Bring the name of a file to disk, where the file system can."""
    try:
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    except PermissionError:  # a folder that can be written but not read; on Windows, any
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(folder)
