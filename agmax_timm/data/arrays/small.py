"""Small images in memory: pad, crop and flip a batch at a time, where a call for each image costs more than its pixels.

Offsets and flips are drawn for the whole batch, so they are other draws than timm's, from the same distribution.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision import transforms

from ..memory.buffers import Buffers
from ..memory.images import ImageMemory
from .transform import ArrayTransform, Step


class ViewBatch(NamedTuple):
    """Views of a batch, to be collated: uint8 [V * B, H, W, 3], view-major, and class indices [B]."""
    images: torch.Tensor
    target: torch.Tensor


class SmallBatches:
    """Views of images that are all of one size and in memory.

    Args:
        memory: The images.
        crop: transforms.RandomCrop with padding, to the size of the images.
        flip: Probability of a horizontal flip.
        steps: What follows, an image at a time.
        views: Views of each image.
        reused: Whether memory of batches is used again.
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
        self.padding = crop.padding[1], crop.padding[0]  # of height, width
        self.flip = flip
        self.steps = steps
        self.views = views
        self._buffers = Buffers(reused)

    def __call__(self, indices: Sequence[int]) -> ViewBatch:
        """The views of these images. Their memory may be used again, see Buffers."""
        samples = [self.memory.get_kept(index) for index in indices]
        height, width, channels = samples[0][0].shape
        count = self.views * len(samples)
        images = self._buffers.take((count, height, width, channels))
        tops, lefts = (torch.randint(-pad, pad + 1, (count,)).tolist() for pad in self.padding)
        flips = (torch.rand(count) < self.flip).tolist()
        for written, (pixels, _), top, left, flip in zip(
                images.numpy(), self.views * samples, tops, lefts, flips):
            _write_shifted(written, pixels, top, left, flip)
            if self.steps:
                view = written
                for step in self.steps:
                    view = step(view)
                written[...] = view
        return ViewBatch(images, torch.tensor([target for _, target in samples]))


def small_batches(
        memory: ImageMemory,
        transform: ArrayTransform,
        views: int,
        reused: bool,
) -> SmallBatches | None:
    """SmallBatches for a transform of data in memory, None where it does other things than to pad, crop and flip first,
    or where images are not of the size of the crop."""
    crop, *steps = transform.transform.transforms[:-1]
    if not isinstance(crop, transforms.Compose) or len(crop.transforms) != 2:
        return None
    resize, crop = crop.transforms
    if not isinstance(crop, transforms.RandomCrop) or memory.common_shape != (*crop.size, 3):
        return None
    flip = 0.
    if steps and isinstance(steps[0], transforms.RandomHorizontalFlip):
        flip = steps.pop(0).p
    return SmallBatches(memory, crop, flip, transform.steps[len(transform.steps) - len(steps):], views,
                        reused)


def _write_shifted(written: np.ndarray, pixels: np.ndarray, top: int, left: int, flip: bool) -> None:
    """Write the part of an image that starts at (top, left), black where there is none, mirrored if flip."""
    height, width = pixels.shape[:2]
    part = pixels[max(0, top):height + min(0, top), max(0, left):width + min(0, left)]
    if top or left:
        written[...] = 0
    first_row, first_column = max(0, -top), max(0, -left)
    if flip:
        part, first_column = part[:, ::-1], width - first_column - part.shape[1]
    written[first_row:first_row + part.shape[0], first_column:first_column + part.shape[1]] = part
