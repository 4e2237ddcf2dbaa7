"""What happens to training images: augmentation, mixing, several sizes."""

from ..base.image_modes import BACKENDS, CROP_MODES, MIXUP_MODES
from .data import INTERPOLATIONS
from .declare import POSITIVE, Check, at_least, between, group, one_of, option


@group
class Augmentation:
    """Augmentation."""
    no_aug: bool = option(False, 'train without augmentation')
    train_crop_mode: str | None = option(
        None,
        'crop of training images: rrc, rkrc or rkrr as in timm, or pad: pad by an eighth and crop at random '
        '(default: rrc)',
        metavar='MODE', check=one_of(*CROP_MODES), unless=('no_aug', 'naflex_loader'), card=True)
    scale: list[float] = option([0.08, 1.0], 'smallest and largest share of the image area that a random crop has',
        metavar='PCT', check=POSITIVE, counts=(2, 2), ascending=True, unless='no_aug', card=True)
    ratio: list[float] = option([3. / 4., 4. / 3.], 'smallest and largest aspect ratio of a random crop',
        metavar='R', check=POSITIVE, counts=(2, 2), ascending=True, unless='no_aug')
    train_interpolation: str = option('random', 'interpolation that resizes training images',
        metavar='NAME', check=one_of('', 'random', *INTERPOLATIONS), unless='no_aug')
    hflip: float = option(0.5, 'probability of a horizontal flip', metavar='P', check=between(0, 1), unless='no_aug')
    vflip: float = option(0.0, 'probability of a vertical flip', metavar='P', check=between(0, 1), unless='no_aug')
    color_jitter: float = option(0.4, 'strength of the jitter of brightness, contrast and saturation',
        metavar='F', check=at_least(0), unless='no_aug', card=True)
    color_jitter_prob: float | None = option(None, 'probability of colour jitter (default: every image)',
        metavar='P', check=between(0, 1), unless='no_aug')
    grayscale_prob: float | None = option(None, 'probability that an image is turned to grey (default: 0)',
        metavar='P', check=between(0, 1), unless='no_aug')
    gaussian_blur_prob: float | None = option(None, 'probability of Gaussian blur (default: 0)',
        metavar='P', check=between(0, 1), unless='no_aug')
    aa: str | None = option(
        None,
        'policy of AutoAugment, RandAugment, AugMix or 3-augment, as in timm, such as rand-m9-mstd0.5; or cifar10, '
        'svhn or imagenet: AutoAugment as published, for imagenet with --color-jitter',
        metavar='POLICY', unless='no_aug', card=True,
        synonyms=('auto_augment', 'autoaugment', 'rand_augment', 'randaugment'))
    augment_backend: str = option(
        'auto',
        'augmentation on PIL images (timm), or on arrays, with the same views up to a level or two (fast); auto: '
        'fast with --agmax if all steps are available',
        choices=BACKENDS)
    aug_repeats: float = option(
        0, 'number of differently augmented copies of each image, distributed over the processes',
        metavar='N', check=at_least(0), resume='refused within epoch', former=('aug_repeat',))
    aug_splits: int = option(
        0, 'number of versions of each image in a batch, the first one without augmentation: 0, or 2 and more',
        metavar='N', check=Check('0, or 2 and more', lambda value: value == 0 or value >= 2))
    lighting: float = option(0.0, 'standard deviation of PCA lighting noise; 0.1 as published',
        metavar='STD', check=at_least(0), card=True)
    cutout: int = option(0, 'side in pixels of one square that is filled with the mean colour',
        metavar='SIDE', check=at_least(0), card=True)
    reprob: float = option(0.0, 'probability of random erasing',
        metavar='P', check=between(0, 1), unless='no_aug', card=True, synonyms=('random_erase', 'random_erasing'))
    remode: str = option('pixel', 'values of an erased region: const, rand or pixel',
        check=one_of('', 'const', 'rand', 'pixel'), needs='reprob')
    recount: int = option(1, 'number of regions to erase in an image', metavar='N', check=at_least(1), needs='reprob')
    resplit: bool = option(
        False, 'do not erase in the first augmentation split, or without --aug-splits in the first half of the batch')


@group
class Mixing:
    """MixUp and CutMix."""
    mixup: float = option(0.0, 'alpha of MixUp; 0: no MixUp', metavar='ALPHA', check=at_least(0), card=True)
    cutmix: float = option(0.0, 'alpha of CutMix; 0: no CutMix', metavar='ALPHA', check=at_least(0), card=True)
    cutmix_minmax: list[float] | None = option(
        None, 'smallest and largest side of the CutMix box as a share of the image; overrides --cutmix',
        metavar='PCT', check=between(0, 1), counts=(2, 2), card=True)
    mixup_prob: float = option(1.0, 'probability that a batch, pair or image is mixed',
        metavar='P', check=between(0, 1))
    mixup_switch_prob: float = option(0.5, 'probability of CutMix instead of MixUp if both are on',
        metavar='P', check=between(0, 1))
    mixup_mode: str = option('batch', 'images that share a mixing ratio: all (batch), two (pair) or none (elem)',
        check=one_of(*MIXUP_MODES))
    mixup_off_epoch: int = option(0, 'epoch from which nothing is mixed; 0: never', metavar='N', check=at_least(0))


@group
class Resolutions:
    """Several image sizes in training."""
    train_img_sizes: list[int] | None = option(None, 'sides of the training images; one is drawn for each batch',
        metavar='N', check=at_least(1), resume='refused within epoch')
    train_batch_sizes: list[int] | None = option(
        None, 'batch size for each of --train-img-sizes (default: --batch-size)',
        metavar='N', check=at_least(1), needs='train_img_sizes', resume='refused within epoch')
    train_size_probs: list[float] | None = option(None, 'probability of each of --train-img-sizes (default: equal)',
        metavar='P', check=at_least(0), needs='train_img_sizes', resume='refused within epoch')
    train_size_schedule: str = option(
        'constant', 'constant: draw sizes alike in all epochs; progressive: move from the first size to the last',
        choices=('constant', 'progressive'), needs='train_img_sizes', resume='refused within epoch')
    train_size_schedule_spread: float = option(
        0.65, 'standard deviation of the progressive choice, in steps of the list of sizes',
        metavar='STD', check=POSITIVE, needs='train_size_schedule progressive', resume='refused within epoch')
    train_size_random_mix: float = option(0.1, 'share of sizes that the progressive schedule draws at random',
        metavar='P', check=between(0, 1), needs='train_size_schedule progressive', resume='refused within epoch')
    train_batches_per_epoch: int | None = option(None, 'number of batches in an epoch (default: by the sizes)',
        alias='--train-steps-per-epoch', metavar='N', check=at_least(1), needs='train_img_sizes',
        resume='refused within epoch')
    variable_batch_loss_scale: str = option(
        'none', 'scale of the gradient by the size of a batch relative to the average',
        choices=('none', 'sqrt', 'linear'), needs='train_img_sizes')
