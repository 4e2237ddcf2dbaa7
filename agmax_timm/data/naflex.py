"""NaFlex training loaders, with one view or two. NaFlex keeps the aspect ratio of each image and gives its patches."""
import logging
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import NaFlexMixup, create_naflex_loader
from torch.utils.data import Subset, default_collate

from ..base.image_modes import check_mode, mode_of_channels, timm_policy
from .augmentation.transforms import use_published_policy
from .views import TwoViews, warn_of_equal_views

_logger = logging.getLogger(__name__)


class TwoViewMajor:
    """Arrange the views of a batch view-major, and mix each view separately.

    timm's loader calls it in place of mixup, after the transforms and before the images are split into patches.

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
        mixed = [self.mixup(view, labels) for view in views]
        return mixed[0][0] + mixed[1][0], [*mixed[0][1], *mixed[1][1]]


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
        dataset, is_training=True, mixup_fn=TwoViewMajor(mix) if two_views else mix,
        **{**kwargs, 'auto_augment': timm_policy(policy)})
    batches: Any = loader.dataset
    use_published_policy(batches.transforms.values(), policy)
    if not two_views:
        return loader
    spare = _single_images([size for _, size in batches._canonical_batch_schedule])
    if spare:
        _logger.warning(f'Training leaves out the last {spare} of {len(dataset)} images, which would be batches of one '
                        'image.')
        dataset = Subset(dataset, range(len(dataset) - spare))
        return create_naflex_train_loader(dataset, mixup=mixup, two_views=True, **kwargs)
    transforms = batches.transforms
    erases = kwargs.get('re_prob') and not kwargs.get('no_aug')
    if mix is None and not erases:
        warn_of_equal_views(transforms.values(), mode_of_channels(kwargs.get('channels', 3)))
    transforms.update({key: TwoViews(transform) for key, transform in transforms.items()})
    return loader


def _single_images(sizes: list[int]) -> int:
    """Return the number of batches of one image at the end. Raise ValueError if there are other batches of one."""
    spare = len(sizes) - next((i for i in range(len(sizes), 0, -1) if sizes[i - 1] > 1), 0)
    if spare >= 8 or sizes.count(1) > spare:
        raise ValueError('two views need 2 images or more in a batch, and timm rounds the batch sizes of NaFlex to '
                         'multiples of 8: use a batch_size of 8 or more, and 8 images or more')
    return spare
