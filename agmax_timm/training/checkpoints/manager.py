"""Decides when a run saves: after an epoch, at intervals within an epoch, and when a signal asks it to end."""
import logging
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import torch

from ...assembly.sharding import WholeState, whole
from ...base.distributed import gather_objects, is_primary, largest, rank
from ...base.output_files import write_csv
from ...base.signals import Interrupted, StopSignals
from ...data.sources.decoding import damage_of
from ...options.quantities import parse_interval
from ...options.run import Run
from ..guards.watchdog import Watchdog
from ..output import run_folder
from ..output.log import tolerated
from ..updates.finite_check import CheckResult
from ..updates.losses import NonFiniteError, RunningLosses
from ..updates.step import Training
from .saver import CheckpointSaver
from .state import Position, RunState

_logger = logging.getLogger('train')


class CheckpointManager:
    """Writes the checkpoints and the summary of a run. Every rank has a manager; only the first rank writes.

    Args:
        state: State of the run besides weights and optimizer.
        signals: Signals that ask the run to end.
        watchdog: Watchdog, which is notified of every update.
    """

    def __init__(self, training: Training, state: RunState, signals: StopSignals, watchdog: Watchdog):
        self.training = training
        self.state = state
        self.signals = signals
        self.watchdog = watchdog
        options = training.options
        self.gathered = WholeState(training.task, training.optimizer, keep=is_primary()) if options.fsdp else None
        self.interval, self.unit = parse_interval(options.recovery_interval)
        self.output_dir = ''  # this and the next three are set on the first rank
        self.saver: CheckpointSaver | None = None
        self.constants: dict[str, Any] = {}  # further entries of every state
        self.log_position = lambda: 0
        self.damage = damage_of(state.loader.dataset)
        if self.damage is not None:
            self.damage.deferred = True  # requests() ends the run, after it has saved
        self._saved()

    def create_saver(self, folder: str, metadata: dict[str, Any], decreasing: bool = False) -> CheckpointSaver:
        """Return a saver of checkpoints; arguments as for CheckpointSaver."""
        training = self.training
        return CheckpointSaver(folder, self.gathered or training.task, self.gathered or training.optimizer,
                               training.options, metadata, training.precision.scaler, decreasing)

    def requests(self) -> tuple[bool, bool]:
        """Return whether to save and whether to stop after this update. FiniteCheck calls it."""
        self.watchdog.beat()
        self._updates += 1
        due = False
        if self.interval and self.unit == 'updates':
            due = self._updates >= self.interval
        elif self.interval and rank() == 0:
            due = time.monotonic() - self._saved_at >= self.interval
        asked = self.signals.received is not None
        return due, asked or (self.damage is not None and self.damage.too_many)

    def after_update(self, epoch: int, batches: int, losses: RunningLosses, checked: CheckResult) -> None:
        """Save and stop if any rank requested it before the update.

        Raises:
            Interrupted: A signal asked the run to end; the run is saved.
            DamagedError: Too many training images are damaged; the run is saved.
        """
        if not checked.save and not checked.stop:
            return
        if losses.count:  # zero if every update of the epoch was skipped
            losses.read(f'by batch {batches} of epoch {epoch}')
        if checked.stop and self.damage is not None:
            self.damage.gather(self.training.device)
        self.save_within(Position(epoch, batches), losses)
        if checked.stop:
            self.leave(f'epoch {epoch}, batch {batches}')

    def save_within(self, position: Position, losses: RunningLosses, random: dict[str, Any] | None = None) -> None:
        """Write a recovery file. All ranks must call it."""
        check_weights(self.training.task, self.training.device)
        state = self.gather(position, losses, random)
        if self.saver is not None:
            self.saver.save_recovery(position.epoch, position.batch - 1, state)
        self._saved()

    def save_epoch(self, epoch: int, metric: float | None, **metrics: dict[str, float] | None) -> None:
        """Write the checkpoint of a finished epoch, and the summary. All ranks must call it."""
        check_weights(self.training.task, self.training.device)
        state = self.gather(Position(epoch + 1))
        if self.saver is not None:
            path = run_folder.summary_path(self.output_dir)
            with tolerated(path):
                write_csv(path, self.state.history.rows)
            self.saver.save_checkpoint(epoch, metric, state=state, **metrics)
            if epoch + 1 in self.training.options.save_epochs:
                self.saver.save_milestone(epoch + 1)
        self._saved()

    def _saved(self) -> None:
        """Start to count updates and seconds until the next save."""
        self._updates = 0
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Wait until everything is on disk. All ranks must call it before they raise an error together.

        A launcher kills the first rank, which writes the files, if another rank has ended with an error.

        Raises:
            SaveError: The last checkpoint could not be written. Raised on the first rank only.
        """
        try:
            if self.saver is not None:
                self.saver.close()
        finally:
            largest(0, self.training.device)  # a barrier

    def close(self, where: str) -> None:
        """Wait until everything is on disk, and log how the run continues. All ranks must call it.

        Raises:
            SaveError: The last checkpoint could not be written.
        """
        self.finish()
        _logger.info(f'Saved at {where}. {self._how_to_continue()}.')

    def leave(self, where: str) -> NoReturn:
        """Wait until everything is on disk, then raise Interrupted, or DamagedError for too many damaged images.

        All ranks must call it.
        """
        if self.damage is not None and self.damage.too_many:
            self.close(where)
            self.damage.check()
        self.finish()
        raise Interrupted(f'{self.signals.signal_name}: saved at {where}. {self._how_to_continue()}')

    def _how_to_continue(self) -> str:
        options = self.training.options
        flags = {'--start-epoch': options.start_epoch is not None, '--no-resume-opt': options.no_resume_opt}
        without = ' and '.join(flag for flag, given in flags.items() if given)
        return ('The same command continues from there with --resume auto (and --experiment), or with --resume FILE'
                + (f', without {without}' if without else ''))

    def gather(
            self,
            position: Position,
            losses: RunningLosses | None = None,
            random: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Return the state to save on the first rank, None on others; see RunState.state_dict. A collective."""
        if self.gathered is not None:
            self.gathered.gather()
        state = self.state.state_dict(position, losses, random)
        if state is None:
            return None
        damaged = self.damage.indices() if self.damage is not None else []
        return {**state, **self.constants, 'log': self.log_position(), 'damaged': damaged}


def most_files(options: Run, epochs: Iterable[int]) -> int:
    """Return the largest number of checkpoint files that exist at one time. Hard links count once.

    Files are the best, the last, the milestones, two recovery files, and the next file while it is written.

    Args:
        epochs: Epochs, counted from 1, that are followed by an evaluation.
    """
    epochs = set(epochs)
    files = options.checkpoint_hist + len(epochs & set(options.save_epochs)) + 1
    return min(len(epochs), files + 1) + (2 if options.recovery_interval else 0)


def check_weights(task: Any, device: torch.device) -> None:
    """Raise NonFiniteError on all ranks if weights of one are NaN or infinite. All ranks must call it.

    An update with a finite loss can cause it. The running statistics of BatchNorm differ between ranks.
    """
    module: Any = task.get_trainable_module()
    state = module.state_dict()
    finite = {name: whole(value.isfinite().all()) for name, value in state.items() if value.is_floating_point()}
    broken = [] if torch.stack(list(finite.values())).all() else [name for name, value in finite.items() if not value]
    if largest(len(broken), device):
        broken = next(filter(None, gather_objects(broken)))
        raise NonFiniteError(f'{broken[0]} and {len(broken) - 1} more of the weights are not finite: nothing was saved '
                             'of them. Try a smaller --lr, --clip-grad or more --warmup-epochs')
