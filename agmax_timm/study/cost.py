"""What a study costs, counted before anything is trained."""
import math
import os

from ..options.optimization import Schedule
from ..options.parsers import TrainOptions
from .plan import Run


def epochs_of(options: Schedule) -> int:
    """Epochs of a run, but for the cycles of --lr-cycle-limit."""
    whole = options.epochs + options.cooldown_epochs + (options.warmup_epochs if options.warmup_prefix else 0)
    return options.stop_epoch or whole


def updates_and_views(runs: list[Run]) -> tuple[int, int] | None:
    """Updates, and views that pass the networks in training, of all runs; None where the data cannot be counted, or
    its batches are of several sizes."""
    updates = views = 0
    counted: dict[tuple, int | None] = {}
    for options in (run.options for run in runs):
        data = (options.dataset, options.data_dir, options.train_split, options.class_map, options.train_num_samples)
        if data not in counted:
            counted[data] = _images(options)
        count = counted[data]
        if count is None or options.train_img_sizes or options.naflex_loader:
            return None
        batches = count // options.batch_size  # the incomplete last one is left out
        updates += epochs_of(options) * math.ceil(batches / options.grad_accum_steps)
        images = epochs_of(options) * batches * options.batch_size
        views += images * (2 if options.agmax else max(1, options.aug_splits))
    return updates, views


def _images(options: TrainOptions) -> int | None:
    """Training images, None where they are not on this machine or only counted by reading them."""
    if options.train_num_samples:
        return options.train_num_samples
    if '/' in options.dataset and not options.dataset.startswith('torch/'):
        return None
    if options.dataset != 'demo' and not os.path.exists(options.data_dir or ''):
        return None
    from ..base.errors import DataError
    from ..data.sources.datasets import create_dataset
    try:
        return len(create_dataset(
            options.dataset, root=options.data_dir, split=options.train_split, class_map=options.class_map,
            download=False))
    except (DataError, TypeError):  # none, or without a length
        return None
