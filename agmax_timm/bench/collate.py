"""Benchmark of two-view MixUp of uint8 images against timm's collate function, called once per view."""
import numpy as np
import timm.data
import torch

from ..data.augmentation.mixup import TwoViewCollate
from . import passes
from .output import Result

_MIXUP = dict(mixup_alpha=0.8, num_classes=1000)


def collate(batch_size: int, img_size: int, repeats: int) -> Result:
    try:
        from ..data.arrays.collate import FastCollate
    except ImportError as error:
        raise ValueError(f"'{error.name}' is not installed: pip install 'agmax_timm[fast]'") from error
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, batch_size, img_size, img_size, 3), dtype=np.uint8)
    # Memory layout of the transforms: channels first for timm, channels last for the fast backend.
    channels_last = [[torch.from_numpy(image).permute(2, 0, 1) for image in view] for view in pixels]
    channels_first = [[image.contiguous() for image in view] for view in channels_last]
    targets = draw.integers(0, 1000, batch_size).tolist()
    timm_collate = timm.data.FastCollateMixup(**_MIXUP)

    def two_calls():
        return sum(len(timm_collate(list(zip(view, targets)))[0]) for view in channels_first)

    def one_call(function, views):
        return lambda: len(function(list(zip(zip(*views), targets)))[0])

    with passes.one_thread():
        measured = passes.interleaved({
            "timm's, once per view": two_calls,
            'two views, timm': one_call(TwoViewCollate(_MIXUP), channels_first),
            'two views, fast': one_call(FastCollate(_MIXUP), channels_last),
        }, repeats)
    rows = passes.rows(measured, 'collate', {
        'views': passes.count, 'ms': lambda one: 1000 * one.seconds, 'ratio': passes.rate})
    return Result(f"ratio: MixUps of 2 x {batch_size} images per second against timm's FastCollateMixup, "
                  'called for each view', rows)
