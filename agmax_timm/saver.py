"""What a run writes and goes on from: timm's checkpoints, and in each a record of what reproduces its weights.

Plain timm loads them, with nothing of this package: the record holds plain types, and the Q-network is apart.
"""
import argparse
import logging
import os
import platform
import shutil
from typing import Any, Dict, List, Optional

import timm
import torch
import torch.nn as nn
from timm.models import parse_model_name
from timm.models._input import get_model_args
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from . import __version__
from .checkpoint import RECORD, STATE, CheckpointError, one_line, read_file
from .models import timm_architecture


def make_record(
        model: nn.Module,
        name: str,
        data_config: Dict[str, Any],
        class_names: Optional[List[str]] = None,
        metric_name: str = 'top1',
) -> Dict[str, Any]:
    """What reproduces the weights of a model, besides the run's options; plain types alone.

    Args:
        model: The classifier, as timm created it.
        name: Name it was created by.
        data_config: How it is evaluated: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.
        class_names: By index, None if unknown; outputs beyond them are named by their index.
        metric_name: The metric that ranks the checkpoints.
    """
    if parse_model_name(name)[0]:  # a folder or repository, which may be gone when the checkpoint is read
        name = model.pretrained_cfg['architecture']
    if class_names is not None:
        class_names = class_names + [str(i) for i in range(len(class_names), model.num_classes)]
    return {
        'architecture': timm_architecture(name),
        'model_args': get_model_args(model),
        'class_names': class_names,
        'data_config': dict(data_config),
        'metric_name': metric_name,
        'versions': {'agmax_timm': __version__, 'timm': timm.__version__, 'torch': str(torch.__version__),
                     'python': platform.python_version()},
        'metrics': {},
    }


_logger = logging.getLogger(__name__)
_KEPT_ON_RESUME = ('lr', 'weight_decay')


class RecordSaver(CheckpointSaver):
    """timm's saver, whose files also hold a record (see make_record) with the metrics of their weights."""

    def __init__(self, task: TrainingTask, record: Dict[str, Any], **kwargs):
        super().__init__(model=task.get_trainable_module(), task=_RecordedTask(task, record), **kwargs)
        self.record = record

    def save_checkpoint(
            self,
            epoch: int,
            metric: Optional[float] = None,
            state: Optional[Dict[str, Any]] = None,
            **metrics: Optional[Dict[str, float]],
    ):
        """As timm's.

        Args:
            metrics: Of the weights `raw` and `ema` in this epoch, each with 'loss', 'top1' and 'top5'.
        """
        self.record['metrics'] = {
            weights: {name: float(value) for name, value in of_weights.items()}
            for weights, of_weights in metrics.items() if of_weights}
        self.task.state = state
        try:
            return super().save_checkpoint(epoch, metric)
        finally:
            self.record['metrics'] = {}  # a recovery file of the next epoch has none

    def save_recovery(self, epoch: int, batch_idx: int = 0, state: Optional[Dict[str, Any]] = None):
        self.task.state = state
        super().save_recovery(epoch, batch_idx)

    def wait(self) -> None:
        pass

    # timm's pair unlinks the old file before the new one is in its place: a crash in between leaves neither.

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        scratch = f'{dst}.tmp'
        if os.path.lexists(scratch):
            os.unlink(scratch)  # of a run that was killed
        try:
            os.link(src, scratch)
        except (OSError, NotImplementedError):  # a file system without hard links
            shutil.copy2(src, scratch)
        os.replace(scratch, dst)


class _RecordedTask:
    """All that timm's saver asks of a task: it merges into the file what this returns."""

    def __init__(self, task: TrainingTask, record: Dict[str, Any]):
        self.task = task
        self.record = record
        self.state: Optional[Dict[str, Any]] = None

    def get_checkpoint_state(self, ema: bool = False, **kwargs) -> Dict[str, Any]:
        state = self.task.get_checkpoint_state(ema=ema, **kwargs)
        return state if ema else {**state, RECORD: self.record, **({STATE: self.state} if self.state else {})}


def create_saver(
        output_dir: str,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        record: Dict[str, Any],
        scaler: Any = None,
        decreasing: bool = False,
) -> RecordSaver:
    """The saver of `last`, `model_best` and the best `checkpoint-N`, with the Q-network apart in `task_state`.

    Args:
        record: See make_record.
        decreasing: Whether a lower metric is better.
    """
    return RecordSaver(
        task,
        record,
        optimizer=optimizer,
        args=args,
        amp_scaler=scaler,
        checkpoint_dir=output_dir,
        recovery_dir=output_dir,
        decreasing=decreasing,
        max_history=args.checkpoint_hist,
    )


def resume(
        path: str,
        task: TrainingTask,
        optimizer: Optional[torch.optim.Optimizer] = None,
        scaler: Any = None,
        verbose: bool = True,
) -> Optional[int]:
    """Load a training checkpoint into the task (without its EMA), and the optimizer and scaler if given.

    The optimizer keeps the learning rate and weight decay that it was created with: timm's resume puts the saved ones
    in their place, and options that changed would have no effect.

    Returns:
        The epoch to go on with, None if the file does not say: the one after a finished epoch, and for a recovery file
        the epoch that it was written in, from its start.

    Raises:
        CheckpointError: the file is missing, damaged, not plain tensors, or of another model.
    """
    checkpoint = read_file(path, mmap=True)
    groups = optimizer.param_groups if optimizer is not None else []
    created = [{name: group[name] for name in _KEPT_ON_RESUME if name in group} for group in groups]
    try:
        epoch = resume_task_checkpoint(task, path, optimizer=optimizer, loss_scaler=scaler, log_info=verbose)
    except Exception as error:
        raise CheckpointError(f'cannot use checkpoint {path}: {one_line(error)}') from error
    if optimizer is not None:
        _keep_options(optimizer, created, verbose)
    # A recovery file: only a finished epoch has a metric.
    if epoch and 'metric' not in checkpoint and STATE not in checkpoint:
        epoch -= 1
        if verbose:
            _logger.warning(f'{path} was written within epoch {epoch}, which is trained again from its start.')
    return epoch


def _keep_options(optimizer: torch.optim.Optimizer, created: List[Dict[str, float]], verbose: bool) -> None:
    """Set the options of an optimizer's groups to those it was created with, and tell which ones changed."""
    changed = {}
    for group, options in zip(optimizer.param_groups, created):
        for name, value in options.items():
            saved = group.get(f'initial_{name}', group.get(name))
            if saved != value:
                changed[name] = f'{name} {value:g} in place of {saved:g}'
            group[name] = value
        group.pop('initial_lr', None)  # the scheduler sets it from the learning rate
    if changed and verbose:
        _logger.info(f"Not as in the checkpoint: {', '.join(changed.values())}")


def resume_ema(path: str, task: TrainingTask) -> None:
    """Load the EMA of a training checkpoint, or its raw weights where it has none."""
    load_task_ema_checkpoint(task, path)
