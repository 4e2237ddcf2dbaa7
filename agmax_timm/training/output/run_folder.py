"""The folder of a run: its name, its files about the run, and resuming in it."""
import errno
import fcntl
import filecmp
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Any

import yaml
from timm.models import safe_model_name

from ...base import atomic_write
from ...base.distributed import gather_objects
from ...base.errors import OptionError
from ...base.output_files import write_csv
from ...base.processes import is_first_process
from ...base.safe_load import verify
from ...options.declare import values
from ...options.model import TrainModel
from ...options.parsers import TrainOptions
from ...options.paths import check_initial_weights
from ...options.run import Run
from ...weights.find import checkpoint_names, newest_checkpoint, next_branch
from .log import read_rows
from .log_file import LogFile, log_to_file

OTHER_OUTPUT = 'give a folder that can be written with --output'

_logger = logging.getLogger('train')


def resolve_resume(options: TrainOptions) -> TrainOptions:
    """Verify the checkpoint of --resume. For 'auto', it is the newest valid one of --experiment, '' if there is none.

    Raises:
        OptionError: All checkpoints are damaged, or there is none and a file of initial weights is missing.
        CheckpointError: The given one is damaged.
    """
    if options.resume != 'auto':
        if options.resume:
            verify(options.resume)
        return options
    folder = run_or_parent_folder(options)
    path, damaged = newest_checkpoint(folder)
    reasons = '; '.join(reason for _, reason in damaged)
    if damaged and path is None:
        raise OptionError(f"--resume auto: no checkpoint in '{folder}' is intact ({reasons}): name another one with "
                          '--resume FILE, or start a new run with another --experiment')
    if damaged and is_first_process():
        _logger.warning(f"{reasons}: continuing from '{path}'")
    options = replace(options, resume=path or '')
    for problem in check_initial_weights(options):
        raise OptionError(problem)
    return options


def check_folder(options: TrainOptions, auto: bool = False, lock: bool = True) -> None:
    """Check that the folder can be written and has no other run, before any object is created.

    Args:
        auto: Whether the run was started with --resume auto, which accepts a folder with logs but no checkpoint.
        lock: Whether to lock the folder for this process, which creates a file in it.

    Raises:
        OptionError: The folder cannot be used.
    """
    folder = run_or_parent_folder(options)
    if options.experiment and os.path.isdir(folder) and not resumes_in(options, folder):
        held = checkpoint_names(folder)
        if os.path.exists(summary_path(folder)) and not auto:
            held.append('summary.csv')
        if held:
            raise OptionError(f"'{folder}' holds another run ('{held[0]}'): continue it with --resume auto, or start "
                              'a new run with another --experiment')
    if is_first_process():
        with writing(folder):
            check_writable(folder)
            if options.experiment and os.path.isdir(folder) and lock:
                _lock(folder)


