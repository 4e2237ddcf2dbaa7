"""Cost of a study, computed before training."""
import math
import os

from ..options.optimization import Schedule
from ..options.parsers import TrainOptions
from ..options.quantities import share_of
from .plan import Run


def epochs_of(options: Schedule) -> int:
    """Return the number of epochs of a run. Further cycles of --lr-cycle-limit are not counted."""
    whole = options.epochs + options.cooldown_epochs + (options.warmup_epochs if options.warmup_prefix else 0)
    return options.stop_epoch or whole


def updates_and_views(runs: list[Run]) -> tuple[int, int] | None:
    """Return the numbers of updates and training views, or None for unknown data or several batch sizes."""
    updates = views = 0
    counted: dict[tuple, int | None] = {}
    for options in (run.options for run in runs):
        data = (options.dataset, options.data_dir, options.train_split, share_of(options.val_split), options.class_map,
                options.train_num_samples)
        if data not in counted:
            counted[data] = _count_images(options)
        count = counted[data]
        if count is None or options.train_img_sizes or options.naflex_loader:
            return None
        batches = count // options.batch_size  # without the incomplete last one
        updates += epochs_of(options) * math.ceil(batches / options.grad_accum_steps)
        images = epochs_of(options) * batches * options.batch_size
        views += images * (2 if options.agmax else max(1, options.aug_splits))
    return updates, views


def _count_images(options: TrainOptions) -> int | None:
    """Return the number of training images; None if they are not on this machine, or counting would read them all."""
    if options.train_num_samples:
        return options.train_num_samples
    if '/' in options.dataset and not options.dataset.startswith('torch/'):
        return None
    if options.dataset != 'demo' and not os.path.exists(options.data_dir or ''):
        return None
    from ..base.errors import DataError
    from ..data.sources.dataset_factory import create_dataset
    try:
        count = len(create_dataset(
            options.dataset, root=options.data_dir, split=options.train_split, class_map=options.class_map,
            download=False))
        return count - round(count * (share_of(options.val_split) or 0))
    except (DataError, TypeError):  # no data, or no length
        return None
