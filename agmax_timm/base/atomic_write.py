"""Atomic writes: a file is replaced completely or not at all, even if the process, the machine or the disk fails."""
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

# Suffix of the name of a file or folder that is being written. A killed process leaves it behind.
UNFINISHED = '.unfinished'
_STALE = 24 * 3600.  # seconds without a change after which a writer counts as dead, on file systems without locks
_NO_LOCKS = -1
_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def replacing(path: str, mode: str = 'wb', **open_args) -> Iterator[IO]:
    """Open a new file for writing, which replaces `path` once it is complete and on disk.

    Several processes and threads may replace the same file. Each writes its own file, and the last one stays.

    Args:
        mode: Mode of open(), 'w' or 'wb'.

    Raises:
        OSError: The file cannot be written. The error names `path`, which is unchanged. No other file is left.
    """
    with _scratch(path, lambda name: open(name, 'xb').close()) as scratch:
        with open(scratch, mode, **open_args) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
        _sync_folder(path)


def write_text(path: str, text: str) -> None:
    """Replace a file by a text in UTF-8. Bytes of file names that are not UTF-8 become escape sequences."""
    with replacing(path, 'w', encoding='utf-8', errors='backslashreplace') as f:
        f.write(text)


@contextmanager
def scratch_folder(path: str) -> Iterator[str]:
    """Create a folder beside `path`, give its path, and remove it at the end."""
    with _scratch(path, os.mkdir) as scratch:
        yield scratch


def link(source: str, path: str) -> None:
    """Make `path` a hard link to `source`, atomically. On file systems without hard links, it is a copy."""
    if os.path.exists(path) and os.path.samefile(source, path):
        return  # os.replace does nothing for two names of one file, so the scratch name would stay
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
            continue  # remove_unfinished() of another process removed the link, which cannot be locked
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise


def truncate(path: str, size: int) -> None:
    """Cut a file off after `size` bytes. Shorter and missing files are not changed."""
    if os.path.exists(path) and os.path.getsize(path) > size:
        with open(path, 'rb+') as f:
            f.truncate(size)
            os.fsync(f.fileno())


def remove_unfinished(folder: str, name: str = '') -> list[str]:
    """Remove unfinished files that killed processes left in a folder. Return their names.

    Running processes have locked their files, also on other machines, so these files stay. On a file system without
    locks, a file counts as left behind after a day without changes.

    Args:
        name: Name of the finished file or folder whose unfinished versions are removed; '' for all.
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
    """Create a file or folder beside `path` by `make`, lock it, give its path, and remove it at the end."""
    remove_unfinished(os.path.dirname(path) or '.', os.path.basename(path))
    scratch, lock = '', None
    try:
        while lock is None:  # remove_unfinished() of another process can remove it between the two calls
            scratch = _scratch_name(path)
            make(scratch)
            lock = _lock(scratch)
        yield scratch
    except OSError as error:
        if error.errno is not None and error.filename in (None, scratch):  # other errors name their file
            error.filename = path
        raise
    finally:
        with suppress(OSError):
            _remove(scratch)
        _unlock(lock)


def _scratch_name(path: str) -> str:
    """Return a name that no other process or thread uses. Does not draw from the random state of training."""
    return f'{path}.{secrets.token_hex(4)}{UNFINISHED}'


def _remove_dead(path: str) -> bool:
    """Remove an unfinished file or folder unless its writer runs. Return whether it was removed."""
    lock = _lock(path)
    try:
        if lock is None or (lock == _NO_LOCKS and time.time() - os.stat(path).st_ctime < _STALE):
            return False
        _remove(path)
        return True
    except OSError:  # no permission, or another process was faster
        return False
    finally:
        _unlock(lock)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _lock(path: str) -> int | None:
    """Lock a file or folder without waiting.

    Returns:
        Descriptor for _unlock(); _NO_LOCKS on a file system without locks; None if another process has locked or
        removed the file.
    """
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
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing does not suffice, because forked processes share the lock
        os.close(lock)


def _sync_folder(path: str) -> None:
    """Write the name of a file to disk, if the file system supports it."""
    try:
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    except PermissionError:  # the folder can be written but not read
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(folder)
