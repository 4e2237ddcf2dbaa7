"""What a value may be, as data: a rule for every flag that takes numbers, and the names that need no timm to know.

A new flag is one word in RANGES (or, with its reason, in ANY_NUMBER); a test tells of numeric flags that have neither.
"""
import argparse
import math
from collections.abc import Callable
from typing import Any

from ..base.command_line import flag_of
from ..base.image_modes import CROP_MODES, MIXUP_MODES

# What is larger overflows somewhere in torch, numpy or the operating system.
LARGEST = {int: 2 ** 31 - 1, float: 3.4e38}

# What the values of a flag must be, whether one is, and the flags; of flags that take several values, each of them.
RANGES = (
    ('1 or more', lambda value: value >= 1, (
        'batch_size', 'train_num_samples', 'val_num_samples', 'num_samples', 'img_size', 'input_size', 'num_classes',
        'in_chans', 'recount', 'train_img_sizes', 'train_batch_sizes', 'train_batches_per_epoch', 'naflex_max_seq_len',
        'naflex_train_seq_lens', 'naflex_patch_sizes', 'kd_student_feature_dim', 'kd_teacher_feature_dim',
        'agmax_units', 'grad_accum_steps', 'epochs', 'stop_epoch', 'lr_base_size', 'lr_cycle_limit', 'log_interval',
        'val_interval', 'checkpoint_hist', 'save_epochs', 'num_gpu', 'log_freq', 'attack_steps')),
    ('0 or more', lambda value: value >= 0, (
        'validation_batch_size', 'epoch_repeats', 'tta', 'crop_border_pixels', 'color_jitter', 'aug_repeats',
        'lighting', 'cutout', 'mixup', 'cutmix', 'mixup_off_epoch', 'train_size_probs', 'naflex_patch_size_probs',
        'distill_loss_weight', 'task_loss_weight', 'agmax_weight', 'agmax_divergence_weight', 'asl_gamma_pos',
        'asl_gamma_neg', 'poly_gamma', 'db_focal_gamma', 'opt_eps', 'weight_decay', 'start_epoch', 'lr', 'lr_base',
        'lr_noise_std', 'lr_cycle_decay', 'warmup_lr', 'warmup_epochs', 'min_lr', 'cooldown_epochs', 'patience_epochs',
        'decay_milestones', 'decay_rate', 'hang_timeout', 'early_stop', 'early_stop_min_delta', 'attack_eps')),
    ('above 0', lambda value: value > 0, (
        'scale', 'ratio', 'train_size_schedule_spread', 'bn_eps', 'kd_temperature', 'agmax_init_std', 'bce_pos_weight',
        'twoway_tp', 'twoway_tn', 'db_neg_scale', 'loss_weight_max', 'clip_grad', 'lr_cycle_mul', 'lr_k_decay',
        'lr_stable_timescale', 'decay_epochs', 'attack_step_size')),
    ('from 1 to 5', lambda value: 1 <= value <= 5, ('severities',)),
    ('between 0 and 1', lambda value: 0 <= value <= 1, (
        'hflip', 'vflip', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'reprob', 'cutmix_minmax',
        'mixup_prob', 'mixup_switch_prob', 'train_size_random_mix', 'bn_momentum', 'poly_alpha',
        'layer_decay_min_scale', 'layer_decay_no_opt_scale', 'lr_noise', 'max_damaged')),
    ('between 0 and 1, for pixels in [0, 1]', lambda value: 0 <= value <= 1, ('mean',)),
    ('above 0 and at most 1, for pixels in [0, 1]', lambda value: 0 < value <= 1, ('std',)),
    ('above 0 and at most 1', lambda value: 0 < value <= 1, ('layer_decay', 'lr_noise_pct')),
    ('from 0.1 to 1, a share of the side', lambda value: 0.1 <= value <= 1, ('crop_pct',)),
    ('0 or more and below 1', lambda value: 0 <= value < 1, (
        'drop', 'drop_connect', 'drop_path', 'drop_block', 'model_ema_decay', 'smoothing', 'bce_target_thresh',
        'asl_clip', 'opt_betas', 'momentum')),
    ('between 0 and 1, without them', lambda value: 0 < value < 1, ('multilabel_threshold', 'loss_weight_beta')),
    ('from 0 to 1024', lambda value: 0 <= value <= 1024, ('workers',)),  # more processes than any machine has cores
    ('0, or 2 and more', lambda value: value == 0 or value >= 2, ('aug_splits',)),
    (f'from 0 to {2 ** 32 - 1}', lambda value: 0 <= value < 2 ** 32, ('seed',)),  # numpy's
)
# Any finite number will do, and why.
ANY_NUMBER = {
    'head_init_scale': 'a factor of weights, 0 and negative ones are initialisations as well',
    'head_init_bias': 'a logit',
    'poly_epsilon': 'a coefficient of the loss, whose publication has negative ones',
    'db_init_bias': 'a shift of logits',
    'loss_weight_power': 'an exponent, with a sign',
    'local_rank': 'the environment of the launcher wins over it',
}
# How many values, where argparse takes any number of them: the smallest and the largest number.
COUNTS = {'scale': (2, 2), 'ratio': (2, 2), 'cutmix_minmax': (2, 2), 'lr_noise': (1, 2)}
ASCENDING = ('scale', 'ratio', 'lr_noise', 'decay_milestones')

