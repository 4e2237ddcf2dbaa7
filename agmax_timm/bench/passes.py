"""Measured passes of several configurations in shuffled order, so that slow periods affect all of them equally."""
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from statistics import median

import torch

from .output import Row


@dataclass
class Pass:
    """Cost of one pass."""
    seconds: float
    cpu_seconds: float  # of this process and its children; NaN if those of the children are unknown
    count: int  # amount of work, such as views


Passes = dict[str, list[Pass]]  # passes of all repetitions by configuration


def interleaved(configurations: Mapping[str, Callable[[], int]], repeats: int, warm: bool = True) -> Passes:
    """Measure each configuration once per repetition, in a new random order.

    Args:
        configurations: Functions by name that run one pass and return the amount of work.
        warm: Whether to run each configuration once before the measurement.
    """
    passes: Passes = {name: [] for name in configurations}
    shuffle = random.Random(0).shuffle  # the augmentations use the global random state
    if warm:
        for run in configurations.values():
            run()
    for _ in range(repeats):
        order = [*configurations]
        shuffle(order)
        for name in order:
            start, cpu_start = time.perf_counter(), cpu_seconds()
            count = configurations[name]()
            passes[name].append(Pass(time.perf_counter() - start, cpu_seconds() - cpu_start, count))
    return passes


def rows(passes: Passes, title: str, columns: Mapping[str, Callable[[Pass], float]], baseline: str = '') -> list[Row]:
    """Return a row for each configuration, with its name in the column `title`.

    Args:
        columns: Functions of a pass by column name. Columns have the median over the repetitions. `ratio` gives three
            columns (see ratios).
        baseline: Configuration that ratios refer to; '' for the first one.
    """
    table: list[Row] = []
    for name, own in passes.items():
        row: Row = {title: name}
        for column, value in columns.items():
            if column == 'ratio':
                row.update(ratios(passes, name, baseline or next(iter(passes)), value))
            else:
                middle = median(map(value, own))
                row[column] = int(middle) if isinstance(value(own[0]), int) else middle
        table.append(row)
    return table


def ratios(passes: Passes, name: str, baseline: str, value: Callable[[Pass], float]) -> dict[str, float]:
    """Return `ratio`, `least` and `most` of a configuration's value to the baseline's in the same repetition."""
    return summary([value(own) / value(base) for own, base in zip(passes[name], passes[baseline])])


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the extremes as the columns `ratio`, `least` and `most`."""
    return dict(ratio=median(values), least=min(values), most=max(values))


# Columns of rows().
count, seconds, cpu = map(attrgetter, ('count', 'seconds', 'cpu_seconds'))


def rate(one: Pass) -> float:
    """Return the amount of work per second."""
    return one.count / one.seconds


def seconds_of_one(one: Pass) -> float:
    """Return the seconds per unit of work."""
    return one.seconds / one.count


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, its ended children and its running loader workers."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(
        _cpu_seconds_of(child.pid) for child in multiprocessing.active_children())


def _cpu_seconds_of(pid: int | None) -> float:
    try:
        with open(f'/proc/{pid}/stat') as file:
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return float('nan')
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def sizes(path: str) -> dict[str, float]:
    """Return the sizes in MiB of the lines "NAME: N kB" of a file in /proc; empty if the file does not exist."""
    with suppress(OSError), open(path) as file:
        return {line.split(':')[0]: int(line.split()[1]) / 1024 for line in file if line.endswith(' kB\n')}
    return {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and OpenCV on one thread, so that one core is measured."""
    try:
        import cv2
    except ImportError:
        cv2 = None  # type: ignore[assignment]  # tested for below
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads() if cv2 else 0
    torch.set_num_threads(1)
    if cv2:
        cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cv2:
            cv2.setNumThreads(cv_threads)
