"""The AgMax objective: both views of an image get the same prediction, and a batch uses many classes.

Paper: 'Improving Model Generalization by Agreement of Learned Representations from Data Augmentation',
https://arxiv.org/abs/2110.10536
"""
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from .base.distributed import global_mean, world_size

AGREEMENT_KINDS = ('mi', 'mse', 'kl', 'ce')
DIVERGENCE_REDUCTIONS = ('mean', 'sum')

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Smallest marginal probability inside the logarithm. The published value: float64's machine epsilon.
EPSILON = torch.finfo(torch.float64).eps


def mutual_information_terms(
        z1: torch.Tensor,
        z2: torch.Tensor,
        z12: torch.Tensor,
        divergence_weight: float = 4.0,
        marginal_images: int | None = None,
        divergence_reduction: str = 'mean',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mutual-information form of the AgMax terms, section 3 of https://arxiv.org/abs/2110.10536.

    Args:
        z1: Logits of the first view [B, K].
        z2: Logits of the second view [B, K].
        z12: Logits of the Q-network on both views [B, K].
        divergence_weight: Weight of the L1 distance.
        marginal_images: Number of images in a marginal, or None for all images of all ranks; see agreement_terms.
        divergence_reduction: 'mean' over the classes, as published, or 'sum' over them.

    Returns:
        (agreement, divergence): Scalars. The agreement is the mean negative entropy of the marginals of z1, z2 and z12,
            in nats, in [-ln K, 0]. The divergence is the weighted L1 distance between the joint prediction and the
            predictions of the two views, in [0, 2 * divergence_weight / K], or for a sum in [0, 2 * divergence_weight].
    """
    p = torch.stack([z1, z2, z12]).softmax(dim=-1)  # in one tensor: a third of the kernels, forward and backward
    marginals = _marginals(p, marginal_images)
    agreement = (marginals * marginals.clamp(min=EPSILON).log()).sum() / marginals.shape[:-1].numel()
    views, joint = p.split([2, 1])
    if divergence_reduction == 'sum':
        divergence_weight = divergence_weight * p.shape[-1]
    divergence = divergence_weight * (joint - views).abs().mean()
    return agreement, divergence


def _marginals(p: torch.Tensor, images: int | None) -> torch.Tensor:
    """Return means of predictions [3, B, K]: [3, K] over all images of a group of ranks, or [3, B / images, K]."""
    if images is None:
        return global_mean(p.mean(dim=1), count=p.shape[1])
    ranks = ranks_of_marginal(images, p.shape[1])
    return p.unflatten(1, (-1, images)).mean(dim=2) if ranks == 1 else global_mean(p.mean(dim=1), p.shape[1], ranks)


def ranks_of_marginal(images: int, batch_size: int) -> int:
    """Return the number of ranks whose images make up one marginal.

    Args:
        images: Number of images in a marginal.
        batch_size: Number of images in the batch of a rank.

    Raises:
        ValueError: The images neither divide the batch, nor are those of a number of ranks that divides all ranks.
    """
    def ranks_of(images: int) -> int | None:
        ranks = max(1, images // batch_size)
        return ranks if ranks * batch_size % images == 0 and world_size() % ranks == 0 else None

    ranks = ranks_of(images)
    if ranks is None:
        fitting = [other for other in range(2, batch_size * world_size() + 1) if ranks_of(other)]
        nearest = sorted(sorted(fitting, key=lambda other: abs(other - images))[:2])
        raise ValueError(f'marginal_images {images} must divide the {batch_size} images of a rank, or be the images of '
                         f"a number of ranks that divides {world_size()}: use {' or '.join(map(str, nearest))}")
    return ranks


def agreement_terms(
        z1: torch.Tensor,
        z2: torch.Tensor,
        z12: torch.Tensor | None = None,
        kind: str = 'mi',
        divergence_weight: float = 4.0,
        marginal_images: int | None = None,
        divergence_reduction: str = 'mean',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the agreement of two views and their divergence from the joint prediction. Training minimises both.

    'mi' is the published objective. Its alternatives need no Q-network and have a divergence of 0: 'mse' is
    mean((z1 - z2)^2), 'kl' is KL(p2 || p1) summed over classes and averaged over images, and 'ce' is the mean of
    -p1 ln p2 over the B x K entries.

    Half-precision logits are converted to float32 and autocast is off, because p ln p is not finite in float16.

    Args:
        z1: Logits of the first view [B, K].
        z2: Logits of the second view [B, K].
        z12: Logits of the Q-network on both views [B, K]. Required by 'mi', ignored by the other kinds.
        kind: Form of the agreement: 'mi', 'mse', 'kl' or 'ce'.
        divergence_weight: Weight of the divergence. Used by 'mi' only.
        marginal_images: Number of images in a marginal of 'mi'. None is all images of all ranks, as published.
            Otherwise the agreement is the mean over groups of this number of neighbouring images. The number is 2 or
            more. It divides the images of one rank, or it is g times the images of one rank, where g divides the
            number of ranks.
        divergence_reduction: Reduction of the divergence over the classes: 'mean' as published, or 'sum', which is K
            times as large. Used by 'mi' only.

    Returns:
        (agreement, divergence): Scalars in float32, or in float64 for float64 logits. Under a process group, the
            marginals of 'mi' are those of all ranks, or of marginal_images. If all
            ranks have the same number of images, the mean of a term over the ranks is the term of one process that has
            all images.

    Raises:
        ValueError: The kind or the reduction is unknown, the views have different shapes, 'mi' has no z12 or only one
            image, or marginal_images does not fit the batch.
    """
    _check_settings(kind, marginal_images, divergence_reduction)
    _check_logits(kind, z1, z2, z12)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _at_least_float32(z1), _at_least_float32(z2)
        if kind == 'mi':
            assert z12 is not None  # _check_logits
            return mutual_information_terms(
                z1, z2, _at_least_float32(z12), divergence_weight, marginal_images, divergence_reduction)
        if kind == 'mse':
            agreement = F.mse_loss(z1, z2)
        elif kind == 'kl':
            agreement = F.kl_div(z1.log_softmax(-1), z2.log_softmax(-1), reduction='batchmean', log_target=True)
        else:
            agreement = -(z1.softmax(-1) * z2.log_softmax(-1)).mean()
        return agreement, agreement.new_zeros(())


class AgMaxLoss(nn.Module):
    """Classification loss of both views plus AgMax's terms: ce + weight * agreement + divergence.

    Args:
        criterion: Classification loss on logits [2B, K], a module or a function that returns a scalar. None is
            cross-entropy on class indices or soft targets.
        kind: Form of the agreement: 'mi' (as published), 'mse', 'kl' or 'ce'.
        weight: Weight of the agreement.
        divergence_weight: Weight of the divergence. Used by 'mi' only.
        marginal_images: Number of images in a marginal (see agreement_terms). None is all images of all ranks.
        divergence_reduction: 'mean' of the divergence over the classes, as published, or 'sum'.

    Raises:
        ValueError: The kind or the reduction is unknown, marginal_images is below 2, or the criterion is a class.
            Raised by forward if the logits are not pairs of views (see also agreement_terms), if soft targets have
            another number of classes, or if the criterion does not return a scalar.
    """

    def __init__(
            self,
            criterion: Criterion | None = None,
            kind: str = 'mi',
            weight: float = 1.0,
            divergence_weight: float = 4.0,
            marginal_images: int | None = None,
            divergence_reduction: str = 'mean',
    ):
        super().__init__()
        _check_settings(kind, marginal_images, divergence_reduction)
        self.criterion = as_criterion(criterion)
        self.kind = kind
        self.weight = weight
        self.divergence_weight = divergence_weight
        self.marginal_images = marginal_images
        self.divergence_reduction = divergence_reduction

    def forward(
            self,
            logits: torch.Tensor,
            joint_logits: torch.Tensor | None,
            target: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts.

        Args:
            logits: Logits [2B, K]: all first views, then all second views.
            joint_logits: Logits of the Q-network [B, K]. None for kinds without a Q-network.
            target: Class indices [2B] or soft targets [2B, K], in the order of the logits.

        Returns:
            Dictionary of scalars: 'loss', and its parts 'ce', 'agreement' (unweighted) and 'divergence' (weighted).
        """
        if len(logits) % 2 or len(target) != len(logits):
            raise ValueError(f'two views need logits [2B, K] and as many targets, got logits {[*logits.shape]} and '
                             f'target {[*target.shape]}')
        with torch.autocast(logits.device.type, enabled=False):
            logits = _at_least_float32(logits)  # once for all terms
            ce = classification_loss(self.criterion, logits, target)
        z1, z2 = logits.chunk(2)
        agreement, divergence = agreement_terms(
            z1, z2, joint_logits, self.kind, self.divergence_weight, self.marginal_images, self.divergence_reduction)
        return {
            'loss': torch.add(ce, agreement, alpha=self.weight) + divergence,
            'ce': ce,
            'agreement': agreement,
            'divergence': divergence,
        }

    def extra_repr(self) -> str:
        return (f'kind={self.kind}, weight={self.weight}, divergence_weight={self.divergence_weight}, '
                f'marginal_images={self.marginal_images}, divergence_reduction={self.divergence_reduction}')


def as_criterion(criterion: Criterion | None) -> Criterion:
    """Return the criterion, or cross-entropy for None.

    Raises:
        ValueError: The criterion is a class.
    """
    if isinstance(criterion, type):
        raise ValueError(f'the criterion must be a loss, got the class {criterion.__name__}: give '
                         f'{criterion.__name__}()')
    return criterion if criterion is not None else nn.CrossEntropyLoss()


def classification_loss(criterion: Criterion, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the criterion of logits [N, K] and targets, class indices [N] or soft targets [N, K].

    Raises:
        ValueError: Soft targets have another number of classes, or the criterion does not return a scalar.
    """
    if target.ndim == 2 and target.shape != logits.shape:
        raise ValueError(f'soft targets must have a column for each of the {logits.shape[1]} classes, got '
                         f'{target.shape[1]}: give mixup num_classes={logits.shape[1]}')
    loss = criterion(logits, target)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f'a tensor {[*loss.shape]}' if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"the criterion must return a scalar, got {got}: give one with reduction='mean'")
    return loss


def _check_settings(kind: str, marginal_images: int | None, divergence_reduction: str) -> None:
    if kind not in AGREEMENT_KINDS:
        raise ValueError(f"agreement kind must be one of {', '.join(AGREEMENT_KINDS)}, got '{kind}'")
    if divergence_reduction not in DIVERGENCE_REDUCTIONS:
        raise ValueError(
            f"divergence_reduction must be one of {', '.join(DIVERGENCE_REDUCTIONS)}, got '{divergence_reduction}'")
    if marginal_images is not None and marginal_images < 2:
        raise ValueError(f'marginal_images must be 2 or more, got {marginal_images}: over 1 image the marginal is the '
                         'prediction itself')


def _check_logits(kind: str, z1: torch.Tensor, z2: torch.Tensor, z12: torch.Tensor | None) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f'the two views must have logits of one shape [B, K], got {[*z1.shape]} and {[*z2.shape]}')
    if kind == 'mi':
        if z12 is None or z12.shape != z1.shape:
            got = None if z12 is None else [*z12.shape]
            raise ValueError(f"agreement kind 'mi' needs joint logits {[*z1.shape]} of a Q-network, got {got}")
        if len(z1) * world_size() < 2:
            raise ValueError("agreement kind 'mi' needs a batch of 2 images or more: over 1 image the marginal is the "
                             'prediction itself')


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
