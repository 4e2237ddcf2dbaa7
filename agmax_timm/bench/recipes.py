"""Augmentations of the benchmarks, as arguments of create_two_view_loader."""
from typing import Any

Recipe = dict[str, Any]

RECIPES: dict[str, Recipe] = {
    'standard': {},
    'nojitter': dict(color_jitter=None),
    'aa': dict(auto_augment='original'),
    'rand': dict(auto_augment='rand-m9-mstd0.5'),
    'mixup': dict(mixup=dict(mixup_alpha=0.8)),
}

# Recipe of timm's loader, where it differs from that of the two-view loaders.
BASELINES = {'nojitter': 'standard'}

_PAD = dict(train_crop_mode='pad', color_jitter=None)
SMALL_RECIPES: dict[str, Recipe] = {
    'cropflip': _PAD,
    'aa': dict(_PAD, auto_augment='original'),
}
