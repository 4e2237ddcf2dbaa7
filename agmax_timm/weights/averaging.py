"""The mean of the best checkpoints of a run."""
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..base.errors import OptionError
from ..base.safe_load import read_file
from .checkpoint import choose_ema, metadata_in
from .saved_model import SavedModel, read_model


def average_models(
        run_dir: str,
        count: int,
        use_ema: bool | None = False,
        architecture: str | None = None,
) -> SavedModel:
    """Average the weights of the best checkpoints of a run in float64, as timm's avg_checkpoints.py does.

    Only `checkpoint-N` files are read, so no epoch counts twice. Integer tensors, such as the number of batches, are
    taken from the best checkpoint. The mean was never evaluated, so it has no metrics.

    Args:
        use_ema, architecture: See read_model.

    Raises:
        CheckpointError: See read_model.
        OptionError: The folder is missing, it has fewer than `count` ranked checkpoints, or their models differ.
    """
    paths = best_checkpoints(run_dir, count)
    best = read_model(paths[0], use_ema, architecture=architecture)
    use_ema = choose_ema(best.options, use_ema)
    sums = {name: value.to(torch.float64, copy=True) for name, value in best.state_dict.items()
            if value.is_floating_point()}
    for path in paths[1:]:
        tensors = read_model(path, use_ema, architecture=architecture).state_dict
        if _shapes(tensors) != _shapes(best.state_dict):
            raise OptionError(f"'{path}' is of another model than '{paths[0]}': their tensors differ")
        for name, total in sums.items():
            total += tensors[name]
    tensors = dict(best.state_dict)
    for name, total in sums.items():
        limits = torch.finfo(tensors[name].dtype)
        tensors[name] = (total / count).clamp(limits.min, limits.max).to(tensors[name].dtype)
    weights = f'the mean of {count} checkpoints: {best.weights}'
    return replace(best, state_dict=tensors, metrics={}, weights=weights, source=' + '.join(paths))


def best_checkpoints(run_dir: str, count: int) -> list[str]:
    """Return the paths of the `count` best `checkpoint-N` files of a run, best first. Of equal ones, the earlier epoch.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        OptionError: See average_models.
    """
    if count < 1:
        raise OptionError(f'--average must be 1 or more, got {count}')
    if not os.path.isdir(run_dir):
        raise OptionError(f"--average {count} needs the folder of a run, '{run_dir}' is not one")
    ranked = []
    for path in map(str, Path(run_dir).glob('checkpoint-*.pth.tar')):
        checkpoint = read_file(path, mmap=True)
        if checkpoint.get('metric') is not None:
            cost = checkpoint['metric'] if _lower_is_better(checkpoint) else -checkpoint['metric']
            ranked.append((cost, checkpoint['epoch'], path))
    if len(ranked) < count:
        raise OptionError(f"--average {count}: '{run_dir}' holds {len(ranked)} checkpoints with a metric")
    return [path for _, _, path in sorted(ranked)[:count]]


def _lower_is_better(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint, ours or timm's, was ranked by its loss."""
    name = metadata_in(checkpoint).get('metric_name') or getattr(checkpoint.get('args'), 'eval_metric', None)
    return name == 'loss'


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
