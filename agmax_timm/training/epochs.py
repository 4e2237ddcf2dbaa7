"""The epochs of a run: each is trained, evaluated, logged and saved."""
import logging
import math
import os
import traceback
from typing import Any

from ..assembly import loaders
from ..assembly import optimizer as optimization
from ..base.distributed import is_distributed, is_primary
from ..base.errors import DamagedError, LabelError
from ..base.random_state import get_random_state
from ..base.text import one_line
from ..data.pictures import ToPicture, save_views
from ..data.sources.classes import class_names
from ..options.augmentation import Mixing
from ..options.derived import mixing
from ..options.run import Run
from ..remembered import AgMaxMemoryTask
from .batch_norm import distribute_batch_norm
from .checkpoints.state import Position
from .create_run import TrainingRun
from .early_stopping import stop_reason
from .epoch_evaluation import EvaluationStopped, evaluate_epoch
from .guards.damaged import DamageLog
from .output import log
from .output.trackers import Trackers
from .updates.finite_check import CheckResult
from .updates.loop import Progress, train_one_epoch
from .updates.losses import NonFiniteError, RunningLosses
from .updates.step import Step

_logger = logging.getLogger('train')


class Epochs:
    """Trains the remaining epochs of a run.

    Args:
        run: The run, with open output on the first rank.
        trackers: Trackers of losses and metrics; None on other ranks.
    """

    def __init__(self, run: TrainingRun, trackers: Trackers | None):
        self.run = run
        self.options = run.options
        self.checkpoints = run.checkpoints
        self.trackers = trackers
        self.damaged = DamageLog(run.checkpoints.damage, run.device, run.checkpoints.output_dir)
        self.progress_log = log.ProgressLog(
            run.stop_epoch * run.updates_per_epoch, run.done_updates, run.num_epochs)
        # The reason, '' if the run has not stopped early.
        self.stopped = stop_reason(run.options, run.metric_name, self.comparable)
        self.any_left = run.position.epoch < run.stop_epoch and not self.stopped

    @property
    def results(self) -> list[dict[str, Any]]:
        """Number, training metrics and validation metrics of each evaluated epoch."""
        return self.run.state.history.results

    @property
    def comparable(self) -> list[dict[str, Any]]:
        """The results that have validation metrics if the run has validation data, or else those that have none.

        They differ from all results if a resumed run has another --val-split.
        """
        return [result for result in self.results if ('validation' in result) == (self.run.loader_eval is not None)]

    def train(self) -> None:
        """Train to the last epoch, or until the run stops early.

        Raises:
            Interrupted: A signal asked the run to end, and it has saved.
            NonFiniteError: A loss or a metric is not finite, and --nan-policy is stop.
            DamagedError: More images are damaged than --max-damaged allows.
            EvaluationFailed: The evaluation failed on another rank.
        """
        position, losses = self.run.position, self.run.losses
        while position.epoch < self.run.stop_epoch and not self.stopped:
            self._epoch(position, losses)
            position, losses = Position(position.epoch + 1), None
        self.progress_log.bar.close()
        self.damaged.at_end()

    def _epoch(self, position: Position, losses: RunningLosses | None) -> None:
        """Train the rest of an epoch, and evaluate if an evaluation follows."""
        run, options, epoch = self.run, self.options, position.epoch
        losses = losses or RunningLosses(run.device)
        prepare_loader(options, run.loader_train, epoch)
        if position.trained:
            train_metrics = losses.read(f'in epoch {epoch}')[1]
        else:
            train_metrics = self._train(position, losses)
        if run.is_evaluated(epoch + 1):
            self._evaluate(epoch, train_metrics, losses)
        elif run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric=None)

    def _train(self, position: Position, losses: RunningLosses) -> dict[str, float]:
        """Train the rest of an epoch, and return its mean losses."""
        run, options = self.run, self.options
        updated = position.batch  # batches of the epoch that are part of a finished update
        self._set_ramp(position.epoch, updated)

        def on_update(batches: int, checked: CheckResult) -> None:
            nonlocal updated
            updated = batches
            self._set_ramp(position.epoch, batches)
            self.progress_log.bar.update()
            self.checkpoints.after_update(position.epoch, batches, losses, checked)

        step = Step(run, run.finite_check, run.on_broken, loaders.build_loss_scale(options, run.loader_train))
        try:
            metrics, speed = train_one_epoch(
                position.epoch, step, run.loader_train, run.scheduler, self._on_log, on_update, losses,
                position.batch, run.updates_per_epoch)
            run.state.images_per_second = speed or run.state.images_per_second  # 0 if no batch was left
        except DamagedError:
            self.damaged.log_new()
            raise
        except LabelError:
            if updated and not is_distributed():  # other ranks are in a collective and cannot save
                self.checkpoints.save_within(Position(position.epoch, updated), losses)
                self.checkpoints.close(f'epoch {position.epoch}, batch {updated}')
            raise
        distribute_batch_norm(options, run.task.get_trainable_module())
        try:
            self.damaged.after_epoch()
        except DamagedError:  # raised on all ranks, which count together
            self.checkpoints.leave(self._save_trained(position.epoch, losses, get_random_state(run.device)))
        return metrics

    def _set_ramp(self, epoch: int, batches: int) -> None:
        """Set how much the agreement with remembered predictions counts in the next update of an epoch."""
        run, options = self.run, self.options
        if isinstance(run.task, AgMaxMemoryTask):
            done = epoch * run.updates_per_epoch + math.ceil(batches / options.grad_accum_steps)
            run.task.ramp = min(
                1., done / max(1., options.agmax_teacher_ramp * run.num_epochs * run.updates_per_epoch))

    def _on_log(self, progress: Progress) -> None:
        run = self.run
        self.progress_log.train_step(progress, optimization.mean_lr(run.optimizer))
        if self.trackers is not None:
            self.trackers.update(progress)
        if self.options.save_images and is_primary():
            name = f'views-{progress.epoch}-{progress.update_index}.png'
            path = os.path.join(self.checkpoints.output_dir, name)
            with log.tolerated(path):
                to_picture = ToPicture(
                    run.data_config, run.patch_size, self.options.naflex_patchify_channels_first)
                save_views(path, progress.input, progress.target, to_picture, class_names(run.dataset_train),
                           views=2 if self.options.agmax else 1,
                           title=f'epoch {progress.epoch}, update {progress.update_index}')

    def _evaluate(self, epoch: int, train_metrics: dict[str, float], losses: RunningLosses) -> None:
        """Evaluate, log and save an epoch, and decide whether the run stops early."""
        run, options, state = self.run, self.options, self.run.state
        random = get_random_state(run.device)
        raw = ema = None
        if run.loader_eval is not None:
            try:
                raw, ema = evaluate_epoch(run, epoch)
            except EvaluationStopped:
                self.checkpoints.leave(self._save_trained(epoch, losses, random))
            except Exception as error:
                if not options.fsdp:  # other ranks may wait in a forward pass, so a collective would hang
                    traceback.clear_frames(error.__traceback__)  # frees the batch, the error may be out of memory
                    _logger.error(f'The evaluation of epoch {epoch} failed: {one_line(error, 300)}')
                    self.checkpoints.close(self._save_trained(epoch, losses, random))
                raise
            state.evaluated = True
        selected = ema or raw or train_metrics
        self.results.append({'epoch': epoch, 'train': train_metrics, **({'validation': selected} if raw else {})})
        row = log.summary_row(epoch, train_metrics, optimization.mean_lr(run.optimizer), raw, ema)
        state.history.rows.append(row)
        metric = selected[run.metric_name]
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric)
        self.checkpoints.save_epoch(epoch, metric, raw=raw, ema=ema)
        if self.trackers is not None:  # after the save, so that an error of a tracker loses nothing
            self.trackers.row(row)
        try:
            check_finite(options, epoch, selected)
        except NonFiniteError:  # raised on all ranks
            self.checkpoints.finish()
            raise
        self.stopped = stop_reason(options, run.metric_name, self.comparable)

    def _save_trained(self, epoch: int, losses: RunningLosses, random: dict[str, Any]) -> str:
        """Save an epoch before its evaluation, and return the place in words. All ranks must call it."""
        self.checkpoints.save_within(Position(epoch, len(self.run.loader_train), trained=True), losses, random)
        return f'the end of epoch {epoch}, before its evaluation'


