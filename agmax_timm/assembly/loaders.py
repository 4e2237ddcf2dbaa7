"""Create data sets and loaders from options, and check them against the model."""
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.ImageMode import getmode
from timm.data import create_loader, create_naflex_loader
from timm.data.target_transforms import MultiLabelTarget
from torch.utils.data import Dataset, IterableDataset

from ..base.command_line import flag_of
from ..base.distributed import is_distributed, is_primary, rank, world_size
from ..base.errors import OptionError
from ..base.image_modes import mode_of_channels, why_not_loaded
from ..data.device import Input, to_device
from ..data.loader import create_train_loader
from ..data.memory.buffers import is_pinned
from ..data.naflex import create_naflex_train_loader
from ..data.sources.checks import check_classes, check_different
from ..data.sources.classes import summary
from ..data.sources.datasets import DEMO, check_split
from ..data.sources.shards import open_dataset, share_evaluation
from ..data.workers import leave_signals
from ..options.checks import mixing
from ..options.data import DataSet, Loading
from ..options.parsers import AnyOptions, TrainOptions
from ..options.shared_flags import pinning
from .model import Precision

_logger = logging.getLogger(__name__)


def check_roots(options: DataSet, *splits: str) -> None:
    """Raise DataError if the data does not exist. Further checks need the model, which determines the image mode."""
    if options.dataset == DEMO and options.data_dir:
        _logger.warning(f'{options.data_dir} has no effect with --dataset {DEMO}')
    for split in filter(None, splits):
        check_split(options.dataset, options.data_dir, split)


def build_datasets(options: TrainOptions, data_config: dict) -> tuple[Dataset, Dataset | None]:
    """Open and check the training and validation data. The latter is None for --val-split ''."""
    train = _open_split(options, data_config, options.train_split, options.train_num_samples, is_training=True,
                        seed=options.seed, repeats=options.epoch_repeats, samples_flag='--train-num-samples',
                        max_damaged=options.max_damaged)
    validation = None
    if options.val_split:
        validation = open_validation(options, data_config)
        if options.val_split != options.train_split:
            check_different(train, validation)
    if is_primary():
        _logger.info(summary({options.train_split: train, options.val_split: validation}))
    check_classes(train, validation, options.num_classes or 0, options.class_map)
    return train, validation


def open_validation(options: TrainOptions, data_config: dict) -> Dataset:
    return _open_split(options, data_config, options.val_split, options.val_num_samples, is_training=False,
                       samples_flag='--val-num-samples')


def _open_split(options: AnyOptions, data_config: dict, split: str, num_samples: int | None, **kwargs):
    return open_dataset(
        options.dataset,
        root=options.data_dir,
        split=split,
        workers=options.workers,
        num_samples=num_samples,
        class_map=options.class_map,
        download=options.dataset_download,
        batch_size=options.batch_size,
        input_img_mode=image_mode(options, data_config),
        input_key=options.input_key,
        target_key=options.target_key,
        trust_remote_code=options.dataset_trust_remote_code,
        **label_kwargs(options),
        **kwargs,
    )


def label_kwargs(options: AnyOptions) -> dict[str, Any]:
    """Return the arguments of open_dataset for several labels per image; none for one class per image."""
    if options.task != 'multilabel':
        return {}
    return dict(
        target_format=options.target_format,
        target_transform=MultiLabelTarget(options.num_classes or 0, dense=options.target_format == 'multihot'),
    )


def image_mode(options: AnyOptions, data_config: dict) -> str:
    """Return the PIL mode that images are converted to.

    Raises:
        OptionError: The mode has another number of channels than the model, or the loaders do not support it.
    """
    channels = data_config['input_size'][0]
    mode = options.input_img_mode or mode_of_channels(channels)
    if len(getmode(mode).bands) != channels:
        raise OptionError(f'--input-img-mode {mode} has {len(getmode(mode).bands)} channels, the model {channels}: '
                          'give both the same, by --input-img-mode and --in-chans')
    reason = why_not_loaded(mode, prefetcher=not options.no_prefetcher)
    if reason:
        raise OptionError(f'--input-img-mode {mode}: {reason}')
    return mode


