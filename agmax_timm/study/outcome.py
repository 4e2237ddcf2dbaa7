"""Outcome of a run, read from its folder."""
import csv
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass

from ..base.text import one_line
from .plan import Run

_COMPLETE = 'complete'  # name of a file in the folder of a run that ended with exit status 0
_FAILED = 'The run failed: '  # begin of the last line in the output of a process
_STEP = re.compile(rb'Train: (\d+) \[ *(\d+)/(\d+)')


@dataclass
class Outcome:
    """A row of results.csv."""
    run: Run
    status: str  # complete, failed, interrupted or missing
    value: float | None = None  # metric, if the run is complete
    epoch: int | None = None  # epoch of the value, counted from 0
    error: str = ''  # one line, if the run failed


def mark_complete(run: Run) -> None:
    with open(os.path.join(run.folder, _COMPLETE), 'w'):
        pass


def mark_failed(run: Run, error: str) -> None:
    """Append the error to the output of the process, which the next start of the run empties."""
    with suppress(OSError), open(run.log_path, 'a', encoding='utf-8') as file:
        file.write(f'\n{_FAILED}{error}\n')


def is_complete(run: Run) -> bool:
    return os.path.exists(os.path.join(run.folder, _COMPLETE))


def has_summary(run: Run) -> bool:
    return os.path.exists(_summary_path(run))


def read_outcome(run: Run, metric: str, epoch: str, error: str = '') -> Outcome:
    """Return the outcome of a run, with its value if it is complete.

    Args:
        metric: Name of a column of summary.csv without `eval_`.
        epoch: 'last' or 'best'.
        error: Reason of a failure in this process, if any.
    """
    if not is_complete(run):
        error = error or _error_before(run)
        incomplete = 'interrupted' if os.path.exists(os.path.join(run.folder, 'args.yaml')) else 'missing'
        return Outcome(run, 'failed' if error else incomplete, error=error)
    path = _summary_path(run)
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:  # editors add a byte-order mark
            found = [(float(row[f'eval_{metric}']), int(row['epoch'])) for row in csv.DictReader(file)
                     if row[f'eval_{metric}']]
        if epoch == 'best':
            found = [pair for pair in found if math.isfinite(pair[0])] or found
            found.sort(key=lambda pair: pair[0], reverse=metric == 'loss')  # stable: the later one of equal values
        value, of_epoch = found[-1]
        problem = '' if math.isfinite(value) else f'eval_{metric} is {value} in {path}'
    except (OSError, KeyError, ValueError, IndexError) as reason:
        problem = f'no eval_{metric} in {path} ({type(reason).__name__}: {reason})'
    if problem:
        return Outcome(run, 'failed', error=f"{problem}: remove '{run.folder}' to train it again")
    return Outcome(run, 'complete', value, of_epoch)


def last_error(log_path: str, status: int) -> str:
    """Return one line with the exit status or signal of a process, and the last error in its log."""
    try:
        with open(log_path, 'rb') as file:
            text = _tail(file, 16384).decode('utf-8', 'replace')
    except OSError as error:  # such as a log that was removed
        text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if 'error' in line.lower()]
    line = (errors or lines or ['no output'])[-1]
    how = f'killed by signal {-status}: ' if status < 0 else f'exit status {status}: '
    return f'{how}{one_line(line, 400)}'


def _error_before(run: Run) -> str:
    """Return the error of mark_failed, '' for a run that has not failed."""
    with suppress(OSError), open(run.log_path, 'rb') as file:
        line = _tail(file, 8192).decode('utf-8', 'replace').rstrip().rpartition('\n')[2]
        return line.removeprefix(_FAILED) if line.startswith(_FAILED) else ''
    return ''


def epochs_done(run: Run) -> float:
    """Return the number of epochs that a run has trained, including the fraction of the current epoch."""
    steps = []
    with suppress(OSError), open(os.path.join(run.folder, 'train.log'), 'rb') as file:
        steps = _STEP.findall(_tail(file, 8192))
    if not steps:
        return 0.
    epoch, update, updates = map(int, steps[-1])
    return epoch + (update + 1) / updates


def _summary_path(run: Run) -> str:
    return os.path.join(run.folder, 'summary.csv')


def _tail(file, size: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read()