def check_finite(options: Run, epoch: int, metrics: dict[str, float]) -> None:
    """Check the metrics of an evaluation. The weights, which are finite, are saved already.

    Raises:
        NonFiniteError: A metric is NaN or infinite, and --nan-policy is stop.
    """
    broken = [f'{name} is {value}' for name, value in metrics.items() if not math.isfinite(value)]
    if not broken:
        return
    message = f"the evaluation after epoch {epoch}: {', '.join(broken)}"
    if options.nan_policy == 'stop':
        raise NonFiniteError(f'{message}. The epoch was saved, but not as the best. With --nan-policy skip, the '
                             'run continues')
    _logger.warning(f'{message}: it does not count as the best.')


def prepare_loader(options: Mixing, loader: Any, epoch: int) -> None:
    """Prepare the training loader for an epoch."""
    set_epoch(loader, epoch)
    if mixing(options) and options.mixup_off_epoch and epoch >= options.mixup_off_epoch:
        loader.mixup_enabled = False


def set_epoch(loader: Any, epoch: int) -> None:
    """Call set_epoch() of the data set and the sampler, if they have it."""
    sampler = loader.batch_sampler if hasattr(loader.batch_sampler, 'set_epoch') else loader.sampler
    for part in (loader.dataset, sampler):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
