"""The folder of a run: its name, what it records of the run, and continuing in it."""
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import torch.distributed as dist
import yaml
from timm import utils
from timm.models import safe_model_name

from ...base import atomic_write
from ...base.distributed import is_distributed, world_size
from ...base.errors import OptionError
from ...options.model import TrainModel
from ...options.parsers import TrainOptions
from ...options.run import Run
from ...weights.find import checkpoint_names, newest_checkpoint, next_line
from . import log as reporting
from .log_file import LogFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # locks are then left out

_logger = logging.getLogger('train')


def resolve_resume(options: TrainOptions) -> TrainOptions:
    """Settle --resume auto: the newest checkpoint of --experiment that is whole, or a fresh run where there is none.

    Raises:
        OptionError: there are checkpoints, and all of them are damaged.
    """
    if options.resume != 'auto':
        return options
    folder = run_folder(options)
    path, damaged = newest_checkpoint(folder)
    reasons = '; '.join(reason for _, reason in damaged)
    if damaged and path is None:
        raise OptionError(f'--resume auto: no checkpoint in {folder} is whole ({reasons}): name a good one with '
                          '--resume FILE, or start afresh with another --experiment')
    if damaged and _first_rank():
        _logger.warning(f'{reasons}: continuing from {path}')
    return replace(options, resume=path or '')


def check_folder(options: TrainOptions, auto: bool = False, lock: bool = True) -> None:
    """Refuse, before anything is built, a folder that cannot be written or that holds another run.

    Args:
        auto: Whether it was --resume auto: without a checkpoint, a folder of nothing but logs is continued with.
        lock: Have it for this process alone; that leaves a file in it.

    Raises:
        OptionError: the message names the folder and what to do.
    """
    folder = run_folder(options)
    if options.experiment and os.path.isdir(folder) and not goes_on(options, folder):
        held = checkpoint_names(folder)
        if os.path.exists(summary_path(folder)) and not auto:
            held.append('summary.csv')
        if held:
            raise OptionError(f'{folder} holds another run ({held[0]}): continue with it by --resume auto, or start '
                              'afresh with another --experiment')
    if _first_rank():
        with writing(folder):
            check_writable(folder)
            if options.experiment and os.path.isdir(folder) and lock:
                _lock(folder)


def _first_rank() -> bool:
    return utils.world_info_from_env()[1] == 0


def check_writable(folder: str) -> None:
    """Raise OSError where neither a folder nor a file in it could be made."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder) or '.'
    with tempfile.TemporaryFile(dir=folder, buffering=0) as f:
        f.write(b'x')


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Raise OptionError, with what to do, where a file in a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise OptionError(f'cannot write {error.filename or folder}: {error.strerror or error}: give a folder that '
                          'can be written with --output') from error


_locks: dict[str, Any] = {}  # open files, by folder: the system lets go of them when the process ends


def _lock(folder: str) -> None:
    """Have a folder for this process alone, as long as it lives.

    Raises:
        OptionError: another process has it.
    """
    folder = os.path.realpath(folder)
    if fcntl is None or folder in _locks:
        return
    file = open(os.path.join(folder, '.lock'), 'a')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OptionError(
                f'another process trains in {folder}: wait for it, or use another --experiment') from error
        _logger.warning(f'{folder} cannot be locked ({error.strerror}): no other process may train in it')
    else:
        _locks[folder] = file


def check_same_start(options: Run, resume_epoch: int | None) -> None:
    """Raise OptionError where ranks found different checkpoints, as on machines that do not share the folder.

    Args:
        resume_epoch: Epoch that this rank's checkpoint continues with, None without one.
    """
    if not is_distributed():
        return
    epochs = [resume_epoch] * world_size()
    dist.all_gather_object(epochs, resume_epoch)
    others = [rank for rank, epoch in enumerate(epochs) if epoch != epochs[0]]
    if others:
        start = [f'continues with epoch {epoch}' if epoch is not None else 'finds no checkpoint' for epoch in epochs]
        raise OptionError(f'--resume: rank 0 {start[0]}, rank {others[0]} {start[others[0]]}: give every machine '
                          f'the same files, --output {_parent(options)} on storage that all of them share')


def open_folder(
        options: TrainOptions,
        given: TrainOptions,
        img_size: int,
        before: Any = None,
) -> tuple[str, LogFile]:
    """Create or enter the run's folder, named as timm names it, with the options as args.yaml and the log in train.log.

    A run that continues in its own folder continues with the log and the summary of its checkpoint.

    Args:
        given: Options as given.
        img_size: Side of the input, for the name.
        before: What the checkpoint holds that the run was resumed from, None without one.

    Raises:
        OptionError: the folder cannot be written, or another process has it.
    """
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = options.experiment or f'{stamp}-{safe_model_name(options.model)}-{img_size}'
    folder = os.path.join(_parent(options), name)
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        _lock(folder)
        atomic_write.remove_unfinished(folder)
        log_path = os.path.join(folder, 'train.log')
        if before is not None and before.exact and goes_on(options, folder):
            atomic_write.truncate(log_path, before.state['log'])
            if before.state['rows']:
                reporting.write_summary(summary_path(folder), before.state['rows'])
        log = reporting.log_to_file(log_path)
        with atomic_write.replacing(os.path.join(folder, 'args.yaml'), 'w') as f:
            yaml.safe_dump(dict(vars(given)), f, default_flow_style=False)
    return folder, log


def share_path(options: Run, path: str | None) -> str | None:
    """The first rank's path, on all ranks."""
    paths = [path]
    if is_distributed():
        dist.broadcast_object_list(paths, 0)
    return paths[0]


def goes_on(options: TrainModel, folder: str | None) -> bool:
    """Whether the run was resumed from a checkpoint in its own folder."""
    return bool(options.resume and folder) and (
        os.path.realpath(os.path.dirname(options.resume)) == os.path.realpath(folder or ''))


def branch_to_write(options: TrainOptions, auto: bool, state: dict[str, Any] | None) -> int:
    """Number of the line of checkpoints that the run writes; see newest.branch_of.

    Args:
        auto: Whether it was --resume auto.
        state: That of the checkpoint, None without one.
    """
    folder = os.path.dirname(options.resume)
    if not auto and options.experiment and goes_on(options, run_folder(options)):
        return next_line(folder)
    return (state or {}).get('line', 0) if auto else 0


def summary_path(folder: str) -> str:
    return os.path.join(folder, 'summary.csv')


def run_folder(options: Run) -> str:
    """The folder of --experiment, or the one that a run without a name makes its own in."""
    return os.path.join(_parent(options), options.experiment)


def _parent(options: Run) -> str:
    return options.output or os.path.join('output', 'train')
