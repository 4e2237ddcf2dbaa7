"""Two-view MixUp of a batch of uint8 images: ours, and timm's collate once for each view."""
import argparse

import numpy as np
import timm.data
import torch

from ..data.mixup import TwoViewCollate
from . import passes
from .report import Result

_MIXUP = dict(mixup_alpha=0.8, num_classes=1000)


def collate(args: argparse.Namespace) -> Result:
    try:
        from ..data.arrays.collate import FastCollate
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'agmax_timm[fast]'") from error
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, args.batch_size, args.img_size, args.img_size, 3), dtype=np.uint8)
    # The memory layout is that of the transforms: timm's puts the channels first, the fast one last.
    last = [[torch.from_numpy(image).permute(2, 0, 1) for image in view] for view in pixels]
    first = [[image.contiguous() for image in view] for view in last]
    targets = draw.integers(0, 1000, args.batch_size).tolist()
    timms = timm.data.FastCollateMixup(**_MIXUP)

    def two_calls():
        return sum(len(timms(list(zip(view, targets)))[0]) for view in first)

    def one_call(function, views):
        return lambda: len(function(list(zip(zip(*views), targets)))[0])

    with passes.one_thread():
        measured = passes.interleaved({
            "timm's, once a view": two_calls,
            'two views, timm': one_call(TwoViewCollate(_MIXUP), first),
            'two views, fast': one_call(FastCollate(_MIXUP), last),
        }, args.repeats)
    rows = passes.rows(measured, 'collate', {
        'views': passes.count, 'ms': lambda one: 1000 * one.seconds, 'ratio': passes.rate})
    return Result(f"ratio: MixUps of 2 x {args.batch_size} images a second against timm's FastCollateMixup, "
                  'called for each view', rows)
