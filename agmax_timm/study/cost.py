"""Cost of a study, computed before training."""
import math
import os
from dataclasses import replace

from ..options.data_kinds import kind_of
from ..options.optimization import Schedule
from ..options.parsers import TrainOptions
from ..options.quantities import share_of
from .plan import Run

_WITH_CYCLES = ('cosine', 'tanh', 'poly')
_WITH_COOLDOWN = (*_WITH_CYCLES, 'wsd', 'rsqrt')  # timm ignores --cooldown-epochs of other schedules


def epochs_of(options: Schedule) -> int:
    """Return the number of epochs of a run: that of timm's create_scheduler_v2, whose import takes seconds."""
    cycles = options.epochs
    if options.sched in _WITH_CYCLES and options.lr_cycle_mul == 1.:
        cycles *= options.lr_cycle_limit
    elif options.sched in _WITH_CYCLES:  # a geometric series
        factor = options.lr_cycle_mul
        cycles = math.floor(cycles * (factor ** options.lr_cycle_limit - 1) / (factor - 1))
    cooldown = options.cooldown_epochs if options.sched in _WITH_COOLDOWN else 0
    return options.stop_epoch or cycles + cooldown + (options.warmup_epochs if options.warmup_prefix else 0)


def updates_and_views(runs: list[Run]) -> tuple[int, int] | None:
    """Return the numbers of updates and training views, or None for unknown data or several batch sizes."""
    updates = views = 0
    counted: dict[tuple, int | None] = {}
    for options in (run.options for run in runs):
        data = (options.dataset, options.data_dir, options.train_split, share_of(options.val_split), options.class_map,
                options.train_num_samples)
        if data not in counted:
            counted[data] = _count_images(options)
        count, epochs = counted[data], epochs_of(options)
        if count is None or options.train_img_sizes or options.naflex_loader:
            return None
        batches = count // options.batch_size  # without the incomplete last one
        updates += epochs * math.ceil(batches / options.grad_accum_steps)
        images = epochs * batches * options.batch_size
        views += images * (2 if options.agmax else max(1, options.aug_splits))
    return updates, views


def _count_images(options: TrainOptions) -> int | None:
    """Return the number of training images; None if they are not on this machine, or counting would read them all."""
    if options.train_num_samples:
        return options.train_num_samples
    kind = kind_of(options)
    if kind not in ('folder', 'tar', 'demo', 'torch'):
        return None
    if kind != 'demo' and not os.path.exists(options.data_dir or ''):
        return None
    from ..assembly.datasets import open_split
    from ..base.errors import DataError
    try:
        return len(open_split(replace(options, dataset_download=False), options.train_split))
    except (DataError, TypeError):  # no data, or no length
        return None