def _loader_kwargs(options: AnyOptions, data_config: dict, device: torch.device, precision: Precision) -> dict:
    channels = dict(channels=data_config['input_size'][0]) if options.naflex_loader else {}
    return dict(
        **channels,
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=is_pinned(pinning(options), device),
        img_dtype=precision.model_dtype or torch.float32,
        device=device,
        distributed=is_distributed(),
        use_prefetcher=not options.no_prefetcher,
    )


def mixup_kwargs(options: TrainOptions) -> dict[str, Any] | None:
    """Return the arguments of timm.data.Mixup, or None without mixing."""
    if not mixing(options):
        return None
    return dict(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=options.num_classes,
        **(dict(multi_label=True) if options.task == 'multilabel' else {}),
    )


def build_train_loader(
        options: TrainOptions,
        dataset: Dataset,
        data_config: dict,
        device: torch.device,
        precision: Precision,
        patch_size: tuple[int, int] | None = None,
):
    """Return the training loader. It has two views per image with --agmax.

    Args:
        patch_size: Height and width of a patch of the model, for --naflex-loader.

    Raises:
        OptionError: An option does not fit the data.
    """
    _check_train_options(options, dataset, data_config)
    common = {**_augmentation_kwargs(options, data_config), **_loader_kwargs(options, data_config, device, precision)}
    try:
        if options.naflex_loader:
            return create_naflex_train_loader(dataset, **common, **_naflex_kwargs(options, patch_size))
        return create_train_loader(
            dataset,
            data_config['input_size'],
            mixup=mixup_kwargs(options),
            cutout=options.cutout,
            lighting=options.lighting,
            augment_backend=options.augment_backend,
            image_memory=options.image_memory,
            channels_last=options.channels_last,
            num_aug_splits=options.aug_splits,
            use_multi_epochs_loader=options.use_multi_epochs_loader,
            **_resolution_kwargs(options),
            **common,
        )
    except (ValueError, AssertionError) as error:  # timm asserts on unknown policies
        policy = f' (--aa {options.aa})' if options.aa else ''
        raise OptionError(f'training data{policy}: {_with_flags(str(error))}') from error


def _check_train_options(options: TrainOptions, dataset: Dataset, data_config: dict) -> None:
    """Raise OptionError for options that do not fit the data or the number of processes."""
    if options.aug_repeats and not is_distributed() and not isinstance(dataset, IterableDataset):
        raise OptionError(f'--aug-repeats {options.aug_repeats:g} repeats images over processes, got one: use torchrun '
                          'or drop it')
    if options.cutmix_minmax is not None:
        least, most = options.cutmix_minmax
        for side in data_config['input_size'][1:]:
            if not int(side * least) < int(side * most):
                raise OptionError(f'--cutmix-minmax {least:g} {most:g} is less than a pixel of {side}: take them '
                                  'further apart')


def _augmentation_kwargs(options: TrainOptions, data_config: dict) -> dict[str, Any]:
    """Return the arguments that both kinds of training loader share."""
    interpolation = '' if options.no_aug else options.train_interpolation
    return dict(
        batch_size=options.batch_size,
        two_views=options.agmax,
        no_aug=options.no_aug,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        re_split=options.resplit,
        train_crop_mode=options.train_crop_mode,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        color_jitter_prob=options.color_jitter_prob,
        grayscale_prob=options.grayscale_prob,
        gaussian_blur_prob=options.gaussian_blur_prob,
        auto_augment=options.aa,
        num_aug_repeats=options.aug_repeats,
        interpolation=interpolation or data_config['interpolation'],
        num_workers=options.workers,
        worker_seeding=options.worker_seeding,
    )


