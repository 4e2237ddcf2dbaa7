"""From options to data: data sets that were checked, training and evaluation loaders."""
import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from PIL.ImageMode import getmode
from timm import utils
from timm.data import create_loader, create_naflex_loader
from timm.data.target_transforms import MultiLabelTarget
from torch.utils.data import Dataset, IterableDataset

from ..base.command_line import flag_of, pinning
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
from .model import Precision

_logger = logging.getLogger(__name__)


def check_roots(args: argparse.Namespace, *splits: str) -> None:
    """Raise DataError for data that is not there. The rest waits for the model, which knows the mode of images."""
    if args.dataset == DEMO and args.data_dir:
        _logger.warning(f'{args.data_dir} has no effect with --dataset {DEMO}')
    for split in filter(None, splits):
        check_split(args.dataset, args.data_dir, split)


def build_datasets(args: argparse.Namespace, data_config: dict) -> tuple[Dataset, Dataset | None]:
    """Training and validation data (None for --val-split ''), checked against each other and the model."""
    train = _open_split(args, data_config, args.train_split, args.train_num_samples, is_training=True,
                        seed=args.seed, repeats=args.epoch_repeats, samples_flag='--train-num-samples',
                        max_damaged=args.max_damaged)
    validation = None
    if args.val_split:
        validation = open_validation(args, data_config)
        if args.val_split != args.train_split:
            check_different(train, validation)
    if utils.is_primary(args):
        _logger.info(summary({args.train_split: train, args.val_split: validation}))
    check_classes(train, validation, args.num_classes, args.class_map)
    return train, validation


def open_validation(args: argparse.Namespace, data_config: dict) -> Dataset:
    return _open_split(args, data_config, args.val_split, args.val_num_samples, is_training=False,
                       samples_flag='--val-num-samples')


def _open_split(args: argparse.Namespace, data_config: dict, split: str, num_samples: int | None, **kwargs):
    return open_dataset(
        args.dataset,
        root=args.data_dir,
        split=split,
        workers=args.workers,
        num_samples=num_samples,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=image_mode(args, data_config),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        **label_kwargs(args),
        **kwargs,
    )


def label_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """What opens a data set of several labels an image; nothing for one class an image."""
    if args.task != 'multilabel':
        return {}
    return dict(
        target_format=args.target_format,
        target_transform=MultiLabelTarget(args.num_classes, dense=args.target_format == 'multihot'),
    )


def image_mode(args: argparse.Namespace, data_config: dict) -> str:
    """PIL mode that images are converted to.

    Raises:
        OptionError: it has another number of channels than the model, or pixels that the loaders do not take.
    """
    channels = data_config['input_size'][0]
    mode = args.input_img_mode or mode_of_channels(channels)
    if len(getmode(mode).bands) != channels:
        raise OptionError(f'--input-img-mode {mode} has {len(getmode(mode).bands)} channels, the model {channels}: '
                          'give both the same, by --input-img-mode and --in-chans')
    reason = why_not_loaded(mode, prefetcher=not args.no_prefetcher)
    if reason:
        raise OptionError(f'--input-img-mode {mode}: {reason}')
    return mode


def _loader_kwargs(args: argparse.Namespace, data_config: dict, device: torch.device, precision: Precision) -> dict:
    channels = dict(channels=data_config['input_size'][0]) if args.naflex_loader else {}
    return dict(
        **channels,
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=is_pinned(pinning(args), device),
        img_dtype=precision.model_dtype or torch.float32,
        device=device,
        distributed=args.distributed,
        use_prefetcher=not args.no_prefetcher,
    )


