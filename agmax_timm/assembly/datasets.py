"""Open data sets from options, and check them against the model."""
import logging
from dataclasses import replace
from typing import Any

from PIL.ImageMode import getmode
from timm.data.target_transforms import MultiLabelTarget
from torch.utils.data import Dataset

from ..base.distributed import is_primary
from ..base.errors import OptionError
from ..base.image_modes import mode_of_channels, why_not_loaded
from ..data.sources.checks import check_classes, check_different, same_images
from ..data.sources.classes import class_to_idx, summary
from ..data.sources.dataset_factory import check_split, find_split
from ..data.sources.decoding import DecodedDataset
from ..data.sources.held_out import part_of
from ..data.sources.shards import open_dataset
from ..options.data_kinds import kind_of, split_name
from ..options.declare import picked
from ..options.derived import remembers
from ..options.parsers import AnyOptions, TrainOptions
from ..options.quantities import share_of
from ..weights.checkpoint import saved_options

_logger = logging.getLogger(__name__)

Opened = tuple[Dataset, Dataset | None]  # training data, validation data


def check_roots(options: AnyOptions, *splits: str) -> None:
    """Raise DataError if the data does not exist, or if splits of other names are the same folder.

    Further checks need the model, which determines the image mode.
    """
    root = options.data_dir
    names = [*dict.fromkeys(_whole(options, split) for split in splits if split)]
    for name in names:
        check_split(options.dataset, root, name)
    if root and kind_of(options) in ('folder', 'tar') and len(names) > len({find_split(root, name) for name in names}):
        raise same_images(root)


def with_num_classes(options: TrainOptions) -> tuple[TrainOptions, Opened | None]:
    """Fill in --num-classes for --agmax and --agmax-teacher memory.

    It is that of the checkpoint of --resume, or else that of the data. It stays None if neither knows it.

    Returns:
        The options, and the data for build_datasets() if it was opened.
    """
    if not (options.agmax or remembers(options)) or options.num_classes is not None:
        return options, None
    source, count, opened = f'the checkpoint {options.resume}', None, None
    if options.resume:
        count = saved_options(options.resume).get('num_classes')
    if count is None:
        opened = _open_train(options)
        known = class_to_idx(opened[0])
        source, count = f'the split {options.train_split!r}', max(known.values()) + 1 if known else None
    if is_primary():
        if count is None:
            _logger.warning('--num-classes is not given, and the data does not know its classes: the model keeps its '
                            'own number of outputs, on which the agreement depends. Set --num-classes')
        else:
            _logger.info(f'--num-classes {count}: the number of classes of {source}.')
    return replace(options, num_classes=count), opened


def build_datasets(options: TrainOptions, data_config: dict, opened: Opened | None = None) -> Opened:
    """Open and check the training and validation data. The latter is None for --val-split ''.

    Args:
        opened: Data that with_num_classes() opened. Kinds that fix the image mode when they open are opened again.
    """
    mode = image_mode(options, data_config)
    if opened is None or not isinstance(opened[0], DecodedDataset):
        opened = _open_train(options, input_img_mode=mode)
    for dataset in opened:
        if isinstance(dataset, DecodedDataset):
            dataset.input_img_mode = mode  # unknown to with_num_classes(), which has no model
    train, validation = opened
    if options.val_split:
        if validation is None:
            validation = open_validation(options, data_config)
        if options.val_split == options.train_split:
            if is_primary():
                _logger.warning(f"--val-split '{options.val_split}' names the training images, so validation does not "
                                'show how the model does on others: name another split, or a share such as 0.1 if the '
                                'data has an index and one label per image')
        elif share_of(options.val_split) is None:
            check_different(train, validation)
    _logger.info(summary({options.train_split: train, split_name(vars(options), options.val_split): validation}))
    check_classes(train, validation, options.num_classes or 0, options.class_map)
    return train, validation


def open_validation(options: TrainOptions, data_config: dict) -> Dataset:
    """Open the validation data of train.py."""
    return open_split(
        options, options.val_split, num_samples=options.val_num_samples, samples_flag='--val-num-samples',
        input_img_mode=image_mode(options, data_config), **_for_training(options))


def _open_train(options: TrainOptions, **kwargs) -> Opened:
    """Open the training data. If --val-split is a share, both parts have the index of one scan of the data."""
    whole = _open_whole(
        options, options.train_split, is_training=True, num_samples=options.train_num_samples,
        samples_flag='--train-num-samples', seed=options.seed, repeats=options.epoch_repeats,
        max_damaged=options.max_damaged, **_for_training(options), **kwargs)
    share = share_of(options.val_split)
    if share is None:
        return whole, None
    return _part(options, whole, share, held_out=False), _part(options, whole, share, held_out=True)


def _for_training(options: TrainOptions) -> dict[str, Any]:
    """Return the arguments of open_dataset() that the training and validation data of train.py share."""
    kwargs: dict[str, Any] = dict(workers=options.workers, batch_size=options.batch_size)
    if options.task == 'multilabel':
        kwargs['target_transform'] = MultiLabelTarget(
            options.num_classes or 0, dense=options.target_format == 'multihot')
    return kwargs


def open_split(options: AnyOptions, split: str, **kwargs) -> Any:
    """Open a split, or a part of the training split, with the options that all commands share.

    Args:
        split: Name of the split, or a share of the training split. If --val-split is a share, the training split is
            the remaining part.
        **kwargs: Further arguments of shards.open_dataset.
    """
    whole = _open_whole(options, split, **kwargs)
    share, held_out = share_of(split), True
    if isinstance(options, TrainOptions) and split == options.train_split:
        share, held_out = share_of(options.val_split), False
    return whole if share is None else _part(options, whole, share, held_out)


def _open_whole(options: AnyOptions, split: str, **kwargs) -> Any:
    """Open the split that `split` is, or is a part of."""
    if options.target_format:
        kwargs['target_format'] = options.target_format
    return open_dataset(
        options.dataset,
        root=options.data_dir,
        split=_whole(options, split),
        class_map=options.class_map,
        download=options.dataset_download,
        trust_remote_code=options.dataset_trust_remote_code,
        **picked(options, 'input_key', 'target_key', 'exif_orientation'),
        **kwargs,
    )


def _part(options: AnyOptions, whole: Any, share: float, held_out: bool) -> Any:
    seed = options.seed if options.val_split_seed is None else options.val_split_seed
    return part_of(whole, share, seed, held_out)


def _whole(options: AnyOptions, split: str) -> str:
    """Return the name of the split that `split` is a part of."""
    return split if share_of(split) is None else options.train_split


def image_mode(options: AnyOptions, data_config: dict) -> str:
    """Return the PIL mode that images are converted to.

    Raises:
        OptionError: The mode has another number of channels than the model, or the loaders do not support it.
    """
    channels = data_config['input_size'][0]
    mode = options.input_img_mode or mode_of_channels(channels)
    if len(getmode(mode).bands) != channels:
        raise OptionError(f"--input-img-mode '{mode}' has {len(getmode(mode).bands)} channels, the model {channels}: "
                          'give both the same, by --input-img-mode and --in-chans')
    reason = why_not_loaded(mode, prefetcher=not options.no_prefetcher)
    if reason:
        raise OptionError(f"--input-img-mode '{mode}': {reason}")
    return mode