_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
# Names that timm and PIL know, '' among them leaving the choice to them. Those of models and the like are in names.py.
NAMES = {
    'interpolation': ('', *_INTERPOLATIONS),
    'train_interpolation': ('', 'random', *_INTERPOLATIONS),
    'crop_mode': ('', 'squash', 'border', 'center'),
    'train_crop_mode': CROP_MODES,
    'remode': ('', 'const', 'rand', 'pixel'),
    'mixup_mode': MIXUP_MODES,
    'input_img_mode': ('', '1', 'L', 'P', 'I', 'F', 'LA', 'RGB', 'YCbCr', 'LAB', 'HSV', 'RGBA', 'RGBX', 'CMYK'),
    'clip_mode': ('norm', 'value', 'agc'),
    'lr_base_scale': ('', 'linear', 'sqrt'),
    'lr_decay_fn': ('', 'linear', '1-sqrt', 'cosine', 'power', 'exp'),
    'worker_seeding': ('all', 'part'),
    'dist_bn': ('', 'broadcast', 'reduce'),
    'fuser': ('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'),
    'kd_loss_type': ('kl',),
}


def check_ranges(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Hand the first value that cannot be to `error`, as a line with its flag and what it must be."""
    for words, holds, names in RANGES:
        for name in names:
            _check_values(args, name, words, holds, error)
    for name in ANY_NUMBER:
        _check_values(args, name, 'a number', lambda value: True, error)
    for name, (least, most) in COUNTS.items():
        values = getattr(args, name, None)
        if values is not None and not least <= len(values) <= most:
            several = 'two values' if least == most else 'one value or two'
            error(f'{flag_of(name)} needs {several}, got {len(values)}')
    for name in ASCENDING:
        values = getattr(args, name, None)
        if values is not None and list(values) != sorted(values):
            error(f"{flag_of(name)} must go from small to large, got {' '.join(map(str, values))}")
    for name, known in NAMES.items():
        value = getattr(args, name, None)
        if value is not None and value not in known:
            said = ', '.join(known[1:]) + " or ''" if known[0] == '' else ', '.join(known)
            error(f'{flag_of(name)} must be {"one of " if len(known) > 1 else ""}{said}, got {value!r}')


def _check_values(args: argparse.Namespace, name: str, words: str, holds: Callable, error: Callable) -> None:
    value = getattr(args, name, None)
    several = isinstance(value, (list, tuple))
    for number in value if several else () if value is None else (value,):
        each = ' each' if several else ''
        if not math.isfinite(number) or not holds(number):
            error(f'{flag_of(name)} must be {words}{each}, got {number}')
        if name != 'seed' and abs(number) > LARGEST[type(number)]:
            error(f'{flag_of(name)} must be at most {LARGEST[type(number)]}{each}, got {number}')
