"""Checkpoints: timm's files, each with metadata that describes how to reproduce its metrics.

Plain timm loads them without this package: the metadata holds plain types, and the Q-network is stored separately.
"""
import io
import logging
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob
from typing import Any

import timm.utils
import torch

from ...base import atomic_write
from ...base.background import Background, snapshot, write_file
from ...base.distributed import world_size
from ...base.errors import CheckpointError, UserError
from ...base.safe_load import read_file
from ...base.silence import silenced
from ...options.declare import values
from ...options.parsers import TrainOptions
from ...weights.checkpoint import METADATA, STATE, options_in

_logger = logging.getLogger(__name__)


class SaveError(UserError, RuntimeError):
    """The newest state of a run cannot be written. The message names the file, the reason and the newest valid file."""
    exit_status = 74  # EX_IOERR of sysexits.h


class CheckpointSaver(timm.utils.CheckpointSaver):
    """timm's CheckpointSaver with metadata (see make_metadata) and the metrics of the weights in each file.

    A file is written completely or not at all. Old files are removed only afterwards, so `last` and `model_best` exist
    from the first checkpoint on, even if the process is killed. After a disk error the log has the reason, the files
    on disk stay, and the next save tries again.

    A thread writes the files one at a time, from copies of the state in host memory. Call close() at the end.

    Args:
        metadata: See metadata.make_metadata.
        scaler: Loss scaler, if any.
        decreasing: Whether a lower metric is better.
    """

    def __init__(
            self,
            output_dir: str,
            task: Any,
            optimizer: Any,
            options: TrainOptions,
            metadata: dict[str, Any],
            scaler: Any = None,
            decreasing: bool = False,
    ):
        super().__init__(
            task.get_trainable_module(), optimizer, args=options, task=task, amp_scaler=scaler, decreasing=decreasing,
            checkpoint_dir=output_dir, recovery_dir=output_dir, max_history=options.checkpoint_hist)
        self.metadata = metadata
        self.error: SaveError | None = None  # error of the last save, None if it succeeded
        self._newest: str | None = None
        self._background = Background()

    def save_checkpoint(
            self,
            epoch: int,
            metric: float | None = None,
            raw: dict[str, float] | None = None,
            ema: dict[str, float] | None = None,
            state: dict[str, Any] | None = None,
    ) -> None:
        """Save `last`, and `checkpoint-N` and `model_best` by timm's ranking.

        Args:
            metric: Metric that ranks the checkpoint; NaN ranks last.
            raw, ema: Metrics of the weights in this epoch, such as 'loss', 'top1' and 'top5'.
            state: Plain values and tensors for the key 'agmax_state' of the file.
        """
        self.wait()
        metrics = {'raw': raw, 'ema': ema}
        content = self._content(epoch, metric, {
            weights: {name: float(value) for name, value in of_weights.items()}
            for weights, of_weights in metrics.items() if of_weights}, state)
        path = self._path('last')

        def write() -> None:
            self._write(content, path)
            self._rank(path, epoch, metric)

        self._run(write, path)

    def measure(self, epoch: int, state: dict[str, Any] | None = None) -> int:
        """Return the size in bytes of a checkpoint of the present state. Nothing is written."""
        counter: Any = _Counter()
        torch.save(self._content(epoch, 0., {}, state), counter)
        return counter.size

    def save_recovery(self, epoch: int, batch_idx: int = 0, state: dict[str, Any] | None = None) -> None:
        """Save within an epoch. Keep the two newest recovery files, including those of earlier processes.

        Args:
            state: As in save_checkpoint.
        """
        self.wait()
        content = self._content(epoch, None, {}, state)
        path = os.path.join(self.recovery_dir, f'{self.recovery_prefix}-{epoch}-{batch_idx}{self.extension}')

        def write() -> None:
            self._write(content, path)
            others = glob(os.path.join(glob_escape(self.recovery_dir), f'{self.recovery_prefix}-*{self.extension}'))
            for old in sorted(set(others) - {path}, key=_age)[:-1]:
                os.remove(old)

        self._run(write, path)

    def save_milestone(self, completed_epochs: int) -> None:
        """Keep the last checkpoint as `milestone-N`. Does nothing if the checkpoint could not be written."""
        path = self._path(f'milestone-{completed_epochs}')
        self.wait()
        if self.error is None:
            self._run(lambda: atomic_write.link(self._path('last'), path), path)

    def load_state_dict_from_checkpoint(self, checkpoint_path: str, start_epoch: float = math.inf) -> None:
        """Restore the ranking from a checkpoint in this folder, and repeat the steps after its writing.

        Args:
            start_epoch: Epoch with which training starts. It and later ones are trained again, so they do not rank.
        """
        checkpoint = read_file(checkpoint_path, mmap=True)
        self._newest = checkpoint_path
        saved = checkpoint.get('saver')
        if saved is None:
            return
        comparable = self._is_comparable(checkpoint)
        self._load_ranking(saved, start_epoch, comparable)
        epoch, metric = saved.get('pending', (None, None))
        finished = 'metric' in checkpoint and epoch is not None and epoch < start_epoch  # not saved within the epoch
        pending = (epoch, metric if comparable else None) if finished else None
        self._run(lambda: self._complete(checkpoint_path, start_epoch, pending), self._path('model_best'))
        self.wait()

    def _is_comparable(self, checkpoint: dict[str, Any]) -> bool:
        """Whether the run of a checkpoint ranked by the same metric as this one."""
        ranked_by = checkpoint.get(METADATA, {}).get('metric_name')
        had_validation, has_validation = (
            options.get('val_split') != '' for options in (options_in(checkpoint), vars(self.args)))
        return had_validation == has_validation and ranked_by in (None, self.metadata.get('metric_name'))

    def _load_ranking(self, saved: dict[str, Any], start_epoch: float, comparable: bool) -> None:
        """Restore the ranked files that are still those of the run, without metrics if they are not comparable."""
        files = [(file, value) for file, value in saved['checkpoint_files'] if re.fullmatch(
            rf'{re.escape(self.save_prefix)}-\d+{re.escape(self.extension)}', file)]  # only own files
        with silenced():  # timm logs the ranking without this checkpoint; ours follows
            self.load_state_dict({**saved, 'checkpoint_files': files, 'pending': (None, None)})
        # A branch that the run has left may have overwritten files of its epochs.
        self.checkpoint_files = [(file, value if comparable else None) for file, value in self.checkpoint_files
                                 if self._epoch_of(file) < start_epoch and _holds(file, self._epoch_of(file), value)]
        if not comparable or not _ranks(self.best_metric):
            self.best_metric = self.best_epoch = None

    def _complete(self, checkpoint_path: str, start_epoch: float, pending: tuple[int, float | None] | None) -> None:
        """Repeat the steps after the writing of a checkpoint: rank it, and link its milestone and the best one.

        Args:
            pending: Epoch and metric of the checkpoint, if it is not ranked yet.
        """
        model_best = self._path('model_best')
        lost = self.best_epoch is not None and not (self.best_epoch < start_epoch and any(
            map(self._is_best, (self._checkpoint_path(self.best_epoch), model_best))))
        if lost:  # a branch that the run has left overwrote it, or it is trained again
            self.best_metric = self.best_epoch = None
        if pending is not None:
            epoch, metric = pending
            self._rank(checkpoint_path, epoch, metric)
            milestone = self._path(f'milestone-{epoch + 1}')
            if epoch + 1 in self.args.save_epochs and not os.path.exists(milestone):
                atomic_write.link(checkpoint_path, milestone)
        elif lost and self.checkpoint_files:
            self._link_best(model_best)
        if self.best_epoch is not None:
            best = self._checkpoint_path(self.best_epoch)
            if self._is_best(best):
                atomic_write.link(best, model_best)
        elif lost:
            atomic_write.link(self.checkpoint_files[0][0] if self.checkpoint_files else checkpoint_path, model_best)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        self._background.wait()

    def close(self) -> None:
        """Wait until nothing is being written.

        Raises:
            SaveError: The newest state could not be written.
        """
        self.wait()
        if self.error is not None:
            raise self.error

    def _run(self, work: Callable[[], None], path: str) -> None:
        """Run a function that writes a file. Log an OSError and keep it as `error`."""
        def attempt() -> None:
            try:
                work()
                self.error = None
            except OSError as error:
                valid = f"'{self._newest}' is intact" if self._newest else 'there is no checkpoint yet'
                self.error = SaveError(f"cannot write '{error.filename or path}': {error.strerror or error}; {valid}")
                _logger.error(f'{self.error}. Training continues; the next save tries again. Free disk space, or make '
                              'the folder writable')
        self._background.run(attempt)

    def _content(self, epoch: int, metric: float | None, metrics: dict[str, Any], state: Any) -> dict[str, Any]:
        """Return a copy of the content of a file: timm's keys and ours."""
        content = {'epoch': epoch, 'arch': self.args.model, 'optimizer': self.optimizer.state_dict(), 'version': 2,
                   'args': {**values(self.args), 'world_size': world_size()}}
        if self.amp_scaler is not None:
            content[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        for ema in (False, True):
            content.update(self.task.get_checkpoint_state(ema=ema, unwrap_fn=self.unwrap_fn))
        if metric is not None:
            content['metric'] = metric
        content['saver'] = self.state_dict(epoch, metric)
        content[METADATA] = {**self.metadata, 'metrics': metrics}
        if state is not None:
            content[STATE] = state
        return snapshot(content)

    def _write(self, content: dict[str, Any], path: str) -> None:
        write_file(content, path)
        self._newest = path

    def _rank(self, path: str, epoch: int, metric: float | None) -> None:
        """Insert a file into the ranking, then remove the files that drop out of it."""
        metric = metric if _ranks(metric) else None
        own = self._checkpoint_path(epoch)
        others = [(file, value if _ranks(value) else None) for file, value in self.checkpoint_files if file != own]
        ranked = [entry for entry in others + [(own, metric)] if entry[1] is not None]
        ranked.sort(key=lambda entry: entry[1], reverse=not self.decreasing)  # stable
        unranked = [entry for entry in others if entry[1] is None]
        if metric is None:
            unranked.insert(0, (own, None))
        history = (ranked + unranked)[:self.max_history]

        best = self._path('model_best')
        if not os.path.exists(best):  # so that it exists even if the process ends here
            atomic_write.link(path, best)
        if (own, metric) in history:
            atomic_write.link(path, own)
        self.checkpoint_files = history
        self._link_best(best)
        for file, _ in others:
            if file not in dict(history):
                with suppress(FileNotFoundError):
                    os.remove(file)
        listed = ', '.join(
            f'{os.path.basename(file)} ({value if value is None else round(value, 4)})' for file, value in history)
        _logger.info(f'Checkpoints, the best first: {listed}')

    def _link_best(self, best: str) -> None:
        """Link `model_best` to the best checkpoint on disk, unless an earlier one was better."""
        first, metric = self.checkpoint_files[0]
        if metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            atomic_write.link(first, best)
            self.best_metric = metric
            self.best_epoch = self._epoch_of(first)

    def _is_best(self, path: str) -> bool:
        return _holds(path, self.best_epoch, self.best_metric)

    def _epoch_of(self, path: str) -> int:
        return int(os.path.basename(path)[len(self.save_prefix) + 1:-len(self.extension)])

    def _path(self, name: str) -> str:
        return os.path.join(self.checkpoint_dir, name + self.extension)


def _age(path: str) -> tuple[float, list[int]]:
    """Return a sort key of recovery files: the time of writing; epoch and batch if the times are equal."""
    return os.path.getmtime(path), [*map(int, re.findall(r'\d+', os.path.basename(path)))]


def _holds(path: str, epoch: int | None, metric: float | None) -> bool:
    """Whether a file exists and is the checkpoint of an epoch with this metric; None allows any."""
    with suppress(CheckpointError):
        checkpoint = read_file(path, mmap=True)
        return checkpoint.get('epoch') == epoch and metric in (None, checkpoint.get('metric'))
    return False


class _Counter(io.RawIOBase):
    """A file that counts the bytes written to it, and stores none."""
    size = 0

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written


def _ranks(metric: float | None) -> bool:
    return metric is not None and not math.isnan(metric)
