"""The newest valid checkpoint of a run's folder."""
import math
import os
from contextlib import suppress
from typing import Any

from ..base.errors import CheckpointError
from ..base.safe_load import read_file, verify
from .checkpoint import STATE

SUFFIX = '.pth.tar'
_SCRATCH_OF_TIMM = ('tmp.pth.tar', 'recovery_tmp.pth.tar')
_PREFERRED = ('last', 'checkpoint', 'recovery', 'milestone')  # of files that hold the same state


def checkpoint_names(folder: str) -> list[str]:
    """Return the sorted names of the checkpoints in a folder. Empty if the folder does not exist."""
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX) and name not in _SCRATCH_OF_TIMM)


def newest_checkpoint(folder: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Find the checkpoint from which a run continues: the latest position of its last branch (see branch_of).

    Returns:
        (path, damaged): Path of the newest valid checkpoint, or None. Path and reason of each damaged checkpoint that
        is newer or whose position cannot be read; the reason is a sentence that begins with the path.
    """
    damaged, candidates = [], []
    for name in checkpoint_names(folder):
        path = os.path.join(folder, name)
        try:
            checkpoint = read_file(path, mmap=True)
            position = position_of(checkpoint)
        except CheckpointError as error:
            damaged.append((path, str(error)))
        else:
            if position is not None:
                candidates.append(((branch_of(checkpoint), position), path))
    candidates.sort(key=lambda candidate: (candidate[0], -_preference(candidate[1])), reverse=True)
    found: dict[tuple[int, int], str] = {}  # hard links are one file, which is read once
    for _, path in candidates:
        reason = _damage(path, found)
        if reason is None:
            return path, damaged
        damaged.append((path, reason))
    return None, damaged


def position_of(checkpoint: dict[str, Any]) -> tuple[int, float] | None:
    """Return the epoch that a checkpoint continues with, and how many of its images were trained.

    The number is infinite if only the evaluation of the epoch is left. Batches do not compare after a change of the
    batch size or of the number of ranks. None if the checkpoint does not store the epoch.
    """
    epoch = checkpoint.get('epoch')
    if not isinstance(epoch, int):
        return None
    following = epoch + 1 if checkpoint.get('version', 1) > 1 else epoch  # timm's first format had added the 1
    if 'metric' in checkpoint:  # of a finished epoch
        return following, 0
    try:
        state = checkpoint[STATE]
        position = state['position']
        images = math.inf if position.get('trained') else int(position['batch']) * _images_of_batch(state)
        return int(position['epoch']), images
    except (AttributeError, KeyError, TypeError, ValueError):
        return max(0, following - 1), 0  # the epoch in which the file was written


def _images_of_batch(state: dict[str, Any]) -> int:
    """Return the number of images in a batch of all ranks. 1 if it is unknown or varies, and then cannot change."""
    try:
        shape = state['ranks'][0]['loader']['shape']
        return max(1, int(shape['batch size'])) * int(shape['ranks'])
    except (IndexError, KeyError, TypeError, ValueError):
        return 1


def branch_of(checkpoint: dict[str, Any]) -> int:
    """Return how often the run had gone back to an older checkpoint. Checkpoints of earlier branches are ignored."""
    state = checkpoint.get(STATE)
    return state.get('line', 0) if isinstance(state, dict) else 0


def next_branch(folder: str) -> int:
    """Return the number of the branch of a run that goes back to an older checkpoint of its folder."""
    branches = [0]
    for name in checkpoint_names(folder):
        with suppress(CheckpointError):
            branches.append(branch_of(read_file(os.path.join(folder, name), mmap=True)))
    return max(branches) + 1


def _preference(path: str) -> int:
    """Return the position of a file's kind in _PREFERRED, for sorting."""
    kind = os.path.basename(path).split('.')[0].split('-')[0]
    return _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)


def _damage(path: str, found: dict[tuple[int, int], str]) -> str | None:
    """Why a file cannot be used, None if it can."""
    try:
        stat = os.stat(path)
        file = stat.st_dev, stat.st_ino
        if file in found:
            return f'{path} is the same file as {os.path.basename(found[file])}'
        found[file] = path
        verify(path)
    except (OSError, CheckpointError) as error:
        return str(error)
    return None
