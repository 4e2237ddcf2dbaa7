"""NaFlex training loaders (images as patches, each at its own aspect): timm's, and with two views of every image."""
import logging
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import NaFlexMixup, create_naflex_loader
from torch.utils.data import Subset, default_collate

from ..base.image_modes import check_mode, mode_of_channels
from .views import TwoViews, warn_of_equal_views

_logger = logging.getLogger(__name__)


class TwoViewMajor:
    """Lay the pairs of views of a batch out view-major, and mix each view on its own where mixup is given.

    It stands where timm's loader mixes: between the transforms of a batch's images and their patches.

    Args:
        mixup: None, or called with images and targets of one view, as timm.data.NaFlexMixup.
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
        """
        Args:
            pairs: Both views of B images, each [C, H, W] of its own size.
            targets: Class index of each image.

        Returns:
            2B images and 2B targets, all first views, then all second views.
        """
        labels = default_collate(list(targets))
        views = [list(view) for view in zip(*pairs)]
        if self.mixup is None:
            return views[0] + views[1], [*labels, *labels]
        mixed = [self.mixup(view, labels) for view in views]
        return mixed[0][0] + mixed[1][0], [*mixed[0][1], *mixed[1][1]]


def create_naflex_train_loader(
        dataset: Any,
        *,
        mixup: dict[str, Any] | None = None,
        two_views: bool = False,
        **kwargs,
):
    """Create timm.data.create_naflex_loader's training loader, with one view or two.

    Args:
        dataset: Data set that can be indexed.
        mixup: None, or a dict of timm.data.NaFlexMixup's arguments.
        two_views: Give view-major batches: patches [2B, N, P], class indices [2B] or soft targets [2B, K]. Up to 7
            images a process, the last of the data set, are left out where they would be alone in a batch.
        **kwargs: Arguments of timm.data.create_naflex_loader; batch_size counts images of the longest sequence.

    Raises:
        ValueError: two views of batches of single images, or images of a mode that the augmentation does not take.
    """
    check_mode(dataset, kwargs.get('channels', 3), kwargs)
    mix = NaFlexMixup(**mixup) if mixup is not None else None
    loader = create_naflex_loader(
        dataset, is_training=True, mixup_fn=TwoViewMajor(mix) if two_views else mix, **kwargs)
    if not two_views:
        return loader
    batches: Any = loader.dataset
    spare = _single_images([size for _, size in batches._canonical_batch_schedule])
    if spare:
        _logger.warning(f'{len(dataset)} images leave {spare} alone in batches: without the last of the data set.')
        dataset = Subset(dataset, range(len(dataset) - spare))
        return create_naflex_train_loader(dataset, mixup=mixup, two_views=True, **kwargs)
    transforms = batches.transforms
    erases = kwargs.get('re_prob') and not kwargs.get('no_aug')
    if mix is None and not erases:
        warn_of_equal_views(transforms.values(), mode_of_channels(kwargs.get('channels', 3)))
    transforms.update({key: TwoViews(transform) for key, transform in transforms.items()})
    return loader


def _single_images(sizes: list[int]) -> int:
    """Number of batches of one image at the end: timm fills batches by multiples of 8, and one has no marginals."""
    spare = len(sizes) - next((i for i in range(len(sizes), 0, -1) if sizes[i - 1] > 1), 0)
    if spare >= 8 or sizes.count(1) > spare:
        raise ValueError('two views need 2 images or more in a batch, and timm fills batches of NaFlex by multiples of '
                         '8: use a batch_size of 8 or more, and as many images')
    return spare
