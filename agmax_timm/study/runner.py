"""Run many trainings, some at a time, each in a process of its own."""
import os
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any

from tqdm import tqdm

from ..assembly.job_start import LAUNCHER
from ..base import atomic_write
from ..base.processes import cores, environment
from ..base.signals import EXIT_STATUS, StopSignals
from .cost import epochs_of
from .outcome import epochs_done, has_summary, is_complete, last_error, mark_complete
from .plan import Run

_INTERVAL = 0.1  # seconds between looks at the processes
_BAR_INTERVAL = 1.


class Runner:
    """Trains the runs that are not complete.

    A run that fails does not stop the others. A signal that asks this process to end is passed on to the runs, which
    save and end. A second Ctrl-C kills them.

    Args:
        runs: All runs of the study.
        jobs: Runs at a time.
        devices: Values of --device of train.py, which the jobs take in turn; empty for its default.
    """

    def __init__(self, runs: list[Run], jobs: int, devices: list[str]):
        self.runs = runs
        self.devices = [devices[slot % len(devices)] if devices else '' for slot in range(jobs)]
        # A run is one process, also if a launcher started the study.
        self.environment = {name: value for name, value in environment().items() if name not in LAUNCHER}
        self.environment.setdefault('OMP_NUM_THREADS', str(max(1, cores() // jobs)))
        self.waiting: deque[Run] = deque(runs)
        self.running: dict[int, tuple[Run, subprocess.Popen]] = {}  # by slot
        self.errors: dict[str, str] = {}  # one line for each failed run, by its folder
        self.bar: Any = None  # tqdm's, while it runs

    def run(self) -> bool:
        """Train to the end, or to a signal. Returns whether there was a signal."""
        with self._open_bar() as self.bar, StopSignals() as signals:
            try:
                passed_on, last_look = False, time.monotonic()
                while self.running or (self.waiting and not signals.received):
                    if not signals.received:
                        self._fill()
                    elif not passed_on:
                        self._say(f'{signals.received}: {len(self.running)} run(s) save and end')
                        for _, process in self.running.values():
                            process.send_signal(signal.SIGTERM)
                        passed_on = True
                    self._reap(asked=passed_on)
                    if time.monotonic() - last_look >= _BAR_INTERVAL:
                        self._show()
                        last_look = time.monotonic()
                    time.sleep(_INTERVAL)
                self._show()
            finally:
                for _, process in self.running.values():
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)  # with its loader workers
                        process.wait()
        return signals.received is not None

    def _fill(self) -> None:
        """Start a run in every free slot."""
        for slot, device in enumerate(self.devices):
            while slot not in self.running and self.waiting:
                run = self.waiting.popleft()
                if not is_complete(run):
                    self.running[slot] = run, self._start(run, device)

    def _start(self, run: Run, device: str) -> subprocess.Popen:
        os.makedirs(run.cell.folder, exist_ok=True)
        with atomic_write.replacing(run.cell.options_path, 'w', encoding='utf-8') as file:
            file.write(run.cell.recipe)
        with open(run.log_path, 'wb') as log:
            # In a session of its own: Ctrl-C on the terminal comes once, from here.
            return subprocess.Popen(
                run.command(device), env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)

    def _reap(self, asked: bool) -> None:
        """Handle the processes that have ended."""
        for slot, (run, process) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[slot]
            if status == 0 and has_summary(run):
                mark_complete(run)
                self._say(f'{run.name}: complete')
            elif status == EXIT_STATUS or (asked and status in (-signal.SIGTERM, 128 + signal.SIGTERM)):
                self._say(f'{run.name}: interrupted')
            else:
                self.errors[run.folder] = last_error(run.log_path, status)
                self._say(f'{run.name}: failed: {self.errors[run.folder]}')

    def _open_bar(self) -> tqdm:
        return tqdm(total=sum(epochs_of(run.options) for run in self.runs), initial=self._epochs(), unit='epoch',
                    file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty())

    def _epochs(self) -> float:
        """Return the number of epochs that are trained."""
        return round(sum(epochs_of(run.options) if is_complete(run) else min(epochs_of(run.options), epochs_done(run))
                         for run in self.runs), 1)

    def _show(self) -> None:
        if not self.bar.disable:
            self.bar.n = self._epochs()
            done = sum(map(is_complete, self.runs))
            self.bar.set_postfix_str(f'{done}/{len(self.runs)} runs, {len(self.errors)} failed', refresh=False)
            self.bar.refresh()

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
