"""Attacks on images: the small change of the pixels, of all that are allowed, that makes a classifier err.

FGSM: I. Goodfellow and others, arXiv 1412.6572; PGD: A. Madry and others, arXiv 1706.06083. Pixels are in [0, 1] and
stay there: the bounds are those of images, before any normalisation.
"""
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

NORMS = ('linf', 'l2')


def pgd(
        model: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        target: torch.Tensor,
        epsilon: float,
        norm: str = 'linf',
        steps: int = 10,
        step_size: float | None = None,
        start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Projected gradient descent: steps up the loss, after each of which the change is cut to what is allowed.

    One step of length epsilon is FGSM.

    Args:
        model: From images in [0, 1] to logits [B, K].
        images: Images [B, C, H, W] in [0, 1].
        target: Their classes [B].
        epsilon: Distance in `norm`, in units of pixels in [0, 1].
        norm: 'linf': the largest change of a value; 'l2': the Euclidean length of all changes of an image.
        steps: Number of steps along the signs of the gradient, or along the gradient itself for l2.
        step_size: Length of a step in `norm`; None: 2.5 * epsilon / steps, as published.
        start: Change to begin with [B, C, H, W], see random_start; None for none.

    Returns:
        Other images [B, C, H, W] in [0, 1].
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got '{norm}'")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    change = torch.zeros_like(images) if start is None else _project(start, images, epsilon, norm)
    for _ in range(steps):
        step = _direction(_input_gradient(model, images + change, target), norm)
        change = _project(change + step_size * step, images, epsilon, norm)
    return images + change


def random_start(
        shape: Iterable[int],
        epsilon: float,
        norm: str,
        seeds: Iterable[int],
) -> torch.Tensor:
    """Changes that are uniform among those of at most epsilon.

    Args:
        shape: Of an image, [C, H, W].
        epsilon: Distance in `norm`.
        seeds: One for each image: what an image begins with does not depend on its batch.

    Returns:
        Changes [B, C, H, W] on the CPU.
    """
    shape = tuple(shape)
    return torch.stack([_draw(shape, epsilon, norm, torch.Generator().manual_seed(seed)) for seed in seeds])


def _draw(shape, epsilon: float, norm: str, generator: torch.Generator) -> torch.Tensor:
    if norm == 'linf':
        return (2. * torch.rand(shape, generator=generator) - 1.) * epsilon
    direction = torch.randn(shape, generator=generator)
    # A ball's volume grows with this power of its radius.
    radius = torch.rand((), generator=generator) ** (1. / direction.numel())
    return direction * (epsilon * radius / direction.norm())


def _input_gradient(model: Callable, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Gradient of each image's own loss. Where it is no number, there is none."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images).float(), target, reduction='sum')
    return torch.autograd.grad(loss, images)[0].nan_to_num(0., 0., 0.)


def _direction(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """The change of length 1 that the loss grows fastest with; none where it does not grow."""
    if norm == 'linf':
        return gradient.sign()
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)  # squares of small numbers would be 0
    gradient = gradient / largest.masked_fill(largest == 0, 1.)
    return gradient / _length(gradient).clamp(min=1.)


def _project(change: torch.Tensor, images: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
    """The nearest change of at most epsilon, then the nearest that leaves pixels in [0, 1], which is no longer one."""
    if norm == 'linf':
        change = change.clamp(-epsilon, epsilon)
    else:
        length = _length(change)
        change = torch.where(length > epsilon, change * (epsilon / length), change)
    return torch.maximum(torch.minimum(change, 1. - images), -images)


def _length(change: torch.Tensor) -> torch.Tensor:
    return change.square().sum((1, 2, 3), keepdim=True).sqrt()