def check_writable(folder: str) -> None:
    """Raise OSError if the folder, or a file in it, cannot be created."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder) or '.'
    with tempfile.TemporaryFile(dir=folder, buffering=0) as f:
        f.write(b'x')


@contextmanager
def writing(folder: str, remedy: str = OTHER_OUTPUT) -> Iterator[None]:
    """Turn an OSError about a file in a folder into an OptionError with the remedy."""
    try:
        yield
    except OSError as error:
        raise OptionError(
            f"cannot write '{error.filename or folder}': {error.strerror or error}: {remedy}") from error


_locks: dict[str, Any] = {}  # open files by folder; the system unlocks them when the process ends


def _lock(folder: str) -> None:
    """Lock a folder until this process ends.

    Raises:
        OptionError: Another process has locked it.
    """
    folder = os.path.realpath(folder)
    if folder in _locks:
        return
    file = open(os.path.join(folder, '.lock'), 'a')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OptionError(
                f"another process trains in '{folder}': wait for it, or use another --experiment") from error
        _logger.warning(f"'{folder}' cannot be locked ({error.strerror}): no other process may train in it")
    else:
        _locks[folder] = file


def check_same_start(options: Run, resume_epoch: int | None, state: dict[str, Any]) -> None:
    """Raise OptionError if ranks found different checkpoints, as on machines that do not share the folder.

    Args:
        resume_epoch: Next epoch according to the checkpoint of this rank, None without a checkpoint.
        state: State in the checkpoint, empty without one.
    """
    position, start = state.get('position', {}), 'finds no checkpoint'
    if resume_epoch is not None:
        where, branch = f'epoch {resume_epoch}', f" of branch {state['line']}" if state.get('line') else ''
        if position.get('trained'):
            where = f'the evaluation of {where}'
        elif position.get('batch'):
            where = f"batch {position['batch']} of {where}"
        start = f'continues with {where}{branch}'
    starts = gather_objects(start)
    others = [rank for rank, other in enumerate(starts) if other != starts[0]]
    if others:
        raise OptionError(f'--resume: rank 0 {starts[0]}, but rank {others[0]} {starts[others[0]]}: give every machine '
                          f"the same files: put --output '{_parent(options)}' on storage that all of them share")


def open_folder(
        options: TrainOptions,
        img_size: int,
        restored: dict[str, Any],
) -> tuple[str, LogFile]:
    """Create the folder of a run with timm's name, or open it again, and begin train.log in it.

    If a run resumes in its own folder, the log and the summary are cut to those of its checkpoint.

    Args:
        img_size: Side of the input in pixels, for the name.
        restored: State of the checkpoint that is restored, empty if there is none.

    Raises:
        OptionError: The folder cannot be written, or another process has locked it.
    """
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = options.experiment or f'{stamp}-{safe_model_name(options.model)}-{img_size}'
    folder = os.path.join(_parent(options), name)
    with writing(folder):
        if options.experiment:
            os.makedirs(folder, exist_ok=True)
        else:
            folder = _create_new(folder)
        _lock(folder)
        atomic_write.remove_unfinished(folder)
        log_path = os.path.join(folder, 'train.log')
        if restored and resumes_in(options, folder):
            atomic_write.truncate(log_path, restored['log'])
            if restored['rows']:
                write_csv(summary_path(folder), restored['rows'])
        return folder, log_to_file(log_path)


def _create_new(folder: str) -> str:
    """Create a folder, with a number behind its name if another run has it. Return its path."""
    path, numbers = folder, count(1)
    while True:
        try:
            os.makedirs(path)
            return path
        except FileExistsError:
            path = f'{folder}-{next(numbers)}'


def write_args(folder: str, given: TrainOptions) -> None:
    """Write args.yaml.

    Args:
        given: Options of the command line and its files, before the data changed any.

    Raises:
        OptionError: The file cannot be written.
    """
    with writing(folder), atomic_write.replacing(os.path.join(folder, 'args.yaml'), 'w') as f:
        yaml.safe_dump(values(given), f, default_flow_style=False)


def take_over(folder: str, epoch: int) -> list[dict[str, Any]]:
    """Prepare the folder of a run that timm's script or an early version began: its checkpoint has no history.

    Its args.yaml and summary.csv are kept under other names. The new summary.csv has the epochs before `epoch`.

    Returns:
        The rows of the new summary.csv.

    Raises:
        OptionError: A file cannot be written.
    """
    with writing(folder):
        for path in filter(os.path.isfile, (os.path.join(folder, 'args.yaml'), summary_path(folder))):
            _keep(path)
        rows = [row for row in read_rows(summary_path(folder)) if row['epoch'] < epoch]
        if rows:
            write_csv(summary_path(folder), rows)
    return rows


def _keep(path: str) -> None:
    """Keep a file under another name, unless a former copy has the same content."""
    for copy in (f'{path}.{number}' for number in count(1)):
        if not os.path.exists(copy):
            atomic_write.link(path, copy)
            _logger.info(f"'{path}' of the run so far is kept as '{copy}'")
            return
        if filecmp.cmp(path, copy, shallow=False):
            return


def resumes_in(options: TrainModel, folder: str) -> bool:
    """Whether the run resumes from a checkpoint in this folder."""
    return bool(options.resume) and os.path.realpath(os.path.dirname(options.resume)) == os.path.realpath(folder)


def branch_to_write(options: TrainOptions, auto: bool, state: dict[str, Any]) -> int:
    """Return the number of the branch of checkpoints that the run writes; see find.branch_of.

    Args:
        auto: Whether the run was started with --resume auto.
        state: State in the checkpoint, empty without one.
    """
    folder = os.path.dirname(options.resume)
    continues = auto and options.start_epoch is None and not options.no_resume_opt
    if not continues and options.experiment and resumes_in(options, run_or_parent_folder(options)):
        return next_branch(folder)
    return state.get('line', 0) if continues else 0


def summary_path(folder: str) -> str:
    return os.path.join(folder, 'summary.csv')


def run_or_parent_folder(options: Run) -> str:
    """Return the folder of --experiment, or the parent folder of runs without a name."""
    return os.path.join(_parent(options), options.experiment)


def _parent(options: Run) -> str:
    return options.output or os.path.join('output', 'train')
