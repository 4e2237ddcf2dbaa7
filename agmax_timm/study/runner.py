"""Runs several training processes in parallel."""
import os
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any

from tqdm import tqdm

from ..base.atomic_write import write_text
from ..base.pipes import print_message
from ..base.processes import LAUNCHER, cores, environment
from ..base.signals import EXIT_STATUS, StopSignals
from ..base.text import one_line
from .cost import epochs_of
from .outcome import epochs_done, has_summary, is_complete, last_error, mark_complete, mark_failed
from .plan import Run

_INTERVAL = 0.1  # seconds between polls of the processes
_BAR_INTERVAL = 1.


class Runner:
    """Trains the incomplete runs.

    A failed run does not stop the others. After a signal to this process or an error in it, the runs are asked to end,
    and save a checkpoint. A second Ctrl-C kills the runs.

    Args:
        jobs: Number of runs in parallel.
        devices: Values of --device for the jobs, in turn; empty for the default of train.py.
    """

    def __init__(self, runs: list[Run], jobs: int, devices: list[str]):
        self.runs = runs
        self.devices = [devices[slot % len(devices)] if devices else '' for slot in range(jobs)]
        # A launcher of the study must not turn its runs into ranks.
        self.environment = {name: value for name, value in environment().items() if name not in LAUNCHER}
        self.environment.setdefault('OMP_NUM_THREADS', str(max(1, cores() // min(jobs, len(runs)))))
        self.waiting: deque[Run] = deque(runs)
        self.running: dict[int, tuple[Run, subprocess.Popen]] = {}  # by slot
        self.errors: dict[str, str] = {}  # error message of each failed run by its folder
        self.bar: Any = None  # tqdm bar

    def run(self) -> bool:
        """Train until all runs have ended, or until a signal. Return whether there was a signal."""
        self.bar = tqdm(total=sum(epochs_of(run.options) for run in self.runs), initial=self._epochs(), unit='epoch',
                        file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty())
        with self.bar, StopSignals() as signals:
            try:
                self._train(signals)
            except Exception as error:
                self._stop(type(error).__name__)
                for _, process in self.running.values():
                    process.wait()
                raise
            finally:
                for _, process in self.running.values():
                    if process.poll() is None:  # after a second Ctrl-C
                        os.killpg(process.pid, signal.SIGKILL)  # the group includes its loader workers
                        process.wait()
        return signals.received is not None

    def _train(self, signals: StopSignals) -> None:
        passed_on, last_shown = False, time.monotonic()
        while self.running or (self.waiting and not signals.received):
            if not signals.received:
                self._fill()
            elif not passed_on:
                self._stop(signals.received)
                passed_on = True
            self._reap(interrupted=signals.received is not None)
            if time.monotonic() - last_shown >= _BAR_INTERVAL:
                self._show()
                last_shown = time.monotonic()
            time.sleep(_INTERVAL)
        self._show()

    def _stop(self, reason: str) -> None:
        """Ask the runs to end."""
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
        if self.running:
            print_message(f'{reason}: {len(self.running)} run(s) save and end')

    def _fill(self) -> None:
        """Start a run in every free slot."""
        for slot, device in enumerate(self.devices):
            while slot not in self.running and self.waiting:
                run = self.waiting.popleft()
                if not is_complete(run):
                    try:
                        self.running[slot] = run, self._start(run, device)
                    except OSError as error:
                        self._fail(run, f'not started: {one_line(error)}')

    def _start(self, run: Run, device: str) -> subprocess.Popen:
        os.makedirs(run.cell.folder, exist_ok=True)
        write_text(run.cell.options_path, run.cell.recipe)
        with open(run.log_path, 'wb') as log:
            # In a new session, the run does not receive Ctrl-C of the terminal in addition to the signal from run().
            return subprocess.Popen(
                run.command(device), env={**self.environment, 'WANDB_NAME': run.name}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def _reap(self, interrupted: bool) -> None:
        """Handle the processes that have ended."""
        for slot, (run, process) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[slot]
            if status == 0 and has_summary(run):
                try:
                    mark_complete(run)
                    print_message(f'{run.name}: complete')
                except OSError as error:
                    self._fail(run, f'not marked as complete: {one_line(error)}')
            elif interrupted and status in (EXIT_STATUS, -signal.SIGTERM, 128 + signal.SIGTERM):
                print_message(f'{run.name}: interrupted')
            else:
                self._fail(run, last_error(run.log_path, status))

    def _fail(self, run: Run, error: str) -> None:
        self.errors[run.folder] = error
        mark_failed(run, error)
        print_message(f'{run.name}: failed: {error}')

    def _epochs(self) -> float:
        """Return the number of epochs that all runs have trained."""
        return round(sum(epochs_of(run.options) if is_complete(run) else min(epochs_of(run.options), epochs_done(run))
                         for run in self.runs), 1)

    def _show(self) -> None:
        if not self.bar.disable:
            self.bar.n = self._epochs()
            done = sum(map(is_complete, self.runs))
            self.bar.set_postfix_str(f'{done}/{len(self.runs)} runs, {len(self.errors)} failed', refresh=False)
            self.bar.refresh()
