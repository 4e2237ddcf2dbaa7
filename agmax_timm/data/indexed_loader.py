"""Training loader with the indices of the images, for remembered predictions."""
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from ..base.distributed import rank, world_size
from .augmentation.mixup import with_defaults
from .loader import create_train_loader
from .loading.indexed import IndexedLoader
from .resumption.loader import make_resumable
from .views import with_transform


def create_indexed_loader(
        dataset: Dataset, input_size: int | tuple[int, int] | tuple[int, int, int], batch_size: int, *,
        mixup: dict[str, Any] | None = None, device: Any = None, distributed: bool | None = None, **kwargs,
) -> IndexedLoader:
    """Return timm's training loader with the indices of the images, for AgMaxMemoryTask.

    Iteration gives images [B, C, H, W], class indices [B] or with mixup soft targets [B, K], indices of the images in
    the data set [B], and the weight lam of each image in its mix [B], None without mixup.

    Args:
        dataset: Map-style data set, see create_two_view_loader.
        input_size: See create_two_view_loader.
        batch_size: Number of images in a batch.
        device: See create_two_view_loader.
        mixup: Dict of timm.data.Mixup's arguments, or None. num_classes must be given. label_smoothing is 0 by default.
        distributed: See create_two_view_loader.
        **kwargs: Further arguments of create_two_view_loader and of timm.data.create_loader.

    Raises:
        ValueError: The data set has no index. See also create_two_view_loader.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError('remembered predictions need a data set with an index; one that is read in sequence has none')
    if mixup is not None:
        mixup = with_defaults(mixup)
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    keys = kwargs.pop('image_key', 'image'), kwargs.pop('label_key', 'label')
    loader = create_train_loader(
        with_transform(dataset, keys), input_size, batch_size, mixup=mixup, lambdas=True, device=device,
        distributed=distributed, **kwargs)
    return IndexedLoader(*make_resumable(loader, device, world_size(), rank()), mixup)
