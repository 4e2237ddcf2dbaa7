"""Checkpoints: timm's files, read as hostile (`weights_only`), that plain timm loads back."""
import argparse
import os
from typing import Any, Dict, Optional

import torch
from timm.models import load_checkpoint
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from timm.utils.checkpoint_saver import load_checkpoint_metadata


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and why."""


def create_saver(
        output_dir: str,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        scaler: Any = None,
        decreasing: bool = False,
) -> CheckpointSaver:
    """timm's saver: `last`, `model_best` and the best `checkpoint-N`, with the Q-network apart in `task_state`.

    Args:
        decreasing: Whether a lower metric is better.
    """
    return CheckpointSaver(
        model=task.get_trainable_module(),
        optimizer=optimizer,
        args=args,
        amp_scaler=scaler,
        checkpoint_dir=output_dir,
        recovery_dir=output_dir,
        decreasing=decreasing,
        max_history=args.checkpoint_hist,
        task=task,
    )


def resume(
        path: str,
        task: TrainingTask,
        optimizer: Optional[torch.optim.Optimizer] = None,
        scaler: Any = None,
        verbose: bool = True,
) -> Optional[int]:
    """Load a training checkpoint into the task (without its EMA), and the optimizer and scaler if given.

    Returns:
        The epoch to go on with, None if the file does not say.

    Raises:
        CheckpointError: the file is missing, damaged, not plain tensors, or of another model.
    """
    _check_file(path)
    try:
        return resume_task_checkpoint(task, path, optimizer=optimizer, loss_scaler=scaler, log_info=verbose)
    except Exception as error:
        raise _unusable(path, error) from error


def resume_ema(path: str, task: TrainingTask) -> None:
    """Load the EMA of a training checkpoint, or its raw weights where it has none."""
    load_task_ema_checkpoint(task, path)


def load_weights(path: str, model: torch.nn.Module, use_ema: bool = False) -> None:
    """Load the classifier of a checkpoint or weights file, every tensor of it.

    Raises:
        CheckpointError: as resume; also `use_ema` with a checkpoint that holds no EMA.
    """
    _check_file(path)
    if use_ema and 'state_dict_ema' not in _metadata(path):
        raise CheckpointError(f'{path} holds no EMA weights: drop --use-ema')
    try:
        load_checkpoint(model, path, use_ema=use_ema)
    except Exception as error:
        raise _unusable(path, error) from error


def saved_options(path: str) -> Dict[str, Any]:
    """The options of the run that wrote a checkpoint, empty where the file does not hold any."""
    _check_file(path)
    args = _metadata(path).get('args')
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def _metadata(path: str) -> Dict[str, Any]:
    if path.endswith('.safetensors'):
        return {}
    try:
        checkpoint = load_checkpoint_metadata(path)
    except Exception as error:
        raise _unusable(path, error) from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def _check_file(path: str) -> None:
    if not os.path.isfile(path):
        raise CheckpointError(f'no such checkpoint: {path}')


def _unusable(path: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot use checkpoint {path}: {' '.join(str(error).split()) or type(error).__name__}")
