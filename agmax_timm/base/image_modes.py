"""PIL modes of images, and values of data options. Imports nothing of this package, so the command line can use it."""
from typing import Any

from PIL.ImageMode import getmode

CROP_MODES = ('rrc', 'rkrc', 'rkrr', 'pad')
MIXUP_MODES = ('batch', 'pair', 'elem')
BACKENDS = ('auto', 'timm', 'fast')
# AutoAugment's published policies, and timm's policies in whose place they are used. With 3a, timm jitters colours too.
PUBLISHED_POLICIES = {'cifar10': 'original', 'svhn': 'original', 'imagenet': '3a'}

_COLOURS = ('L', 'LA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'HSV')
# Modes that an augmentation accepts and keeps, by its argument of timm's create_loader. Crops and flips work in all
# modes.
_MODES_OF_STEPS = {
    'auto_augment': ('L', 'RGB'),  # every policy has operations that use a lookup table of levels
    'grayscale_prob': ('L', 'RGB'),  # torchvision returns gray images as L or RGB
    'color_jitter': _COLOURS,
    'gaussian_blur_prob': (*_COLOURS, 'F'),
}
_DEFAULT_JITTER = 0.4  # timm's
_RESIZE_ONLY = ('box', 'hamming', 'lanczos')  # PIL does not rotate and shear by these interpolations
# Parts of names of policies that work with any interpolation: 3a does not rotate, published ones rotate by nearest.
_ANY_INTERPOLATION = {'3a', 't3a', 't3aw', *PUBLISHED_POLICIES}


def timm_policy(policy: str) -> str:
    """Return timm's policy in whose place a policy is used: 'original-mstd0.5' for 'cifar10-mstd0.5'."""
    name, dash, rest = policy.partition('-')
    return f'{PUBLISHED_POLICIES.get(name, name)}{dash}{rest}'


def mode_of_channels(channels: int) -> str:
    """Return the default PIL mode for a number of channels."""
    return {2: 'LA', 3: 'RGB', 4: 'RGBA'}.get(channels, 'L')


def mode_of(dataset: Any, channels: int) -> str:
    """Return the PIL mode of the images of a data set: its `input_img_mode`, else that of the number of channels."""
    return getattr(dataset, 'input_img_mode', None) or mode_of_channels(channels)


def why_not_loaded(mode: str, prefetcher: bool) -> str:
    """Return why a loader cannot return the pixels of a PIL mode unchanged, with the remedy. '' if it can.

    timm's prefetcher keeps 8 bits of each value, modulo 256. Without it, wider integers cannot be normalised.
    """
    kind, size = tuple(getmode(mode).typestr[-2:])
    if (kind, size) == ('u', '1') or not (prefetcher or kind in 'iu'):
        return ''
    remedy = 'use L, the upper 8 bits of 16' if kind != 'b' else 'use L'
    if not prefetcher:
        return f'integers wider than 8 bits cannot be normalised: {remedy}, or F'
    return f'the prefetcher takes 8 bits per channel: {remedy}' + (', or add --no-prefetcher' if kind in 'bf' else '')


def check_mode(dataset: Any, channels: int, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for a PIL mode or an interpolation that the prefetcher or an augmentation does not accept.

    It would crash a loader worker, or change pixels.

    Args:
        dataset: Data set; its `input_img_mode` is the mode, if it has one.
        channels: Number of channels of the images.
        kwargs: Arguments of timm.data.create_loader for training.
    """
    mode = mode_of(dataset, channels)
    reason = why_not_loaded(mode, kwargs.get('use_prefetcher', True))
    if reason:
        raise ValueError(f"input_img_mode '{mode}': {reason}")
    for name, modes in _MODES_OF_STEPS.items():
        value = kwargs.get(name, _DEFAULT_JITTER if name == 'color_jitter' else None)
        asked = any(value) if isinstance(value, (tuple, list)) else value
        if asked and mode not in modes and not kwargs.get('no_aug'):
            remedy = 'set it to 0' if name == 'color_jitter' else 'leave it out'
            raise ValueError(f"{name} {value!r} works on images of mode {', '.join(modes)}, got '{mode}': {remedy}")
    policy, interpolation = kwargs.get('auto_augment') or '', kwargs.get('interpolation')
    is_geometric = policy != '' and _ANY_INTERPOLATION.isdisjoint(policy.split('-'))
    if is_geometric and interpolation in _RESIZE_ONLY and not kwargs.get('no_aug'):
        raise ValueError(f"interpolation '{interpolation}' only resizes, and auto_augment '{policy}' rotates and "
                         'shears: use bilinear, bicubic, nearest or random')
