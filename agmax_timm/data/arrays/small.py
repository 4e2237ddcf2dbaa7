"""Padding, crop and flip of a batch of small images in memory, for which one call per image takes too much time.

Offsets and flips are drawn for the whole batch. The draws have timm's distribution, but are not the same as timm's.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision import transforms

from ..memory.buffers import Buffers
from ..memory.images import ImageMemory
from .transform import ArrayTransform, Step, in_turn


class ViewBatch(NamedTuple):
    """Views of a batch before collation: view-major uint8 images [V * B, H, W, 3], and class indices [B]."""
    images: torch.Tensor
    target: torch.Tensor


class SmallBatches:
    """Make the views of a batch of images that are in memory and have one size.

    Args:
        crop: transforms.RandomCrop with padding, to the size of the images.
        flip: Probability of a horizontal flip.
        steps: Further steps, which are applied to each image.
        reused: Whether the memory of a batch is reused, see Buffers.
    """

    def __init__(
            self,
            memory: ImageMemory,
            crop: transforms.RandomCrop,
            flip: float,
            steps: list[Step],
            views: int,
            reused: bool = True,
    ):
        self.memory = memory
        self.padding = crop.padding[1], crop.padding[0]  # (vertical, horizontal)
        self.flip = flip
        self.steps = steps
        self.views = views
        self._buffers = Buffers(reused)

    def __call__(self, indices: Sequence[int]) -> ViewBatch:
        """Return the views of a batch of images."""
        samples = [self.memory.get_kept(index) for index in indices]
        height, width, channels = samples[0][0].shape
        count = self.views * len(samples)
        images = self._buffers.take((count, height, width, channels))
        tops, lefts = (torch.randint(-pad, pad + 1, (count,)).tolist() for pad in self.padding)
        flips = (torch.rand(count) < self.flip).tolist()
        for written, (pixels, _), top, left, flip in zip(
                images.numpy(), self.views * samples, tops, lefts, flips):
            _write_shifted(written, pixels, top, left, flip)
            view = in_turn(self.steps, written)
            if view is not written:
                written[...] = view
        return ViewBatch(images, torch.tensor([target for _, target in samples]))


def small_batches(memory: ImageMemory, transform: ArrayTransform, views: int, reused: bool) -> SmallBatches | None:
    """Return the SmallBatches of a transform.

    Returns:
        None if the first steps are not padding, crop and flip, or if the images do not have the size of the crop.
    """
    crop, *steps = transform.transform.transforms[:-1]
    if not isinstance(crop, transforms.Compose) or len(crop.transforms) != 2:
        return None
    resize, crop = crop.transforms
    if not isinstance(crop, transforms.RandomCrop) or memory.common_shape != (*crop.size, 3):
        return None
    flip = 0.
    if steps and isinstance(steps[0], transforms.RandomHorizontalFlip):
        flip = steps.pop(0).p
    return SmallBatches(memory, crop, flip, transform.steps[len(transform.steps) - len(steps):], views, reused)


def _write_shifted(written: np.ndarray, pixels: np.ndarray, top: int, left: int, flip: bool) -> None:
    """Write an image shifted by (-top, -left), with black where no pixel remains, and mirrored if `flip`."""
    height, width = pixels.shape[:2]
    part = pixels[max(0, top):height + min(0, top), max(0, left):width + min(0, left)]
    if top or left:
        written[...] = 0
    first_row, first_column = max(0, -top), max(0, -left)
    if flip:
        part, first_column = part[:, ::-1], width - first_column - part.shape[1]
    written[first_row:first_row + part.shape[0], first_column:first_column + part.shape[1]] = part
