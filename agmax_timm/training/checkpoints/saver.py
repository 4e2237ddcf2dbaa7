"""What a run writes: timm's checkpoints, and in each metadata that reproduces its weights.

Plain timm loads them, with nothing of this package: the metadata holds plain types, and the Q-network is apart.
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
from timm.task import TrainingTask

from ...base import atomic_write
from ...base.background import Background, snapshot
from ...base.distributed import world_size
from ...base.errors import UserError
from ...base.safe_load import read_file
from ...options.parsers import TrainOptions
from ...weights.checkpoint import METADATA, STATE

_logger = logging.getLogger(__name__)


class SaveError(UserError, RuntimeError):
    """The newest state of a run cannot be written. The message names the file, the reason and the newest valid file."""
    exit_status = 74  # EX_IOERR of sysexits.h


class CheckpointSaver(timm.utils.CheckpointSaver):
    """timm's saver of timm's files, each with metadata (see make_metadata) and the metrics of its weights.

    A file is written whole or not at all, and others are removed when it is safe: `last` and `model_best` are there
    from the first checkpoint on, whenever the process ends. If the disk refuses, the log says so, what is there stays,
    and the next save tries again.

    Args:
        background: Write in a thread, from a copy of the state on the host; one file at a time.
    """

    def __init__(self, task: TrainingTask, metadata: dict[str, Any], background: bool = False, **kwargs):
        super().__init__(model=task.get_trainable_module(), task=task, **kwargs)
        self.metadata = metadata
        self.error: SaveError | None = None  # of the last save, None if it was written
        self._newest: str | None = None
        self._background = Background(background)

    def save_checkpoint(
            self,
            epoch: int,
            metric: float | None = None,
            raw: dict[str, float] | None = None,
            ema: dict[str, float] | None = None,
            state: dict[str, Any] | None = None,
    ) -> tuple[float | None, int | None]:
        """Save `last`, and as timm ranks them `checkpoint-N` and `model_best`.

        Args:
            metric: That ranks it; not-a-number ranks behind all others.
            raw, ema: Metrics of the weights in this epoch, each with 'loss', 'top1' and 'top5'.
            state: Plain values and tensors, for the key 'agmax_state' of the file.

        Returns:
            Metric and epoch of the best checkpoint that is written: with `background` this one does not count yet.
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
        return self.best_metric, self.best_epoch

    def measure(self, epoch: int, state: dict[str, Any] | None = None) -> int:
        """Bytes of a checkpoint of what there is now; nothing is written."""
        counter: Any = _Counter()
        torch.save(self._content(epoch, 0., {}, state), counter)
        return counter.size

    def save_recovery(self, epoch: int, batch_idx: int = 0, state: dict[str, Any] | None = None) -> None:
        """Save within an epoch; this file and the one before it are kept, of an earlier process too.

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

    def save_milestone(self, completed_epochs: int) -> str:
        """Keep the checkpoint that was saved last as `milestone-N` for good; nothing if it could not be written."""
        path = self._path(f'milestone-{completed_epochs}')
        self.wait()
        if self.error is None:
            self._run(lambda: atomic_write.link(self._path('last'), path), path)
        return path

    def load_state_dict_from_checkpoint(self, checkpoint_path: str) -> bool:
        """Continue with the ranking of a checkpoint in this folder, and with what was to follow when it was written."""
        checkpoint = read_file(checkpoint_path, mmap=True)
        self._newest = checkpoint_path
        saved = checkpoint.get('saver')
        if saved is None:
            return False
        files = [(file, value) for file, value in saved['checkpoint_files'] if re.fullmatch(
            rf'{re.escape(self.save_prefix)}-\d+{re.escape(self.extension)}', file)]  # what is removed is ours
        self.load_state_dict({**saved, 'checkpoint_files': files, 'pending': (None, None)})
        if not _ranks(self.best_metric):
            self.best_metric = self.best_epoch = None
        ranked_by = checkpoint.get(METADATA, {}).get('metric_name')
        same_metric = ranked_by in (None, self.metadata.get('metric_name'))
        if not same_metric:  # any value that comes is before what another metric ranked
            self.best_metric = self.best_epoch = None
            self.checkpoint_files = [(file, None) for file, _ in self.checkpoint_files]
        epoch, metric = saved.get('pending', (None, None))
        metric = metric if same_metric else None
        finished = epoch is not None and not os.path.basename(checkpoint_path).startswith(self.recovery_prefix)

        def complete() -> None:
            best = self._checkpoint_path(self.best_epoch) if self.best_epoch is not None else ''
            if os.path.isfile(best):
                atomic_write.link(best, self._path('model_best'))
            if finished:
                self._rank(checkpoint_path, epoch, metric)
                milestone = self._path(f'milestone-{epoch + 1}')
                if epoch + 1 in getattr(self.args, 'save_epochs', ()) and not os.path.exists(milestone):
                    atomic_write.link(checkpoint_path, milestone)

        self._run(complete, self._path('model_best'))
        self.wait()
        return True

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        self._background.wait()

    def close(self) -> None:
        """Wait, and raise SaveError if the newest state could not be written."""
        self.wait()
        if self.error is not None:
            raise self.error

    def _run(self, work: Callable[[], None], path: str) -> None:
        """Do work that writes a file, and keep and tell what the disk refused."""
        def attempt() -> None:
            try:
                work()
                self.error = None
            except OSError as error:
                valid = f'{self._newest} is whole' if self._newest else 'there is no checkpoint yet'
                self.error = SaveError(f'cannot write {error.filename or path}: {error.strerror or error}; {valid}')
                _logger.error(f'{self.error}. Training continues; the next save tries again.')
        self._background.run(attempt)

    def _content(self, epoch: int, metric: float | None, metrics: dict[str, Any], state: Any) -> dict[str, Any]:
        """What timm saves, and what is ours; a copy where it is written in the background."""
        arch = type(self.model).__name__.lower() if self.args is None else self.args.model
        content = {'epoch': epoch, 'arch': arch, 'optimizer': self.optimizer.state_dict(), 'version': 2}
        if self.args is not None:
            content['args'] = {**vars(self.args), 'world_size': world_size()}
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
        return snapshot(content) if self._background.enabled else content

    def _write(self, content: dict[str, Any], path: str) -> None:
        with atomic_write.replacing(path) as f:
            try:
                torch.save(content, f)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch only says that a position is not as expected
                    raise error.__context__ from None
                raise
        self._newest = path

    def _rank(self, path: str, epoch: int, metric: float | None) -> None:
        """Give a file its place among the best, and only then remove the one that has none any more."""
        metric = metric if _ranks(metric) else None
        kept = self._checkpoint_path(epoch)
        others = [(file, value if _ranks(value) else None) for file, value in self.checkpoint_files if file != kept]
        ranked = [entry for entry in others + [(kept, metric)] if entry[1] is not None]
        ranked.sort(key=lambda entry: entry[1], reverse=not self.decreasing)  # the earlier of equals is first
        unranked = [(kept, None)] * (metric is None) + [entry for entry in others if entry[1] is None]
        history = (ranked + unranked)[:self.max_history]

        best = self._path('model_best')
        if not os.path.exists(best):  # any file rather than none, wherever the process may end
            atomic_write.link(path, best)
        if (kept, metric) in history:
            atomic_write.link(path, kept)
        self.checkpoint_files = history
        self._link_best(best)
        for file, _ in others:
            if file not in dict(history):
                with suppress(FileNotFoundError):
                    os.remove(file)
        listed = ', '.join(f'{os.path.basename(file)} ({value})' for file, value in history)
        _logger.info(f'Checkpoints, the best first: {listed}')

    def _link_best(self, best: str) -> None:
        """Let `model_best` be the best that is kept if none was better."""
        first, metric = self.checkpoint_files[0]
        if metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            atomic_write.link(first, best)
            self.best_metric = metric
            self.best_epoch = int(os.path.basename(first)[len(self.save_prefix) + 1:-len(self.extension)])

    def _path(self, name: str) -> str:
        return os.path.join(self.checkpoint_dir, name + self.extension)


def _age(path: str) -> tuple[float, list[int]]:
    """To sort recovery files by: when they were written; epoch and batch where a file system sees no difference."""
    return os.path.getmtime(path), [*map(int, re.findall(r'\d+', os.path.basename(path)))]


class _Counter(io.RawIOBase):
    """A file that only counts its bytes."""
    size = 0

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written


def _ranks(metric: float | None) -> bool:
    return metric is not None and not math.isnan(metric)


def create_saver(
        output_dir: str,
        task: Any,
        optimizer: Any,
        options: TrainOptions,
        metadata: dict[str, Any],
        scaler: Any = None,
        decreasing: bool = False,
) -> CheckpointSaver:
    """The saver of `last`, `model_best` and the best `checkpoint-N`, with the Q-network apart in `task_state`.

    It writes in the background: close() it at the end of a run.

    Args:
        metadata: See metadata.make_metadata.
        decreasing: Whether a lower metric is better.
    """
    return CheckpointSaver(
        task,
        metadata,
        optimizer=optimizer,
        args=options,
        amp_scaler=scaler,
        checkpoint_dir=output_dir,
        recovery_dir=output_dir,
        decreasing=decreasing,
        max_history=options.checkpoint_hist,
        background=True,
    )
