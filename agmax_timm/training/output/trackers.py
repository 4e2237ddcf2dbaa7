"""Trackers: Weights & Biases and TensorBoard get the rows of summary.csv, and the losses at log intervals."""
import os
from typing import Any

from ...base.errors import OptionError
from ...base.text import one_line
from ...options.declare import values
from ...options.run import Tracking
from ..updates.loop import Progress
from .log import tolerated


def require_trackers(options: Tracking) -> None:
    """Raise OptionError if a package for --log-wandb or --log-tensorboard is missing."""
    if options.log_wandb:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise OptionError('--log-wandb needs the package wandb: pip install wandb, or drop it') from error
    if options.log_tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise OptionError(
                '--log-tensorboard needs the package tensorboard: pip install tensorboard, or drop it') from error


class Trackers:
    """The trackers of a run, on the first rank.

    Losses are logged at the number of updates before them. The row of an epoch is logged at the number of updates
    after it in TensorBoard, and at its epoch in Weights & Biases. A resumed run logs some values again: TensorBoard
    replaces the old values, Weights & Biases shows both.

    Args:
        done_updates: Updates before the run was resumed, if all epochs had the present length.
        rows: Rows of summary.csv before the run was resumed.
        same_folder: Whether the run resumes in its own folder.
        shift: Correction of the step axis: the updates really made before the run was resumed, minus `done_updates`.
            0 unless the number of ranks or the batch size changed.

    Raises:
        OptionError: Weights & Biases cannot be started.
    """

    def __init__(
            self,
            options: Tracking,
            folder: str,
            updates_per_epoch: int,
            done_updates: int,
            rows: list[dict[str, Any]],
            same_folder: bool,
            shift: int = 0,
    ):
        self.updates_per_epoch, self.shift = updates_per_epoch, shift
        self.wandb = _start_wandb(options, os.path.basename(folder)) if options.log_wandb else None
        self.board = None
        if options.log_tensorboard:
            # A folder without a checkpoint may have values of a process that was killed before its first checkpoint.
            self.board = _Board(os.path.join(folder, 'tensorboard'), done_updates + shift if same_folder else 0)
            for row in rows:
                if not same_folder or self._end_of(row) >= done_updates + shift:
                    self.board.write(row, self._end_of(row))

    def row(self, row: dict[str, Any]) -> None:
        """Log the row of an epoch."""
        if self.wandb is not None:
            self.wandb.log(row)
        if self.board is not None:
            self.board.write(row, self._end_of(row))

    def update(self, progress: Progress) -> None:
        """Log the losses of an update."""
        losses = {f'update_{name}': value for name, value in progress.last.items()}
        step = progress.epoch * self.updates_per_epoch + progress.update_index + self.shift
        if self.wandb is not None:
            self.wandb.log({'update': step, **losses})
        if self.board is not None:
            self.board.write(losses, step)

    def finish(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
        if self.board is not None:
            self.board.close()

    def _end_of(self, row: dict[str, Any]) -> int:
        return (row['epoch'] + 1) * self.updates_per_epoch + self.shift


class _Board:
    """TensorBoard files in a folder. A disk error ends the logging, not the run.

    Args:
        purge_step: First step whose earlier values are replaced.
    """

    def __init__(self, folder: str, purge_step: int):
        from torch.utils.tensorboard import SummaryWriter
        self.folder = folder
        self.writer = None
        with tolerated(folder):
            self.writer = SummaryWriter(folder, purge_step=purge_step)

    def write(self, row: dict[str, Any], step: int) -> None:
        writer, self.writer = self.writer, None  # stays None after a disk error
        if writer is not None:
            with tolerated(self.folder):
                for name, value in row.items():
                    if name != 'epoch':
                        writer.add_scalar(name, value, step)
                writer.flush()  # so that a killed process leaves no gap
                self.writer = writer

    def close(self) -> None:
        if self.writer is not None:
            with tolerated(self.folder):
                self.writer.close()


def _start_wandb(options: Tracking, name: str) -> Any:
    """Start a run of Weights & Biases, which plots rows over `epoch` and losses over `update`.

    Raises:
        OptionError: The run cannot be started.
    """
    import wandb
    try:
        run = wandb.init(
            project=options.wandb_project,
            name=os.environ.get('WANDB_NAME') or name,  # a study names its runs
            config=values(options),
            tags=options.wandb_tags,
            id=options.wandb_resume_id or None,
            resume='must' if options.wandb_resume_id else None,
        )
    except wandb.Error as error:
        reason = one_line(error).rstrip('.')
        raise OptionError(
            f'--log-wandb: {reason}: try wandb login, or WANDB_MODE=offline in the environment') from error
    run.define_metric('*', step_metric='epoch')
    run.define_metric('update_*', step_metric='update')
    return run
