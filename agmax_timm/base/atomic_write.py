"""Files that are written whole or not at all, whatever stops the process, the machine or the disk in between."""
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]  # locks are then left out

# The end of the name of a file or folder until it is whole; a killed process leaves such a file behind.
UNFINISHED = '.unfinished'
_STALE = 24 * 3600.  # seconds without a change after which a writer is taken for dead, on file systems without locks
_NO_LOCKS = -1
_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def replacing(path: str, mode: str = 'wb', **open_args) -> Iterator[IO]:
    """A file to write to, which takes the place of `path` when it is whole and on disk.

    Several processes and threads may replace the same file: each writes a file of its own, and the last one stays.

    Args:
        mode: And further arguments, of open(): 'w' or 'wb'.

    Raises:
        OSError: with the file's name; `path` is as it was, and no other file is left.
    """
    with _scratch(path, lambda name: open(name, 'xb').close()) as scratch:
        with open(scratch, mode, **open_args) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
        _sync_folder(path)


@contextmanager
def scratch_folder(path: str) -> Iterator[str]:
    """The path of a new folder beside `path`, which is removed at the end."""
    with _scratch(path, os.mkdir) as scratch:
        yield scratch


def link(source: str, path: str) -> None:
    """Let `path` name the same file as `source`, at once; a copy of it on file systems without hard links."""
    if os.path.exists(path) and os.path.samefile(source, path):
        return  # os.replace would leave the second name of one file where it is
    while True:
        scratch = _scratch_name(path)
        try:
            os.link(source, scratch)
        except (OSError, NotImplementedError):
            with open(source, 'rb') as whole, replacing(path) as f:
                shutil.copyfileobj(whole, f, 1 << 20)
            return
        try:
            os.replace(scratch, path)
            return _sync_folder(path)
        except FileNotFoundError:
            continue  # clean() of another process removed the link, which cannot be locked
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


def clean(folder: str, name: str = '') -> list[str]:
    """Remove what killed processes left unfinished in a folder, and return its names.

    Files of processes that live stay, also those of other machines, because their writers have locked them. On a file
    system without locks, a file counts as left behind after a day without changes.

    Args:
        name: Name of the finished file or folder, to remove its unfinished ones alone; '' for all.
    """
    removed = []
    with suppress(OSError):
        for found in sorted(os.listdir(folder)):
            unfinished = found.endswith(UNFINISHED) and found.startswith(f'{name}.' if name else '')
            if unfinished and _remove_dead(os.path.join(folder, found)):
                removed.append(found)
    return removed


@contextmanager
def _scratch(path: str, make: Callable[[str], Any]) -> Iterator[str]:
    """The path of what `make` makes beside `path`, locked against clean(). Removed at the end if it is still there."""
    clean(os.path.dirname(path) or '.', os.path.basename(path))
    scratch, lock = '', None
    try:
        while lock is None:  # clean() of another process can remove it between the two calls
            scratch = _scratch_name(path)
            make(scratch)
            lock = _lock(scratch)
        yield scratch
    except OSError as error:
        if error.errno is not None and error.filename in (None, scratch):  # others have a message of their own
            error.filename = path
        raise
    finally:
        with suppress(OSError):
            _remove(scratch)
        _unlock(lock)


def _scratch_name(path: str) -> str:
    """A name that no other process or thread uses. The random state of training stays as it is."""
    return f'{path}.{secrets.token_hex(4)}{UNFINISHED}'


def _remove_dead(path: str) -> bool:
    """Remove an unfinished file or folder, unless its writer lives. Returns whether it was removed."""
    lock = _lock(path)
    try:
        if lock is None or (lock == _NO_LOCKS and time.time() - os.stat(path).st_ctime < _STALE):
            return False
        _remove(path)
        return True
    except OSError:  # not ours to remove, or another process was faster
        return False
    finally:
        _unlock(lock)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _lock(path: str) -> int | None:
    """Lock a file or folder, without waiting.

    Returns:
        A descriptor for _unlock(), _NO_LOCKS where the file system has none, None where another process has locked or
        removed it.
    """
    if fcntl is None:
        return _NO_LOCKS
    try:
        # NFS only locks files that are open for writing.
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        return None if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT) else _NO_LOCKS


def _unlock(lock: int | None) -> None:
    if lock not in (None, _NO_LOCKS):
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: forked processes share the lock
        os.close(lock)


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
