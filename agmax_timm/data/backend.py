"""What pixels a training loader works on: PIL images by timm, or arrays where every step has its fast equal."""
import logging
from typing import Any

from timm.data.loader import PrefetchLoader
from torch.utils.data import Dataset

from .sources.decoding import decode

_logger = logging.getLogger(__name__)


def take_backend(
        wanted: str,
        loader: Any,
        channels: int,
        two_views: bool,
        mixup: dict[str, Any] | None,
        channels_last: bool = False,
) -> None:
    """Let a loader of timm's work on arrays, its transforms, decoding and collate replaced, or leave it as it is.

    Args:
        wanted: 'timm', 'fast', or 'auto': fast for two views, if every step has its equal; the log says which.
        loader: Training loader of timm, its transforms complete for one view.
        channels: Of the images.
        mixup: None, or a dict of timm.data.Mixup's arguments.
        channels_last: Leave the channels last in memory, as they are in arrays.

    Raises:
        ValueError: 'fast' for what has no equal on arrays, or without the packages of the extra `fast`.
    """
    if wanted == 'timm' or (wanted == 'auto' and not two_views):
        return
    reason = _why_not(loader, channels)
    if not reason:
        try:
            from .arrays.install import work_on_arrays
            where = work_on_arrays(loader, mixup, two_views, channels_last)
        except ImportError as error:
            reason = f"{error.name} is not installed: pip install 'agmax_timm[fast]'"
        except NotImplementedError as error:
            reason = f'no fast equal of {error}'
        else:
            _logger.info(f'Augmentation on arrays: each step has its fast equal{where}.')
            return
    if wanted == 'fast':
        raise ValueError(f'augment_backend fast: {reason}; timm or auto do it')
    _logger.info(f'Augmentation by timm: {reason}.')


def use_batches(dataset: Any, views: int, reused: bool) -> None:
    """Make the views of small images in memory a batch at a time, where their transform allows it.

    Args:
        reused: Whether memory of batches is used again.
    """
    if getattr(dataset, 'memory', None) and dataset.decode is not decode and dataset.target_transform is None:
        from .arrays.small import small_batches
        dataset.batches = small_batches(dataset.memory, dataset.transform, views, reused)


def views_of(dataset: Dataset) -> str:
    """How the views of a training data set are made, in words."""
    if getattr(dataset, 'batches', None) is not None:
        return 'from arrays, by batches'
    transforms = [getattr(dataset, name, None) for name in ('transforms', 'transform')]  # of torchvision: None and one
    return 'from arrays' if 'ArrayTransform' in repr(transforms) else 'by timm'


def _why_not(loader: Any, channels: int) -> str:
    if not isinstance(loader, PrefetchLoader):
        return 'without the prefetcher, batches are not uint8'
    base = getattr(loader.dataset, 'dataset', loader.dataset)  # within that of scheduled sizes
    if channels != 3 or getattr(base, 'input_img_mode', 'RGB') != 'RGB':
        return 'images are not RGB'
    return ''
