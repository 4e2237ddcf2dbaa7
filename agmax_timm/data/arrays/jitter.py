"""Colour jitter of a whole batch on its device, with the steps of torchvision's on PIL images."""

import torch
from torchvision import transforms

_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # PIL's
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


class DeviceJitter:
    """Brightness, contrast and saturation, each image with its own factors in its own random order.

    Each is a blend of the image with black, with its mean luma, or with the luma of each pixel, so that one expression
    does whichever of the three is an image's turn. Levels are cut off and clipped after each step, as PIL's are.

    It stands behind the normalisation, where timm's prefetcher has a place for it, and takes that back.

    Args:
        jitter: transforms.ColorJitter without hue.
        mean, std: Of the normalisation, in levels, [1, 3, 1, 1] on the device.
        pinned: Whether what is drawn goes to the device from pinned memory.
    """

    def __init__(
            self,
            jitter: transforms.ColorJitter,
            mean: torch.Tensor,
            std: torch.Tensor,
            pinned: bool = False,
    ):
        # An image of factor 1 stays as it is.
        self.ranges = torch.tensor([limits or (1., 1.) for limits in (
            jitter.brightness, jitter.contrast, jitter.saturation)])
        self.mean = mean
        self.std = std
        self.pinned = pinned
        self.luma = torch.tensor(_LUMA, device=mean.device).view(1, 3, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images: Normalised images [N, 3, H, W], float32.

        Returns:
            The images, jittered.
        """
        drawn = self.draw(len(images))
        if self.pinned:
            drawn = drawn[0].pin_memory(), drawn[1].pin_memory()
        steps, factors = (values.to(images.device, non_blocking=True) for values in drawn)
        levels = jitter_levels((images * self.std + self.mean).round_(), steps, factors, self.luma)
        return levels.sub_(self.mean).div_(self.std)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The step that is an image's first, second and third [count, 3], and its factor there [count, 3]."""
        steps = torch.rand(count, 3).argsort(1)
        low, high = self.ranges.T
        factors = low + (high - low) * torch.rand(count, 3)
        return steps, factors.gather(1, steps)


def jitter_levels(
        levels: torch.Tensor,
        steps: torch.Tensor,
        factors: torch.Tensor,
        luma: torch.Tensor,
) -> torch.Tensor:
    """Jitter levels [N, 3, H, W], whole numbers as float32, by the steps and factors of DeviceJitter.draw."""
    for step, factor in zip(steps.T[..., None, None, None], factors.T[..., None, None, None]):
        gray = (levels * luma).sum(1, keepdim=True).add_(.5).floor_()
        mean = gray.mean((2, 3), keepdim=True).add_(.5).floor_()
        other = torch.where(step == _SATURATION, gray, torch.where(step == _CONTRAST, mean, 0.))
        levels = torch.lerp(other, levels, factor).clamp_(0, 255).floor_()
    return levels
