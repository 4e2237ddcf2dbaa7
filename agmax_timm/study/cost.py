"""What a study costs, counted before anything is trained."""
import argparse
import math
import os

from .plan import Run


def epochs_of(args: argparse.Namespace) -> int:
    """Epochs of a run, but for the cycles of --lr-cycle-limit."""
    whole = args.epochs + args.cooldown_epochs + (args.warmup_epochs if args.warmup_prefix else 0)
    return args.stop_epoch or whole


def updates_and_views(runs: list[Run]) -> tuple[int, int] | None:
    """Updates, and views that pass the networks in training, of all runs; None where the data cannot be counted, or
    its batches are of several sizes."""
    updates = views = 0
    counted: dict[tuple, int | None] = {}
    for args in (run.args for run in runs):
        data = (args.dataset, args.data_dir, args.train_split, args.class_map, args.train_num_samples)
        if data not in counted:
            counted[data] = _images(args)
        if counted[data] is None or args.train_img_sizes or args.naflex_loader:
            return None
        batches = counted[data] // args.batch_size  # the incomplete last one is left out
        updates += epochs_of(args) * math.ceil(batches / args.grad_accum_steps)
        views += epochs_of(args) * batches * args.batch_size * (2 if args.agmax else max(1, args.aug_splits))
    return updates, views


def _images(args: argparse.Namespace) -> int | None:
    """Training images, None where they are not on this machine or only counted by reading them."""
    if args.train_num_samples:
        return args.train_num_samples
    if '/' in args.dataset and not args.dataset.startswith('torch/'):
        return None
    if args.dataset != 'demo' and not os.path.exists(args.data_dir or ''):
        return None
    from ..base.errors import DataError
    from ..data.sources.datasets import create_dataset
    try:
        return len(create_dataset(
            args.dataset, root=args.data_dir, split=args.train_split, class_map=args.class_map, download=False))
    except (DataError, TypeError):  # none, or without a length
        return None
