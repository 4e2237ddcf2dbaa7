"""The augmentation backend of a training loader: timm on PIL images, or the fast one on arrays."""
import logging
from typing import Any

from timm.data.loader import PrefetchLoader
from timm.data.scheduled_sampler import ScheduledTransformDataset
from torch.utils.data import Dataset

from ..base.image_modes import mode_of
from .augmentation.extensions import LoaderExtensions

_logger = logging.getLogger(__name__)


def select_backend(loader: Any, extensions: LoaderExtensions, channels: int) -> None:
    """Replace transforms, decoding and collate function of a loader by those on arrays, if the backend is fast.

    `augment_backend='auto'` is fast for two views if every step has a fast equivalent.

    Args:
        loader: Training loader of timm, with the complete transforms of one view. Changed in place.

    Raises:
        ValueError: 'fast' is wanted, but a step has no fast equivalent, or a package of the extra `fast` is missing.
    """
    wanted = extensions.augment_backend
    if wanted == 'timm' or (wanted == 'auto' and not extensions.two_views):
        return
    reason = _why_not_fast(loader, channels)
    if not reason:
        try:
            from .arrays.install import work_on_arrays
            remark = work_on_arrays(loader, extensions)
        except ImportError as error:
            reason = f"'{error.name}' is not installed: pip install 'agmax_timm[fast]'"
        except NotImplementedError as error:
            reason = f'{error} has no fast equivalent'
        else:
            _logger.info(f'Augmentation on arrays{remark}.')
            return
    if wanted == 'fast':
        raise ValueError(f'augment_backend fast: {reason}: use timm or auto')
    _logger.info(f'Augmentation by timm: {reason}.')


def use_batched_views(dataset: Any, views: int, reused: bool) -> None:
    """Make the views of small images in memory a batch at a time, if their transform allows it. See Buffers."""
    if getattr(dataset, 'memory', None) and _on_arrays(dataset.transform) and dataset.target_transform is None:
        from .arrays.small import small_batches
        dataset.transform.batches = small_batches(dataset.memory, dataset.transform, views, reused)


def views_of(dataset: Dataset) -> str:
    """Return a phrase for how the views of a training data set are made."""
    if getattr(dataset, 'batches', None) is not None:
        return 'from arrays, by batches'
    transform = getattr(dataset, 'transform', None)  # None with NaFlex
    if isinstance(dataset, ScheduledTransformDataset):
        transform = dataset.transforms[0]
    return 'from arrays' if _on_arrays(transform) else 'by timm'


def _on_arrays(transform: Any) -> bool:
    """Whether a transform works on arrays, so that files are decoded to arrays. See ArrayTransform."""
    return hasattr(transform, 'decode_pixels')


def _why_not_fast(loader: Any, channels: int) -> str:
    if not isinstance(loader, PrefetchLoader):
        return 'without the prefetcher, batches are not uint8'
    base = getattr(loader.dataset, 'dataset', loader.dataset)  # scheduled sizes wrap the data set
    return '' if channels == 3 and mode_of(base, channels) == 'RGB' else 'images are not RGB'