def _with_flags(message: str) -> str:
    """Replace the names of loader arguments in a message by their flags."""
    for name in ('augment_backend', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob'):
        message = message.replace(name, flag_of(name))
    return message.replace('auto_augment', flag_of('aa'))


def _resolution_kwargs(options: TrainOptions) -> dict[str, Any]:
    if options.train_img_sizes is None:
        return {}
    return dict(
        input_size_choices=options.train_img_sizes,
        batch_size_choices=options.train_batch_sizes,
        batch_choice_weights=options.train_size_probs,
        batch_choice_seed=options.seed,
        batch_choice_schedule=options.train_size_schedule,
        batch_schedule_epochs=options.epochs if options.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=options.train_size_schedule_spread,
        batch_schedule_random_mix=options.train_size_random_mix,
        num_batches=options.train_batches_per_epoch,
    )


def _naflex_kwargs(options: TrainOptions, patch_size: tuple[int, int] | None) -> dict[str, Any]:
    mixup = mixup_kwargs(options)
    if mixup is not None:
        mixup.update(mixup_off_epoch=options.mixup_off_epoch)
        del mixup['mode'], mixup['cutmix_minmax']  # only for images of one size
    patches: dict[str, Any] = dict(patch_size=patch_size)
    if options.naflex_patch_sizes:
        patches = dict(
            patch_size_choices=options.naflex_patch_sizes, patch_size_choice_probs=options.naflex_patch_size_probs)
    return dict(
        mixup=mixup,
        train_seq_lens=options.naflex_train_seq_lens,
        rank=rank(),
        world_size=world_size(),
        patchify_channels_last=not options.naflex_patchify_channels_first,
        **patches,
    )


def patch_size(model: Any, choices: Sequence[int] | None = None) -> tuple[int, int]:
    """Return the height and width of a patch of a NaFlex model.

    Args:
        choices: Sides of the patches in training (--naflex-patch-sizes).

    Raises:
        OptionError: The model does not support patches, or patches of these sizes.
    """
    if not hasattr(model, 'get_patch_size'):
        raise OptionError(f'--naflex-loader needs a model that takes patches, such as naflexvit_base_patch16_gap; '
                          f'{type(model).__name__} does not')
    own = model.get_patch_size()
    interpolates = getattr(getattr(model, 'embeds', None), 'patch_interpolator', None) is not None
    if not interpolates and any((side, side) != own for side in choices or ()):
        sizes = ' '.join(map(str, choices or ()))
        raise OptionError(f'--naflex-patch-sizes {sizes}: the model only takes patches of {own[0]} x {own[1]}: add '
                          '--model-kwargs enable_patch_interpolator=True, or drop it')
    return own


def average_batch_size(options: Loading, loader) -> float:
    """Return the batch size of a process. For scheduled sizes it is the mean."""
    return getattr(loader.batch_sampler, 'average_batch_size', float(options.batch_size))


def build_loss_scale(options: TrainOptions, loader) -> Callable[[int], float] | None:
    """Return a function from the number of images of a batch to its loss factor; None for equal factors."""
    mode = options.naflex_loss_scale if options.naflex_loader else options.variable_batch_loss_scale
    if mode == 'none' or not (options.naflex_loader or options.train_img_sizes):
        return None
    average, power = average_batch_size(options, loader), 0.5 if mode == 'sqrt' else 1.
    return lambda images: (images / average) ** power


def build_eval_loader(
        options: AnyOptions,
        dataset: Any,
        data_config: dict,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        patch_size: tuple[int, int] | None = None,
        crop_border_pixels: int | None = None,
        tf_preprocessing: bool = False,
):
    """Return a loader in the order of the data set, for validation in train.py and for validate.py."""
    workers = options.workers
    if is_distributed() and isinstance(dataset, IterableDataset):
        workers = min(2, workers)  # fewer shards to pad
    if options.naflex_loader:
        loader = create_naflex_loader(
            dataset,
            patch_size=patch_size,
            max_seq_len=options.naflex_max_seq_len,
            batch_size=batch_size,
            interpolation=data_config['interpolation'],
            num_workers=workers,
            patchify_channels_last=not options.naflex_patchify_channels_first,
            **_loader_kwargs(options, data_config, device, precision),
        )
    else:
        share_evaluation(dataset, batch_size)
        loader = create_loader(
            dataset,
            input_size=data_config['input_size'],
            batch_size=batch_size,
            is_training=False,
            interpolation=data_config['interpolation'],
            num_workers=workers,
            crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'],
            crop_border_pixels=crop_border_pixels,
            tf_preprocessing=tf_preprocessing,
            **_loader_kwargs(options, data_config, device, precision),
        )
    leave_signals(loader)
    return loader


def prepare_batch(
        options: AnyOptions,
        input: Input,
        target: torch.Tensor,
        device: torch.device,
        precision: Precision,
) -> tuple[Input, torch.Tensor]:
    """Return a batch of a loader on the device, in the dtype and memory format of the model."""
    if options.no_prefetcher:
        input, target = to_device(input, target, device, precision.model_dtype)
    if options.channels_last and isinstance(input, torch.Tensor):
        input = input.contiguous(memory_format=torch.channels_last)
    return input, target
