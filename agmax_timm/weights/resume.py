"""Continuing from a training checkpoint: its weights, Q-network, optimizer, scaler and EMA."""
import logging
from typing import Any

import torch
from timm.task import TrainingTask, resume_task_checkpoint

from ..base.errors import CheckpointError
from ..base.text import one_line

_logger = logging.getLogger(__name__)

# Options of an optimizer that are not taken from the checkpoint.
OPTIMIZER_OPTIONS = ('lr', 'weight_decay', 'momentum', 'betas', 'eps', 'alpha')
# The learning rate again, by which timm scales the weight decay of optimizers such as adamc and sgdc.
_COPY_OF_LR = 'max_lr_snapshot'


def resume(
        path: str,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: Any = None,
        verbose: bool = True,
) -> None:
    """Load a training checkpoint into the task (without its EMA), and the optimizer and scaler if given.

    The optimizer keeps the learning rate, weight decay and similar values with which it was created. timm's resume
    would replace them by the saved values, so changed options would have no effect.

    The checksums of the file are not verified.

    Raises:
        CheckpointError: The file is missing, damaged, not plain tensors, or of another model.
    """
    groups = optimizer.param_groups if optimizer is not None else []
    created = [{name: group[name] for name in (*OPTIMIZER_OPTIONS, _COPY_OF_LR) if name in group} for group in groups]
    try:
        resume_task_checkpoint(task, path, optimizer=optimizer, loss_scaler=scaler, log_info=verbose)
    except Exception as error:
        # torch's words for an optimizer that has other groups, or groups of other sizes
        remedy = ': resume with --no-resume-opt' if 'parameter group' in str(error) else ''
        raise CheckpointError(f"cannot use checkpoint '{path}': {one_line(error)}{remedy}") from error
    if optimizer is not None:
        _keep_options(optimizer, created, verbose)


def _keep_options(optimizer: torch.optim.Optimizer, created: list[dict[str, Any]], verbose: bool) -> None:
    """Set the options of an optimizer's groups to those it was created with, and log the changed ones."""
    changed = {}
    for group, options in zip(optimizer.param_groups, created):
        for name, value in options.items():
            saved = group.get(f'initial_{name}', group.get(name))
            if name != _COPY_OF_LR and differ(saved, value):
                changed[name] = f'{name} {value} in place of {saved}'
            group[name] = value
        group.pop('initial_lr', None)  # the scheduler sets it from the learning rate
    if changed and verbose:
        _logger.info(f"Not as in the checkpoint: {', '.join(changed.values())}")


def differ(saved: Any, present: Any) -> bool:
    """Whether two values of an option differ. A tuple equals a list of the same values."""
    saved, present = (list(value) if isinstance(value, tuple) else value for value in (saved, present))
    return saved != present
