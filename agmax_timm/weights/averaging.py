"""The mean of the best checkpoints of a run."""
import math
import os
import re
from dataclasses import replace
from typing import Any

import torch

from ..base.errors import OptionError
from ..base.safe_load import read_file
from .checkpoint import choose_ema, ranking_metric
from .find import SUFFIX, checkpoint_names, newest_checkpoint
from .saved_model import SavedModel, read_model


def average_models(run_dir: str, count: int, use_ema: bool | None = False, **model: Any) -> SavedModel:
    """Average the weights of the best checkpoints of a run in float64, as timm's avg_checkpoints.py does.

    Only `checkpoint-N` files are read, so no epoch counts twice. Integer tensors, such as the number of batches, are
    taken from the best checkpoint. The mean was never evaluated, so it has no metrics.

    Args:
        use_ema, **model: See read_model. `model` is its architecture, num_classes and model_kwargs.

    Raises:
        CheckpointError: See read_model.
        OptionError: The folder is missing, it has fewer than `count` ranked checkpoints, or their models differ.
    """
    paths = best_checkpoints(run_dir, count)
    best = read_model(paths[0], use_ema, **model)
    use_ema = choose_ema(best.options, use_ema)
    sums = {name: value.to(torch.float64, copy=True) for name, value in best.state_dict.items()
            if value.is_floating_point()}
    for path in paths[1:]:
        tensors = read_model(path, use_ema, **model).state_dict
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

    Files of an abandoned branch do not count, nor do epochs whose metric is NaN.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        OptionError: See average_models.
    """
    if count < 1:
        raise OptionError(f'--average must be 1 or more, got {count}')
    if not os.path.isdir(run_dir):
        raise OptionError(f"--average {count} needs the folder of a run, '{run_dir}' is not one")
    ranked = sorted(_costs(run_dir))
    if len(ranked) < count:
        raise OptionError(f"--average {count}: '{run_dir}' holds {len(ranked)} checkpoints with a metric")
    return [os.path.join(run_dir, f'checkpoint-{epoch}{SUFFIX}') for _, epoch in ranked[:count]]


def _costs(run_dir: str) -> list[tuple[float, int]]:
    """Return the metric of each ranked `checkpoint-N` of a run, negated if higher is better, and its epoch."""
    pattern = re.compile(rf'checkpoint-(\d+){re.escape(SUFFIX)}')
    epochs = {name: int(match[1]) for name in checkpoint_names(run_dir) if (match := pattern.fullmatch(name))}
    newest, _ = newest_checkpoint(run_dir)
    current = read_file(newest, mmap=True) if newest else {}
    if 'saver' in current:  # the ranking of the last branch
        metrics = dict(current['saver']['checkpoint_files'])
        epoch, metric = current['saver'].get('pending', (None, None))
        if metric is not None:
            metrics[f'checkpoint-{epoch}{SUFFIX}'] = metric
    else:
        metrics = {name: read_file(os.path.join(run_dir, name), mmap=True).get('metric') for name in epochs}
    sign = 1 if ranking_metric(current) == 'loss' else -1
    return [(sign * metric, epochs[name]) for name, metric in metrics.items()
            if name in epochs and metric is not None and not math.isnan(metric)]


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