def mixup_kwargs(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of timm.data.Mixup, None where nothing is mixed."""
    if not mixing(args):
        return None
    return dict(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
        **(dict(multi_label=True) if args.task == 'multilabel' else {}),
    )


def build_train_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        data_config: dict,
        device: torch.device,
        precision: Precision,
        patch_size: tuple[int, int] | None = None,
):
    """Training loader, of two views with --agmax; --naflex-loader needs the model's patch size.

    Raises:
        OptionError: options that do not fit the data; the message names them.
    """
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    if args.aug_repeats and not args.distributed and not isinstance(dataset, IterableDataset):
        raise OptionError(f'--aug-repeats {args.aug_repeats:g} repeats images over processes, got one: use torchrun '
                          'or drop it')
    if args.cutmix_minmax is not None:
        least, most = args.cutmix_minmax
        for side in data_config['input_size'][1:]:
            if not int(side * least) < int(side * most):
                raise OptionError(f'--cutmix-minmax {least:g} {most:g} is less than a pixel of {side}: take them '
                                  'further apart')
    common = dict(
        batch_size=args.batch_size,
        two_views=args.agmax,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        interpolation=interpolation,
        num_workers=args.workers,
        worker_seeding=args.worker_seeding,
        **_loader_kwargs(args, data_config, device, precision),
    )
    try:
        if args.naflex_loader:
            return create_naflex_train_loader(dataset, **common, **_naflex_kwargs(args, patch_size))
        return create_train_loader(
            dataset,
            data_config['input_size'],
            mixup=mixup_kwargs(args),
            cutout=args.cutout,
            lighting=args.lighting,
            augment_backend=args.augment_backend,
            image_memory=args.image_memory,
            channels_last=args.channels_last,
            num_aug_splits=args.aug_splits,
            use_multi_epochs_loader=args.use_multi_epochs_loader,
            **_resolution_kwargs(args),
            **common,
        )
    except (ValueError, AssertionError) as error:  # timm asserts on policies it does not know
        policy = f' (--aa {args.aa})' if args.aa else ''
        raise OptionError(f'training data{policy}: {_with_flags(str(error))}') from error


def _with_flags(message: str) -> str:
    """Replace names of loader arguments in a message by those of their flags."""
    for name in ('augment_backend', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob'):
        message = message.replace(name, flag_of(name))
    return message.replace('auto_augment', flag_of('aa'))


def _resolution_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    if args.train_img_sizes is None:
        return {}
    return dict(
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs,
        batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
    )


def _naflex_kwargs(args: argparse.Namespace, patch_size: tuple[int, int]) -> dict[str, Any]:
    mixup = mixup_kwargs(args)
    if mixup is not None:
        mixup.update(mixup_off_epoch=args.mixup_off_epoch)
        del mixup['mode'], mixup['cutmix_minmax']  # of images of one size
    patches = dict(patch_size=patch_size)
    if args.naflex_patch_sizes:
        patches = dict(
            patch_size_choices=args.naflex_patch_sizes, patch_size_choice_probs=args.naflex_patch_size_probs)
    return dict(
        mixup=mixup,
        train_seq_lens=args.naflex_train_seq_lens,
        rank=args.rank,
        world_size=args.world_size,
        patchify_channels_last=not args.naflex_patchify_channels_first,
        **patches,
    )


def patch_size(model: nn.Module, choices: Sequence[int] | None = None) -> tuple[int, int]:
    """Height and width of a patch of a NaFlex model.

    Args:
        choices: Sides of the patches in training (--naflex-patch-sizes).

    Raises:
        OptionError: the model does not take patches, or not patches of these sizes.
    """
    if not hasattr(model, 'get_patch_size'):
        raise OptionError(f'--naflex-loader needs a model that takes patches, such as naflexvit_base_patch16_gap; '
                          f'{type(model).__name__} does not')
    own = model.get_patch_size()
    interpolates = getattr(getattr(model, 'embeds', None), 'patch_interpolator', None) is not None
    if not interpolates and any((side, side) != own for side in choices or ()):
        sizes = ' '.join(map(str, choices))
        raise OptionError(f'--naflex-patch-sizes {sizes}: the model only takes patches of {own[0]} x {own[1]}: add '
                          '--model-kwargs enable_patch_interpolator=True, or drop it')
    return own


def average_batch_size(args: argparse.Namespace, loader) -> float:
    """Images of a process in a batch, on average over scheduled sizes."""
    return getattr(loader.batch_sampler, 'average_batch_size', float(args.batch_size))


def build_loss_scale(args: argparse.Namespace, loader) -> Callable[[int], float] | None:
    """Factor of the loss of a batch by its number of images, None where all batches count alike."""
    mode = args.naflex_loss_scale if args.naflex_loader else args.variable_batch_loss_scale
    if mode == 'none' or not (args.naflex_loader or args.train_img_sizes):
        return None
    average, power = average_batch_size(args, loader), 0.5 if mode == 'sqrt' else 1.
    return lambda images: (images / average) ** power


def build_eval_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        data_config: dict,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        patch_size: tuple[int, int] | None = None,
        crop_border_pixels: int | None = None,
        tf_preprocessing: bool = False,
):
    """Loader in the order of the data set, for training's validation and for validate.py alike."""
    workers = args.workers
    if args.distributed and isinstance(dataset, IterableDataset):
        workers = min(2, workers)  # fewer shards that are padded
    if args.naflex_loader:
        loader = create_naflex_loader(
            dataset,
            patch_size=patch_size,
            max_seq_len=args.naflex_max_seq_len,
            batch_size=batch_size,
            interpolation=data_config['interpolation'],
            num_workers=workers,
            patchify_channels_last=not args.naflex_patchify_channels_first,
            **_loader_kwargs(args, data_config, device, precision),
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
            **_loader_kwargs(args, data_config, device, precision),
        )
    leave_signals(loader)
    return loader


def prepare_batch(
        args: argparse.Namespace,
        input: Input,
        target: torch.Tensor,
        device: torch.device,
        precision: Precision,
) -> tuple[Input, torch.Tensor]:
    """Return a batch of a loader on the device, in the dtype and memory format of the model."""
    if args.no_prefetcher:
        input, target = to_device(input, target, device, precision.model_dtype)
    if args.channels_last and isinstance(input, torch.Tensor):
        input = input.contiguous(memory_format=torch.channels_last)
    return input, target
