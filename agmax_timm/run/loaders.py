"""From options to data: data sets that were checked, training and evaluation loaders."""
import argparse
from typing import Any, Dict, Optional, Tuple

import torch
from timm.data import create_loader
from torch.utils.data import Dataset, IterableDataset

from ..data.datasets import check_classes, check_different, create_dataset
from ..data.loader import create_train_loader
from .build import Precision
from .checks import mixing
from .config import OptionError


def build_datasets(args: argparse.Namespace, data_config: Dict) -> Tuple[Dataset, Optional[Dataset]]:
    """Training and validation data (None for --val-split ''), checked against each other and the model."""
    train = _open_split(args, data_config, args.train_split, args.train_num_samples, is_training=True,
                        seed=args.seed, repeats=args.epoch_repeats)
    validation = None
    if args.val_split:
        validation = _open_split(args, data_config, args.val_split, args.val_num_samples, is_training=False)
        if args.val_split != args.train_split:
            check_different(train, validation)
    check_classes(train, validation, args.num_classes, args.class_map)
    return train, validation


def _open_split(args: argparse.Namespace, data_config: Dict, split: str, num_samples: Optional[int], **kwargs):
    return create_dataset(
        args.dataset,
        root=args.data_dir,
        split=split,
        num_samples=num_samples,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=image_mode(args, data_config),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        **kwargs,
    )


def image_mode(args: argparse.Namespace, data_config: Dict) -> str:
    return args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')


def _loader_kwargs(args: argparse.Namespace, data_config: Dict, device: torch.device, precision: Precision) -> Dict:
    return dict(
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=args.pin_mem,
        img_dtype=precision.model_dtype or torch.float32,
        device=device,
        distributed=args.distributed,
        use_prefetcher=not args.no_prefetcher,
    )


def mixup_kwargs(args: argparse.Namespace) -> Optional[Dict[str, Any]]:
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
    )


def build_train_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        data_config: Dict,
        device: torch.device,
        precision: Precision,
):
    """Training loader, of two views with --agmax."""
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    try:
        return create_train_loader(
            dataset,
            data_config['input_size'],
            args.batch_size,
            two_views=args.agmax,
            mixup=mixup_kwargs(args),
            cutout=args.cutout,
            lighting=args.lighting,
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
            use_multi_epochs_loader=args.use_multi_epochs_loader,
            **_loader_kwargs(args, data_config, device, precision),
        )
    except ValueError as error:
        raise OptionError(f'training data: {error}') from error


def build_eval_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        data_config: Dict,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        crop_border_pixels: Optional[int] = None,
        tf_preprocessing: bool = False,
):
    """Loader in the order of the data set, for training's validation and for validate.py alike."""
    workers = args.workers
    if args.distributed and isinstance(dataset, IterableDataset):
        workers = min(2, workers)  # fewer shards that are padded
    return create_loader(
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
