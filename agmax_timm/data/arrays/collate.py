"""Collation of views on arrays: batches are arranged and mixed in place, in memory that is reused."""
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from ..augmentation.mixup import Mix, TwoViewCollate, class_indices, pair_of
from ..memory.buffers import Buffers
from .small import ViewBatch


class FastCollate(TwoViewCollate):
    """Collate samples of one view, or samples of two views view-major. Two views are mixed if mixup is given.

    Reused memory of a batch is overwritten after some further batches, when timm's PrefetchLoader has copied the batch.
    To keep a batch, copy it.

    Args:
        mixup: Dict of TwoViewMixup's arguments, or None. Only for two views.
        two_views: Whether a sample has two views.
        reused: Whether the memory of a batch is reused, see Buffers.
    """

    def __init__(self, mixup: dict[str, Any] | None = None, two_views: bool = True, reused: bool = True):
        super().__init__(mixup)
        self.two_views = two_views
        self._buffers = Buffers(reused)

    def __call__(self, batch: list[tuple] | ViewBatch, _=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch.

        Args:
            batch: B samples (view, class index) or ((view, view), class index) with uint8 views [3, H, W]; or a
                ViewBatch.

        Returns:
            (images, target): View-major uint8 images [B, 3, H, W] or [2B, 3, H, W] with channels last in memory, and
            class indices [B] or [2B] or, with mixup, soft targets [2B, K].
        """
        if isinstance(batch, ViewBatch):
            if self.mixup is None:
                return batch.images.permute(0, 3, 1, 2), batch.target.repeat(len(batch.images) // len(batch.target))
            views, target = [list(view) for view in np.split(batch.images.numpy(), 2)], batch.target
        else:
            samples = [pair_of(sample) if self.two_views else sample[:1] for sample in batch]
            views = [[view.permute(1, 2, 0).numpy() for view in same] for same in zip(*samples)]
            target = self._targets([sample[1] for sample in batch])
        images = self._buffers.take((len(views) * len(target), *views[0][0].shape))
        places = np.split(images.numpy(), len(views))
        if self.mixup is None:
            for view, place in zip(views, places):
                for pixels, written in zip(view, place):  # on small images, faster than np.stack
                    written[...] = pixels
            target = torch.cat([target] * len(views))
        else:
            height, width, channels = views[0][0].shape
            mixes = self.mixup.draw((len(target), channels, height, width))
            for view, place, mix in zip(views, places, mixes):
                write_mixed(view, place, mix)
            target = torch.cat([self.mixup.soft_targets(target, mix) for mix in mixes])
        return images.permute(0, 3, 1, 2), target

    def _targets(self, targets: list[Any]) -> torch.Tensor:
        """Return class indices [B]. With one view, also targets [B, K] of several labels per image."""
        if self.two_views:
            return class_indices(targets)
        target = default_collate(targets)
        return target.long() if target.ndim == 1 else target


def write_mixed(view: list[np.ndarray], place: np.ndarray, mix: Mix) -> None:
    """Mix the images [H, W, 3] of a view, and write them to their place in a batch [B, H, W, 3], rounded."""
    for i, (pixels, written) in enumerate(zip(view, place)):
        if mix.partner[i] == i:
            written[...] = pixels
        elif i in mix.boxes:
            yl, yh, xl, xh = mix.boxes[i]
            written[...] = pixels
            written[yl:yh, xl:xh] = view[mix.partner[i]][yl:yh, xl:xh]
        else:
            lam = float(mix.lam[i])
            cv2.addWeighted(pixels, lam, view[mix.partner[i]], 1. - lam, 0., dst=written)
