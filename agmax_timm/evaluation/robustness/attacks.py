"""Adversarial attacks: bounded changes of the pixels that increase the loss of a classifier.

FGSM: I. Goodfellow and others, arXiv 1412.6572; PGD: A. Madry and others, arXiv 1706.06083. Pixels
are in [0, 1], before and after the attack. Bounds refer to pixels before normalisation.
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
    """Attack images by projected gradient descent on the negative loss.

    One step of length epsilon is FGSM.

    Args:
        model: Function from images in [0, 1] to logits [B, K].
        images: Images [B, C, H, W] in [0, 1].
        target: True classes [B].
        epsilon: Largest change in `norm`, for pixels in [0, 1].
        norm: 'linf': largest absolute change of a value; 'l2': Euclidean length of the change of an image.
        steps: Number of steps along the sign of the gradient for linf, along the gradient for l2.
        step_size: Length of a step in `norm`; None for 2.5 * epsilon / steps, as published.
        start: Initial change [B, C, H, W] (see random_start); None for no change.

    Returns:
        Attacked images [B, C, H, W] in [0, 1].
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
    """Draw initial changes from the uniform distribution over the ball of radius epsilon.

    Args:
        shape: Shape of an image, [C, H, W].
        epsilon: Radius in `norm`.
        seeds: Seed of each image, so that its change does not depend on its batch.

    Returns:
        Changes [B, C, H, W] on the CPU.
    """
    shape = tuple(shape)
    return torch.stack([_draw(shape, epsilon, norm, torch.Generator().manual_seed(seed)) for seed in seeds])


def _draw(shape, epsilon: float, norm: str, generator: torch.Generator) -> torch.Tensor:
    if norm == 'linf':
        return (2. * torch.rand(shape, generator=generator) - 1.) * epsilon
    direction = torch.randn(shape, generator=generator)
    # The volume of a ball is proportional to its radius to the power of the dimension.
    radius = torch.rand((), generator=generator) ** (1. / direction.numel())
    return direction * (epsilon * radius / direction.norm())


def _input_gradient(model: Callable, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each image's own loss, with 0 in place of NaN and infinite values."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images).float(), target, reduction='sum')
    return torch.autograd.grad(loss, images)[0].nan_to_num(0., 0., 0.)


def _direction(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the direction of steepest ascent with length 1 in `norm`; 0 if the gradient is 0."""
    if norm == 'linf':
        return gradient.sign()
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)  # squares of small numbers underflow
    gradient = gradient / largest.masked_fill(largest == 0, 1.)
    return gradient / _length(gradient).clamp(min=1.)


def _project(change: torch.Tensor, images: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
    """Project a change onto the ball of radius epsilon, then clip the pixels to [0, 1], which shortens it."""
    if norm == 'linf':
        change = change.clamp(-epsilon, epsilon)
    else:
        length = _length(change)
        change = torch.where(length > epsilon, change * (epsilon / length), change)
    return torch.maximum(torch.minimum(change, 1. - images), -images)


def _length(change: torch.Tensor) -> torch.Tensor:
    return change.square().sum((1, 2, 3), keepdim=True).sqrt()
