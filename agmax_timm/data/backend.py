"""What pixels a training loader works on: PIL images by timm, or arrays where every step has its fast equal."""
import logging
from typing import Any, Callable, Dict, List, Optional

from timm.data.loader import PrefetchLoader
from timm.data.scheduled_sampler import ScheduledTransformDataset
from torch.utils.data import Dataset

from .decoding import DecodedDataset

_logger = logging.getLogger(__name__)


def take_backend(wanted: str, loader: Any, channels: int, two_views: bool, mixup: Optional[Dict[str, Any]]) -> None:
    """Let a loader of timm's work on arrays, its transforms, decoding and collate replaced, or leave it as it is.

    Args:
        wanted: 'timm', 'fast', or 'auto': fast for two views, if every step has its equal; the log says which.
        loader: Training loader of timm, its transforms complete for one view.
        channels: Of the images.
        mixup: None, or a dict of timm.data.Mixup's arguments.

    Raises:
        ValueError: 'fast' for what has no equal on arrays, or without the packages of the extra `fast`.
    """
    if wanted == 'timm' or (wanted == 'auto' and not two_views):
        return
    reason = _why_not(loader, channels)
    transforms: List[Callable] = []
    if not reason:
        try:
            from .fast.transform import ArrayTransform, UnequalError
        except ImportError as error:
            reason = f"{error.name} is not installed: pip install 'agmax_timm[fast]'"
        else:
            try:
                transforms = [ArrayTransform(transform) for transform in transforms_of(loader.dataset)]
            except UnequalError as error:
                reason = f'no fast equal of {error}'
    if reason and wanted == 'fast':
        raise ValueError(f'augment_backend fast: {reason}; timm or auto do it')
    if reason:
        _logger.info(f'Augmentation by timm: {reason}.')
        return
    from .fast.collate import FastCollate
    from .fast.decoding import decode_array
    replace_transforms(loader.dataset, transforms)
    base = getattr(loader.dataset, 'dataset', loader.dataset)
    if type(base) is DecodedDataset and base.input_img_mode == 'RGB':
        base.decode = decode_array
    if two_views or mixup is None:
        loader.loader.collate_fn = FastCollate(mixup)
    loader.loader.worker_init_fn = _OneThread(loader.loader.worker_init_fn)
    _logger.info('Augmentation on arrays: each step has its fast equal.')


def use_batches(dataset: Dataset, views: int) -> None:
    """Make the views of small images in memory a batch at a time, where their transform allows it."""
    transform = getattr(dataset, 'transform', None)
    if getattr(dataset, 'memory', None) is not None and type(transform).__name__ == 'ArrayTransform':
        from .fast.small import small_batches
        dataset.batches = small_batches(dataset.memory, transform, views)


def transforms_of(dataset: Dataset) -> List[Callable]:
    """The transform of a data set, or those of its scheduled sizes."""
    return list(dataset.transforms) if isinstance(dataset, ScheduledTransformDataset) else [dataset.transform]


def replace_transforms(dataset: Dataset, transforms: List[Callable]) -> None:
    """Put others in the place of transforms_of(dataset)."""
    if isinstance(dataset, ScheduledTransformDataset):
        dataset.transforms = tuple(transforms)
    else:
        dataset.transform, = transforms


class _OneThread:
    """Start a worker without threads of OpenCV's, beside the other workers."""

    def __init__(self, init: Callable[[int], None]):
        self.init = init

    def __call__(self, worker: int) -> None:
        import cv2
        cv2.setNumThreads(0)
        self.init(worker)


def _why_not(loader: Any, channels: int) -> str:
    if not isinstance(loader, PrefetchLoader):
        return 'without the prefetcher, batches are not uint8'
    if channels != 3 or getattr(loader.dataset, 'input_img_mode', 'RGB') != 'RGB':
        return 'images are not RGB'
    return ''
