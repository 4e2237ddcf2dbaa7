"""NaFlex training loaders, with one view or two. NaFlex keeps the aspect ratio of each image and gives its patches."""
import copy
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import NaFlexMixup, create_naflex_loader
from torch.utils.data import Dataset, Subset, default_collate

from ..base.image_modes import check_mode, mode_of_channels, timm_policy
from .augmentation.transforms import use_published_policy
from .views import TwoViews, warn_of_equal_views

_logger = logging.getLogger(__name__)


class TwoViewMajor:
    """Arrange the views of a batch view-major, and mix each view separately.

    Whether a batch is mixed is drawn once for both views.

    Args:
        mixup: Function that mixes the images and targets of one view, or None.
    """

    def __init__(self, mixup: NaFlexMixup | None = None):
        self.mixup = mixup

    def set_epoch(self, epoch: int) -> None:
        if self.mixup is not None:
            self.mixup.set_epoch(epoch)

    def __call__(
            self,
            pairs: list[tuple[torch.Tensor, torch.Tensor]],
            targets: Sequence[Any],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the images and targets of a batch.

        Args:
            pairs: Two views of each of B images. Each view [C, H, W] has its own size.
            targets: Class index of each image.

        Returns:
            2B images and 2B targets: all first views, then all second views.
        """
        labels = default_collate(list(targets))
        views = [list(view) for view in zip(*pairs)]
        if self.mixup is None:
            return views[0] + views[1], [*labels, *labels]
        mixup = copy.copy(self.mixup)
        mixup.mixup_enabled = mixup.mixup_enabled and random.random() <= mixup.prob
        mixup.prob = 1.
        mixed = [mixup(view, labels) for view in views]
        return mixed[0][0] + mixed[1][0], [*mixed[0][1], *mixed[1][1]]


class _Indices(Dataset):
    """The indices of a data set, as the samples (index, None)."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, None]:
        return index, None


class _Later:
    """A transform of _Indices, which only notes the index. MakeBatch applies the real one to the image."""

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform = transform

    def __call__(self, index: int) -> tuple[Callable[[Any], Any], int]:
        return self.transform, index


class MakeBatch:
    """Load and transform the images of a batch, then mix them or arrange their views.

    timm's loader warns of an error in the data set or in the transform, leaves the image out, and goes on. So it gets
    indices only, and calls this in place of mixup, before the images are split into patches. Errors are raised here.

    Args:
        dataset: Data set of samples (image, class index).
        arrange: NaFlexMixup, TwoViewMajor, or None.
    """

    def __init__(self, dataset: Any, arrange: Any = None):
        self.dataset = dataset
        self.arrange = arrange

    def set_epoch(self, epoch: int) -> None:
        if self.arrange is not None:
            self.arrange.set_epoch(epoch)

    def __call__(self, noted: list[tuple[Callable[[Any], Any], int]], _: Any = None) -> tuple[Sequence, Sequence]:
        """Return the images and targets of a batch from the transforms and indices that _Later noted."""
        images, targets = [], []
        for transform, index in noted:
            image, target = self.dataset[index]
            images.append(transform(image))
            targets.append(target)
        return (images, targets) if self.arrange is None else self.arrange(images, targets)


def create_naflex_train_loader(dataset: Any, *, mixup: dict[str, Any] | None = None, two_views: bool = False, **kwargs):
    """Return the training loader of timm.data.create_naflex_loader, with one view or two.

    Two views give view-major batches: patches [2B, N, P], and class indices [2B] or soft targets [2B, K]. A batch of
    one image has no marginals. So up to 7 images per process are left out, from the end of the data set.

    Args:
        dataset: Map-style data set.
        mixup: Dict of timm.data.NaFlexMixup's arguments, or None.
        two_views: Whether to give two views of every image.
        **kwargs: Arguments of timm.data.create_naflex_loader; batch_size counts images of the longest sequence.

    Raises:
        ValueError: Batches of two views have one image, or an augmentation does not accept the mode of the images.
    """
    check_mode(dataset, kwargs.get('channels', 3), kwargs)
    mix = NaFlexMixup(**mixup) if mixup is not None else None
    policy = kwargs.get('auto_augment') or ''
    loader = create_naflex_loader(
        _Indices(dataset), is_training=True, mixup_fn=MakeBatch(dataset, TwoViewMajor(mix) if two_views else mix),
        **{**kwargs, 'auto_augment': timm_policy(policy)})
    batches: Any = loader.dataset
    transforms = batches.transforms
    use_published_policy(transforms.values(), policy)
    spare = _single_images([size for _, size in batches._canonical_batch_schedule]) if two_views else 0
    if spare:
        _logger.warning(f'Training leaves out the last {spare} of {len(dataset)} images, which would be batches of one '
                        'image.')
        dataset = Subset(dataset, range(len(dataset) - spare))
        return create_naflex_train_loader(dataset, mixup=mixup, two_views=True, **kwargs)
    mixes = mixup is not None and mixup.get('prob', 1.) > 0.
    erases = kwargs.get('re_prob') and not kwargs.get('no_aug')
    if two_views and not mixes and not erases:
        warn_of_equal_views(transforms.values(), mode_of_channels(kwargs.get('channels', 3)))
    for key, transform in transforms.items():
        transforms[key] = _Later(TwoViews(transform) if two_views else transform)
    return loader


def _single_images(sizes: list[int]) -> int:
    """Return the number of batches of one image at the end. Raise ValueError if there are other batches of one."""
    spare = len(sizes) - next((i for i in range(len(sizes), 0, -1) if sizes[i - 1] > 1), 0)
    if spare >= 8 or sizes.count(1) > spare or (sizes and spare == len(sizes)):
        raise ValueError('two views need 2 images or more in a batch, and timm rounds the batch sizes of NaFlex to '
                         'multiples of 8: use a batch_size of 8 or more, and 8 images or more')
    return spare
