"""Gradients of the AgMax terms at the logits, relative to that of the cross-entropy, by batch size and classes.

The logits are synthetic. An image has a random class, and standard normal logits plus a margin for that class. Each
view adds independent normal noise. The margin gives the true class the chosen mean probability. The joint logits are
the mean of the logits of both views. Gradients through the Q-network are excluded: they depend on its weights.
"""
from statistics import mean

import torch
import torch.nn.functional as F

from ..loss import agreement_terms
from .output import Result, Row

VIEW_NOISE = 0.5  # standard deviation
# Images in a batch, classes, mean probability of the true class.
SETTINGS = [
    (256, 1000, 0.4), (256, 1000, 0.77), (256, 1000, 0.95), (1024, 1000, 0.77), (4096, 1000, 0.77), (128, 100, 0.91),
    (10, 10, 0.94), (16, 10, 0.94), (64, 10, 0.94), (512, 10, 0.94)]
_CONFIDENCES = (0.4, 0.77, 0.95)


def objective(batch_size: int | None, num_classes: int | None, repeats: int) -> Result:
    settings = SETTINGS
    if batch_size or num_classes:
        settings = [(batch_size or 256, num_classes or 1000, confidence) for confidence in _CONFIDENCES]
    rows: list[Row] = []
    for images, classes, confidence in settings:
        found = [gradients(*synthetic_logits(images, classes, confidence, seed)) for seed in range(repeats)]
        entropy = [one['entropy'] for one in found]
        rows.append({
            'batch and confidence': f'{images} images, {classes} classes, p(true) {confidence}',
            'ratio': mean(entropy),
            'least': min(entropy),
            'most': max(entropy),
            **{name: mean(one[name] for one in found) for name in ('cosine', 'divergence', 'nats')},
        })
    return Result(
        'ratio: norm of the gradient of the entropy term at the logits, without the path through the Q-network, '
        'against that of the cross-entropy; cosine between the two; divergence: norm of its gradient against that of '
        'the cross-entropy; nats: its value', rows)


def synthetic_logits(
        images: int,
        classes: int,
        confidence: float,
        seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make logits of two views with a given mean probability of the true class.

    Args:
        images: Number of images in the batch, B.
        classes: Number of classes, K.
        confidence: Mean probability of the true class over both views.

    Returns:
        (z1, z2, target): float64 logits [B, K] of the two views, and class indices [B].
    """
    generator = torch.Generator().manual_seed(seed)
    image, *views = torch.randn(3, images, classes, dtype=torch.float64, generator=generator)
    target = torch.randint(classes, (images,), generator=generator)
    logits = image + VIEW_NOISE * torch.stack(views)  # [2, B, K]
    true_class = F.one_hot(target, classes)
    low, high = -50., 50.
    for _ in range(30):
        margin = (low + high) / 2
        probability = ((logits + margin * true_class).softmax(-1) * true_class).sum(-1).mean()
        low, high = (margin, high) if probability < confidence else (low, margin)
    return *(logits + margin * true_class), target


def gradients(z1: torch.Tensor, z2: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Compare the gradients of the terms of AgMax with that of the cross-entropy, at the logits of both views.

    Args:
        z1, z2: Logits of the two views [B, K].
        target: Class indices [B].

    Returns:
        'entropy', 'divergence': norm of the gradient, divided by that of the cross-entropy; 'cosine': cosine of the
        angle between the gradients of entropy term and cross-entropy; 'nats': weighted divergence.
    """
    logits = torch.stack([z1, z2]).requires_grad_()
    agreement, divergence = agreement_terms(logits[0], logits[1], logits.mean(0).detach())
    terms = (F.cross_entropy(logits.flatten(0, 1), target.repeat(2)), agreement, divergence)
    plain, entropy, distance = (torch.autograd.grad(term, logits, retain_graph=True)[0].flatten() for term in terms)
    return {
        'entropy': (entropy.norm() / plain.norm()).item(),
        'cosine': F.cosine_similarity(entropy, plain, dim=0).item(),
        'divergence': (distance.norm() / plain.norm()).item(),
        'nats': divergence.item(),
    }
