"""What happens to training images: augmentation, mixing, several sizes."""

from ..base.image_modes import BACKENDS, CROP_MODES, MIXUP_MODES
from .data import INTERPOLATIONS
from .declare import Check, above, at_least, between, group, one_of, option


@group
class Augmentation:
    """Augmentation."""
    no_aug: bool = option(False, 'no augmentation at all')
    train_crop_mode: str | None = option(
        None, 'rrc, rkrc, rkrr as in timm; pad: pad an eighth, crop at random (default: rrc)',
        metavar='MODE', check=one_of(*CROP_MODES), card=True)
    scale: list[float] = option([0.08, 1.0], 'area of the crop',
        metavar='PCT', check=above(0), counts=(2, 2), ascending=True, card=True)
    ratio: list[float] = option([3. / 4., 4. / 3.], 'its aspect',
        metavar='R', check=above(0), counts=(2, 2), ascending=True)
    train_interpolation: str = option('random', 'resize in training',
        metavar='NAME', check=one_of('', 'random', *INTERPOLATIONS))
    hflip: float = option(0.5, 'horizontal flip', metavar='P', check=between(0, 1))
    vflip: float = option(0.0, 'vertical flip', metavar='P', check=between(0, 1))
    color_jitter: float = option(0.4, 'brightness, contrast, saturation', metavar='F', check=at_least(0), card=True)
    color_jitter_prob: float | None = option(None, 'share of jittered images (default: all)',
        metavar='P', check=between(0, 1))
    grayscale_prob: float | None = option(None, 'share of gray images', metavar='P', check=between(0, 1))
    gaussian_blur_prob: float | None = option(None, 'share of blurred images', metavar='P', check=between(0, 1))
    aa: str | None = option(None, 'AutoAugment, RandAugment, AugMix or 3-augment, as in timm',
        metavar='POLICY', card=True, synonyms=('auto_augment', 'autoaugment', 'rand_augment', 'randaugment'))
    augment_backend: str = option(
        'auto',
        'timm: PIL images; fast: arrays, the same views to a level or two; auto: with --agmax fast where each step'
        ' has its equal',
        choices=BACKENDS)
    aug_repeats: float = option(0, 'repeated augmentation over ranks',
        metavar='N', check=at_least(0), resume='refused within epoch', former=('aug_repeat',))
    aug_splits: int = option(0, 'versions of each image in a batch, the first one clean: 0 or 2 and more',
        metavar='N', check=Check('0, or 2 and more', lambda value: value == 0 or value >= 2))
    lighting: float = option(0.0, 'PCA lighting, 0.1 as published', metavar='STD', check=at_least(0), card=True)
    cutout: int = option(0, 'one square of the mean colour, in pixels', metavar='SIDE', check=at_least(0), card=True)
    reprob: float = option(0.0, 'random erasing',
        metavar='P', check=between(0, 1), card=True, synonyms=('random_erase', 'random_erasing'))
    remode: str = option('pixel', 'const, rand or pixel', check=one_of('', 'const', 'rand', 'pixel'), needs='reprob')
    recount: int = option(1, 'regions to erase', metavar='N', check=at_least(1), needs='reprob')
    resplit: bool = option(
        False, 'no erasing in the clean split, or without --aug-splits in the first half of the batch')


@group
class Mixing:
    """MixUp and CutMix."""
    mixup: float = option(0.0, 'MixUp', metavar='ALPHA', check=at_least(0), card=True)
    cutmix: float = option(0.0, 'CutMix', metavar='ALPHA', check=at_least(0), card=True)
    cutmix_minmax: list[float] | None = option(None, 'CutMix by smallest, largest side',
        metavar='PCT', check=between(0, 1), counts=(2, 2), card=True)
    mixup_prob: float = option(1.0, 'share of batches or images mixed', metavar='P', check=between(0, 1))
    mixup_switch_prob: float = option(0.5, 'share of CutMix of both', metavar='P', check=between(0, 1))
    mixup_mode: str = option('batch', 'batch, pair or elem', check=one_of(*MIXUP_MODES))
    mixup_off_epoch: int = option(0, 'no mixing from this epoch on', metavar='N', check=at_least(0))


@group
class Resolutions:
    """Several image sizes in training."""
    train_img_sizes: list[int] | None = option(None, 'sides to choose from',
        metavar='N', check=at_least(1), resume='refused within epoch')
    train_batch_sizes: list[int] | None = option(None, 'batch size of each (default: --batch-size)',
        metavar='N', check=at_least(1), needs='train_img_sizes', resume='refused within epoch')
    train_size_probs: list[float] | None = option(None, 'share of each (default: equal)',
        metavar='P', check=at_least(0), needs='train_img_sizes', resume='refused within epoch')
    train_size_schedule: str = option('constant', 'progressive moves from the first size to the last',
        choices=('constant', 'progressive'), needs='train_img_sizes', resume='refused within epoch')
    train_size_schedule_spread: float = option(0.65, 'of the progressive choice, in steps of the list',
        metavar='STD', check=above(0), needs='train_img_sizes', resume='refused within epoch')
    train_size_random_mix: float = option(0.1, 'share of sizes drawn at random in the progressive schedule',
        metavar='P', check=between(0, 1), needs='train_img_sizes', resume='refused within epoch')
    train_batches_per_epoch: int | None = option(None, 'fixed number of batches an epoch (default: by the sizes)',
        alias='--train-steps-per-epoch', metavar='N', check=at_least(1), needs='train_img_sizes',
        resume='refused within epoch')
    variable_batch_loss_scale: str = option('none', 'scale the gradient by the size of the batch to their average',
        choices=('none', 'sqrt', 'linear'), needs='train_img_sizes')
