"""Passes of several configurations, one after the other in shuffled order, so that a slow moment meets all alike."""
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch


@dataclass
class Pass:
    """What one pass took."""
    seconds: float
    cpu_seconds: float  # of this process and its children, nan where those of children cannot be read
    count: int  # of what was done, such as views


Passes = dict[str, list[Pass]]  # by configuration, one of each repetition


def interleaved(configurations: Mapping[str, Callable[[], int]], repeats: int, warm: bool = True) -> Passes:
    """Measure each configuration once in each repetition, the order drawn anew.

    Args:
        configurations: By name, functions that do one pass and return how much they did.
        repeats: Repetitions.
        warm: Begin with a pass of each that does not count.
    """
    passes: Passes = {name: [] for name in configurations}
    shuffle = random.Random(0).shuffle  # the global state is the augmentation's
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


def ratios(passes: Passes, name: str, baseline: str, value: Callable[[Pass], float]) -> dict[str, float]:
    """Columns `ratio`, `least` and `most`: of a configuration's value to the baseline's in the same repetition."""
    pairs = [value(own) / value(base) for own, base in zip(passes[name], passes[baseline])]
    return dict(ratio=median(pairs), least=min(pairs), most=max(pairs))


def seconds(one: Pass) -> float:
    return one.seconds


def rate(one: Pass) -> float:
    """Of what was done, a second."""
    return one.count / one.seconds


def cpu_seconds() -> float:
    """CPU seconds of this process, of children that have ended, and of loader workers that run."""
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


@contextmanager
def one_thread() -> Iterator[None]:
    """This process on one thread of torch and OpenCV, so that one core does all that is measured."""
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
