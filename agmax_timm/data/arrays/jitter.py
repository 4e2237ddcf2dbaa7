"""Colour jitter of a batch on its device, with the steps of torchvision's jitter of PIL images."""
import torch
from torchvision import transforms

_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # PIL's
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
DTYPES = torch.float32, torch.float16  # bfloat16 is too inexact: levels would differ by up to 1
_CHUNK = 2 ** 23  # number of values per chunk: 35 MiB of memory in addition to the batch, 70 MiB for float16


class DeviceJitter:
    """Change brightness, contrast and saturation. Each image has its own factors and its own random order.

    The three steps blend the image with black, with its mean luma, and with the luma of each pixel. So one expression
    does a different step for each image. Levels are truncated and clipped after each step, as in PIL.

    timm's prefetcher calls it after the normalisation, which is undone first and repeated at the end.

    Args:
        jitter: transforms.ColorJitter without hue.
        mean: Mean of the normalisation in levels [1, 3, 1, 1], on the device.
        std: Standard deviation of the normalisation in levels [1, 3, 1, 1], on the device.
        pinned: Whether the drawn numbers are copied to the device from pinned memory.
    """

    def __init__(self, jitter: transforms.ColorJitter, mean: torch.Tensor, std: torch.Tensor, pinned: bool = False):
        # Factor 1 does not change an image.
        self.ranges = torch.tensor([limits or (1., 1.) for limits in (
            jitter.brightness, jitter.contrast, jitter.saturation)])
        self.mean = mean.float()
        self.std = std.float()
        self.pinned = pinned

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Jitter images in place, in chunks that are computed in float32.

        Args:
            images: Normalised images [N, 3, H, W] of one of DTYPES.

        Returns:
            The same images.
        """
        drawn = self.draw(len(images))
        if self.pinned:
            drawn = drawn[0].pin_memory(), drawn[1].pin_memory()
        steps, factors = (values.to(images.device, non_blocking=True) for values in drawn)
        count = max(1, _CHUNK // images[0].numel())
        for chunk, *own in zip(images.split(count), steps.split(count), factors.split(count)):
            levels = chunk.float()  # the chunk itself, or a copy of float16
            jitter_levels(levels.mul_(self.std).add_(self.mean).round_(), *own)
            chunk.copy_(levels.sub_(self.mean).div_(self.std))
        return images

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first, second and third step of each image [count, 3], and their factors [count, 3]."""
        steps = torch.rand(count, 3).argsort(1)
        low, high = self.ranges.T
        factors = low + (high - low) * torch.rand(count, 3)
        return steps, factors.gather(1, steps)


def jitter_levels(levels: torch.Tensor, steps: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Jitter levels [N, 3, H, W] in place, whole numbers in float32, by the steps and factors of DeviceJitter.draw."""
    red, green, blue = levels.split(1, dim=1)
    for step, factor in zip(steps.T[..., None, None, None], factors.T[..., None, None, None]):
        gray = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).add_(.5).floor_()
        mean = gray.mean((2, 3), keepdim=True).add_(.5).floor_()
        other = torch.where(step == _SATURATION, gray, torch.where(step == _CONTRAST, mean, 0.))
        torch.lerp(other, levels, factor, out=levels).clamp_(0, 255).floor_()
    return levels
