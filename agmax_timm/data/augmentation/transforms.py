"""Augmentations of the published AgMax runs that timm's transforms lack: CutOut, lighting, pad-and-crop, policies."""
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.scheduled_sampler import ScheduledTransformDataset
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms

from ...base.image_modes import PUBLISHED_POLICIES

# Principal components of ImageNet's RGB values in [0, 1], from 'ImageNet Classification with Deep Convolutional Neural
# Networks', section 4.1: eigenvalues, and eigenvectors as columns (rows R, G, B).
_RGB_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_RGB_EIGENVECTORS = torch.tensor([
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
])

# timm's names of operations with the ranges of the published policies, where they differ from the published names.
_OPERATIONS = {'Posterize': 'PosterizeOriginal', 'TranslateX': 'TranslateXRel', 'TranslateY': 'TranslateYRel'}


class CutOut:
    """Fill one square of a normalised image with zeros, the mean colour. https://arxiv.org/abs/1708.04552

    The centre is anywhere in the image, and the square is clipped at the border.

    Args:
        side: Side of the square in pixels.
    """

    def __init__(self, side: int):
        if side < 1:
            raise ValueError(f'cutout needs a side of 1 pixel or more, got {side}')
        self.side = side

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Fill a square in each image.

        Args:
            images: Normalised images [N, C, H, W] or [C, H, W], changed in place. Each image has its own square.

        Returns:
            The images.
        """
        batch = images if images.ndim == 4 else images[None]
        inside = [self._span(len(batch), size, batch.device) for size in batch.shape[-2:]]
        batch.masked_fill_(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.)
        return images

    def _span(self, count: int, size: int, device: torch.device) -> torch.Tensor:
        """Return whether each position along one axis is in the square [count, size]."""
        start = torch.randint(size, (count, 1), device=device) - self.side // 2
        position = torch.arange(size, device=device)
        return (position >= start) & (position < start + self.side)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(side={self.side})'


class Lighting:
    """PCA lighting: shift the colour of an RGB image along ImageNet's principal components (AlexNet, section 4.1).

    Args:
        std: Standard deviation of the factor of each component, which is normally distributed.
    """

    def __init__(self, std: float):
        if not std > 0.:
            raise ValueError(f'lighting needs a standard deviation above 0, got {std}')
        self.std = std

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode != 'RGB':
            raise ValueError(f"lighting needs RGB images, got mode '{image.mode}'")
        levels = torch.arange(256) + self.draw_shift()[:, None]
        return image.point(levels.round_().clamp_(0, 255).byte().flatten().tolist())

    def draw_shift(self) -> torch.Tensor:
        """Return a random shift of red, green and blue [3], in levels."""
        return 255. * _RGB_EIGENVECTORS @ (torch.randn(3) * self.std * _RGB_EIGENVALUES)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(std={self.std})'


def pad_and_crop(size: tuple[int, int], interpolation: str) -> transforms.Compose:
    """Return the CIFAR crop: pad an eighth of the size with black on each side, and crop at random.

    Args:
        size: Height and width of the crop in pixels. Images of another size are resized first.
        interpolation: timm's name of the interpolation of that resize. 'random' is bilinear.
    """
    mode = str_to_interp_mode('bilinear' if interpolation == 'random' else interpolation)
    padding = [size[1] // 8, size[0] // 8]
    return transforms.Compose([transforms.Resize(size, mode), transforms.RandomCrop(size, padding)])


def tensor_step(steps: list[Callable]) -> int:
    """Return the index of the conversion to a tensor in the steps of a transform of timm."""
    return next(i for i, step in enumerate(steps) if type(step).__name__.endswith('ToTensor'))


def extend_transform(
        transform: transforms.Compose,
        crop: Callable | None = None,
        lighting: float = 0.,
        cutout: int = 0,
) -> transforms.Compose:
    """Return a training transform of timm with further augmentations.

    Args:
        transform: timm's training transform: crop, flip, policy or jitter, conversion to a tensor, normalisation.
        crop: Transform in place of the first step, the random resized crop. None keeps that step.
        lighting: Standard deviation of PCA lighting, just before the conversion to a tensor. 0 is off.
        cutout: Side of the CutOut square in pixels, after the normalisation. 0 is off.
    """
    steps: list[Callable] = list(transform.transforms)
    if crop is not None:
        steps[0] = crop
    if lighting:
        steps.insert(tensor_step(steps), Lighting(lighting))
    if cutout:
        steps.append(CutOut(cutout))
    return transforms.Compose(steps)


def use_published_policy(transforms_of_loader: Iterable[Any], policy: str) -> None:
    """Put a published policy of AutoAugment in the place of timm's, see timm_policy. https://arxiv.org/abs/1805.09501

    The 25 sub-policies are torchvision's table, the operations are timm's. As in the published AgMax runs, operations
    take the nearest pixel, and black outside of the image.

    Args:
        transforms_of_loader: Training transforms of timm, changed in place.
        policy: Policy of the user, such as 'cifar10' or 'cifar10-mstd0.5'. Nothing is changed for timm's own.
    """
    name = policy.partition('-')[0]
    if name not in PUBLISHED_POLICIES:
        return
    table = transforms.AutoAugment(transforms.AutoAugmentPolicy(name)).policies
    for transform in transforms_of_loader:
        for step in getattr(transform, 'transforms', ()):
            if isinstance(step, auto_augment.AutoAugment):
                hparams = dict(step.policy[0][0].hparams)
                hparams.update(img_mean=(0,) * len(hparams['img_mean']), interpolation=Image.Resampling.NEAREST)
                step.policy = [
                    [auto_augment.AugmentOp(_OPERATIONS.get(operation, operation), probability, level or 0, hparams)
                     for operation, probability, level in pair] for pair in table]


def transforms_of(dataset: Any) -> list[Callable]:
    """Return the transform of a data set, or the transforms of its scheduled sizes."""
    return list(dataset.transforms) if isinstance(dataset, ScheduledTransformDataset) else [dataset.transform]


def change_transforms(dataset: Any, change: Callable[[Any], Callable]) -> None:
    """Replace each transform of a data set by the result of `change`."""
    changed = [change(transform) for transform in transforms_of(dataset)]
    if isinstance(dataset, ScheduledTransformDataset):
        dataset.transforms = tuple(changed)
    else:
        dataset.transform, = changed
