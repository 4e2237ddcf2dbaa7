"""Create loaders from options."""
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import create_loader, create_naflex_loader
from torch.utils.data import Dataset, IterableDataset

from ..base.command_line import flag_of
from ..base.distributed import is_distributed, rank, world_size
from ..base.errors import OptionError
from ..data.loader import create_train_loader
from ..data.loading.balance import BalancedSampler, labels_of, use_sampler
from ..data.loading.device import Input, to_device
from ..data.loading.indexed import IndexedLoader
from ..data.loading.workers import leave_signals
from ..data.memory.buffers import is_pinned
from ..data.naflex import create_naflex_train_loader
from ..data.resumption.loader import ResumableLoader
from ..data.sources.shards import share_evaluation
from ..options.data import Loading
from ..options.declare import picked
from ..options.derived import mixing, remembers
from ..options.parsers import AnyOptions, TrainOptions
from ..options.shared_flags import pinning
from .model import Precision


def _loader_kwargs(options: AnyOptions, data_config: dict, device: torch.device, precision: Precision) -> dict:
    """Return the arguments that all loaders of timm share."""
    channels = dict(channels=data_config['input_size'][0]) if options.naflex_loader else {}
    return dict(
        **channels,
        **picked(data_config, 'mean', 'std', 'interpolation'),
        pin_memory=is_pinned(pinning(options.pin_mem, options.no_pin_mem), device),
        img_dtype=precision.model_dtype or torch.float32,
        device=device,
        distributed=is_distributed(),
        use_prefetcher=not options.no_prefetcher,
    )


def _mixup_kwargs(options: TrainOptions) -> dict[str, Any] | None:
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
    """Return the training loader. It has two views per image with --agmax. See with_indices for remembered predictions.

    Args:
        patch_size: Height and width of a patch of the model, for --naflex-loader.

    Raises:
        OptionError: An option does not fit the data.
    """
    _check_train_options(options, dataset, data_config)
    common = {**_loader_kwargs(options, data_config, device, precision), **_augmentation_kwargs(options)}
    try:
        if options.naflex_loader:
            return create_naflex_train_loader(dataset, **common, **_naflex_kwargs(options, patch_size))
        loader = create_train_loader(
            dataset,
            data_config['input_size'],
            mixup=_mixup_kwargs(options),
            lambdas=remembers(options),
            num_aug_splits=options.aug_splits,
            **picked(options, 'cutout', 'lighting', 'augment_backend', 'image_memory', 'channels_last',
                     'use_multi_epochs_loader'),
            **_resolution_kwargs(options),
            **common,
        )
        if options.balanced_sampling:
            use_sampler(loader, BalancedSampler(labels_of(dataset), options.seed, world_size(), rank()))
        return loader
    except (ValueError, AssertionError) as error:  # timm asserts on unknown policies
        policy = f" (--aa '{options.aa}')" if options.aa else ''
        raise OptionError(f'training data{policy}: {_with_flags(str(error))}') from error


def with_indices(options: TrainOptions, loader: Any, resumable: ResumableLoader) -> Any:
    """Return a training loader, with indices of the images in its batches if their predictions are remembered."""
    return IndexedLoader(loader, resumable, _mixup_kwargs(options)) if remembers(options) else loader


def _check_train_options(options: TrainOptions, dataset: Dataset, data_config: dict) -> None:
    """Raise OptionError for options that do not fit the data or the number of processes."""
    if options.aug_repeats and not is_distributed() and not isinstance(dataset, IterableDataset):
        raise OptionError(f'--aug-repeats {options.aug_repeats:g} repeats images over processes, got one: use torchrun '
                          'or drop it')
    if options.cutmix_minmax is not None:
        least, most = options.cutmix_minmax
        for side in options.train_img_sizes or data_config['input_size'][1:]:
            if not int(side * least) < int(side * most):
                raise OptionError(f'--cutmix-minmax {least:g} {most:g} is less than a pixel of {side}: use values '
                                  'that differ more')


def _augmentation_kwargs(options: TrainOptions) -> dict[str, Any]:
    """Return the arguments that both kinds of training loader share."""
    interpolation = '' if options.no_aug else options.train_interpolation
    return dict(
        two_views=options.agmax,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        re_split=options.resplit,
        auto_augment=options.aa,
        num_aug_repeats=options.aug_repeats,
        num_workers=options.workers,
        **(dict(interpolation=interpolation) if interpolation else {}),
        **picked(options, 'batch_size', 'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter',
                 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'worker_seeding'),
    )


def _with_flags(message: str) -> str:
    """Replace the names of loader arguments in a message by their flags."""
    same = ('augment_backend', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob', 'use_multi_epochs_loader')
    options = {**{name: name for name in same}, 'auto_augment': 'aa', 'num_aug_repeats': 'aug_repeats',
               'interpolation': 'train_interpolation'}
    return re.sub(rf"\b({'|'.join(options)})\b", lambda match: flag_of(options[match[1]]), message)


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
    mixup = _mixup_kwargs(options)
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
    common = dict(batch_size=batch_size, num_workers=workers, **_loader_kwargs(options, data_config, device, precision))
    if options.naflex_loader:
        loader = create_naflex_loader(
            dataset,
            patch_size=patch_size,
            max_seq_len=options.naflex_max_seq_len,
            patchify_channels_last=not options.naflex_patchify_channels_first,
            **common,
        )
    else:
        share_evaluation(dataset, batch_size)
        loader = create_loader(
            dataset,
            is_training=False,
            crop_border_pixels=crop_border_pixels,
            tf_preprocessing=tf_preprocessing,
            **picked(data_config, 'input_size', 'crop_pct', 'crop_mode'),
            **common,
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
