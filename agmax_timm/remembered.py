"""Agreement with remembered predictions: the network agrees with what it predicted for the same image before.

This is not the published AgMax: an image has one view, and there is no Q-network. The cost is close to that of plain
training. The predictions take memory in addition.

Relatives: temporal ensembling, https://arxiv.org/abs/1610.02242; PS-KD, https://arxiv.org/abs/2006.12000; SAF,
https://arxiv.org/abs/2205.14083
"""
import logging
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.task import ClassificationTask
from timm.utils import unwrap_model

from .base.distributed import rows_of_ranks
from .loss import Criterion, as_criterion, classification_loss
from .network import count_classes, logits_of

_logger = logging.getLogger(__name__)


class PredictionMemory(nn.Module):
    """The running mean m [K] of the predictions for each of N images: m <- b m + (1 - b) p. The first p becomes m.

    With topk, the k largest probabilities of m are stored with their classes. The rest is spread evenly over the other
    classes, so m is a distribution with any k. The size is N (4 K + 1) bytes in float32, and N (8 k + 1) with topk.

    Args:
        num_images: Number of images N.
        num_classes: Number of classes K.
        topk: Number of stored classes k of each image. None stores all.
        momentum: Weight b of the former predictions.
        device: Device of the memory.
        dtype: Dtype of the probabilities.

    Raises:
        ValueError: topk is not between 1 and K, or the momentum is not in [0, 1).
    """

    values: torch.Tensor  # [N, K], or [N, k] with topk
    classes: torch.Tensor | None  # classes of the values [N, k] with topk
    seen: torch.Tensor  # whether an image has a mean [N]

    def __init__(self, num_images: int, num_classes: int, topk: int | None = None, momentum: float = 0.8,
                 device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        if topk is not None and not 1 <= topk <= num_classes:
            raise ValueError(f'topk must be between 1 and the {num_classes} classes, got {topk}: use a smaller number')
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be 0 or more and below 1, got {momentum}')
        self.num_classes, self.momentum = num_classes, momentum
        values = torch.zeros(num_images, topk or num_classes, device=device, dtype=dtype)
        self.register_buffer('values', values)
        self.register_buffer('classes', None if topk is None else torch.zeros_like(values, dtype=torch.int32))
        self.register_buffer('seen', torch.zeros(num_images, device=device, dtype=torch.bool))

    def lookup(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the means m [B, K] of the images with these indices [B], and whether an image has one [B].

        The mean of an image that has none is arbitrary.
        """
        values = self.values[indices]
        if self.classes is not None:
            rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / max(1, self.num_classes - values.shape[1])
            values = rest.repeat(1, self.num_classes).scatter(1, self.classes[indices].long(), values)
        return values, self.seen[indices]

    @torch.no_grad()
    def update(self, indices: torch.Tensor, probabilities: torch.Tensor, lam: torch.Tensor | None = None) -> None:
        """Add predictions to the means. Under a process group, every rank adds those of all ranks, B from each.

        If an image occurs several times, its mean becomes the mean of its new means. Predictions that are not finite
        are left out.

        Args:
            indices: Indices of the images [B].
            probabilities: Predictions p [B, K]. They add up to 1, and may be negative (see AgMaxMemoryTask.forward).
                A new mean is clamped at 0 and normalised.
            lam: Factors of 1 - b [B]. None is 1.
        """
        probabilities = probabilities.to(self.values.dtype)
        lam = torch.ones_like(probabilities[:, 0]) if lam is None else lam.to(probabilities)
        indices, rows = map(rows_of_ranks, (indices, torch.cat([probabilities, lam[:, None]], dim=1)))
        probabilities, lam = rows[:, :-1], rows[:, -1]
        means, seen = self.lookup(indices)
        rate = torch.where(seen, (1 - self.momentum) * lam, 1.)
        finite = probabilities.isfinite().all(1)
        moved = means.lerp(probabilities, rate[:, None]).clamp(min=0)
        moved = torch.where(finite[:, None], moved / moved.sum(1, keepdim=True), 0.)
        place = torch.searchsorted(indices.sort().values, indices)  # the same number for all rows of an image
        count = torch.zeros_like(indices).index_add_(0, place, finite.long())[place, None]
        total = torch.zeros_like(moved).index_add_(0, place, moved)[place]
        means = torch.where(count > 0, total / count, means)
        if self.classes is not None:
            means, classes = means.topk(self.values.shape[1])
            self.classes[indices] = classes.int()
        self.values[indices] = means
        self.seen[indices] = seen | (count[:, 0] > 0)

    def extra_repr(self) -> str:
        size = sum(buffer.nbytes for buffer in self.buffers()) / 2 ** 20
        return f'{_sizes(self.state_dict(), self.num_classes)}, momentum {self.momentum:g}, {size:.2f} MiB'


def _sizes(state: dict[str, torch.Tensor], num_classes: int) -> str:
    """Return the numbers of images and classes of a memory's state_dict as text."""
    images, kept = state['values'].shape
    largest = f'the {kept} largest of ' if 'classes' in state else ''
    return f'{images} images x {largest}{num_classes} classes'


class AgMaxMemoryTask(ClassificationTask):
    """Train a classifier to agree with its remembered predictions. Replaces timm.task.ClassificationTask.

    loss = ce + ramp * weight * KL(m || p), where p is the prediction for an image and m the mean of the earlier ones.
    KL is a mean over the batch. It is 0 for an image that is new, or mixed with a new one. Each forward pass in
    training mode updates m.

    The memory is saved in a checkpoint's `task_state`. It is not part of model, optimizer, EMA and exported weights.

    Args:
        model: Classifier to train. It returns logits, or an output with the attribute `logits`, as in transformers.
        criterion: Classification loss on logits [B, K], a module or a function that returns a scalar. None is
            cross-entropy on class indices or soft targets.
        num_images: Number of training images N.
        num_classes: Number of classes K. None is the model's.
        weight: Weight of the agreement KL(m || p).
        momentum: Weight of the former predictions in m.
        topk: Number of classes of an image that are remembered. None is all (see PredictionMemory).
        device: Device of the memory and the criterion. None is the model's.
        dtype: Dtype of the task. None is the model's. The memory is created in float32 or above.
        verbose: Whether to log the settings.

    Attributes:
        ramp: Factor of the weight, in [0, 1]. Set it before each update, so that the agreement grows.

    Raises:
        ValueError: The number of classes is unknown or below 2, topk or momentum is not valid, or the criterion is a
            class. Raised by forward if indices or lam are not those of B images, if an index on the CPU is not below N,
            if the model does not return one tensor of K logits per image, if soft targets have another number of
            classes, or if the criterion does not return a scalar.
    """

    def __init__(self, model: nn.Module, criterion: Criterion | None = None, *, num_images: int,
                 num_classes: int | None = None, weight: float = 0.5, momentum: float = 0.8, topk: int | None = None,
                 device: torch.device | None = None, dtype: torch.dtype | None = None, verbose: bool = True):
        reference = next(model.parameters())
        device, dtype = device or reference.device, dtype or reference.dtype
        super().__init__(model, as_criterion(criterion), device=device, dtype=dtype, verbose=verbose)
        num_classes = count_classes(unwrap_model(model), 'AgMaxMemoryTask', num_classes)
        self.weight, self.ramp = weight, 1.
        self.memory = PredictionMemory(
            num_images, num_classes, topk, momentum, device, torch.promote_types(dtype, torch.float32))
        if verbose:
            _logger.info(f'Agreement with remembered predictions: weight {weight:g}, {self.memory.extra_repr()}')

    def forward(self, input: torch.Tensor, target: torch.Tensor,  # type: ignore[override]  # timm has no indices
                indices: torch.Tensor, lam: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the loss, its parts and the logits of a batch, and remember the predictions.

        Image i may be mixed with image B - 1 - i, as timm does: lam[i] of the former, 1 - lam[i] of the latter. The
        prediction then agrees with the same mix of their means. The mean of image i moves by the difference of both,
        (1 - b) lam[i] (p - mix). So it tends to the prediction for the image alone. If the other image is new, it moves
        towards p instead. The first p becomes the mean of a new image.

        All ranks need the same number of images.

        Args:
            input: Images [B, C, H, W].
            target: Class indices [B] or soft targets [B, K].
            indices: Indices of the images in the data set [B].
            lam: Weight of each image in its mix [B]. None if images are not mixed.

        Returns:
            Dictionary of 'loss' (for backward), 'output' (logits [B, K]), and the parts of the loss 'ce' and
            'agreement' (unweighted).
        """
        count = len(self.memory.seen)
        if indices.shape != (len(target),):
            raise ValueError(f'indices must be those of the {len(target)} images of the batch, got {[*indices.shape]}')
        whole = indices.dtype != torch.bool and not indices.is_floating_point()
        if not whole or (lam is not None and lam.shape != indices.shape):
            raise ValueError(f'indices must be whole numbers [B], and lam [B] or None, got {indices.dtype}'
                             f'{"" if lam is None else f" and lam {[*lam.shape]}"}')
        if indices.device.type == 'cpu' and not 0 <= int(indices.min()) <= int(indices.max()) < count:
            raise ValueError(f'indices must be from 0 to {count - 1}, got {indices.min()} to {indices.max()}: give '
                             'AgMaxMemoryTask num_images=len(dataset)')
        output = logits_of(self.trainable_module(input), unwrap_model(self.trainable_module), self.memory.num_classes)
        ce = classification_loss(self.criterion, output, target)
        indices = indices.to(output.device, torch.int64, non_blocking=True)
        with torch.autocast(output.device.type, enabled=False):
            logits = output.to(self.memory.values.dtype)
            means, known = self.memory.lookup(indices)
            mix = means
            if lam is not None:
                lam = lam.to(logits)
                mix = lam[:, None] * means + (1 - lam[:, None]) * means.flip(0)
                known = known & (known.flip(0) | (lam == 1))
            lowest = torch.finfo(logits.dtype).min  # a logit of -inf has a KL of 0 if the class is not remembered
            kl = F.kl_div(logits.log_softmax(1).clamp(min=lowest), mix, reduction='none').sum(1)
            agreement = torch.where(known, kl, 0.).mean()
            if self.training:
                prediction = logits.detach().softmax(1)
                if lam is not None:
                    prediction = torch.where(known[:, None], prediction - mix + means, prediction)
                self.memory.update(indices, prediction, lam)
        return {'loss': ce + self.ramp * self.weight * agreement, 'output': output, 'ce': ce, 'agreement': agreement}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the state_dict of the memory, and K as 'num_classes'. The EMA has no memory of its own."""
        return {} if ema else {'memory': self.memory.state_dict(), 'num_classes': self.memory.num_classes}

    def load_task_state(self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        """Load a state of get_task_state. A state without a memory keeps the present one, with a warning.

        Raises:
            ValueError: The state remembers another number of images or classes.
        """
        if ema:
            return
        state = state or {}
        saved = state.get('memory')
        if saved is None:
            _logger.warning('The checkpoint holds no remembered predictions: they are collected anew.')
            return
        before = _sizes(saved, state['num_classes'])
        now = _sizes(self.memory.state_dict(), self.memory.num_classes)
        if before != now:
            raise ValueError(f'the checkpoint remembers {before}, this run {now}: use the same images, classes and '
                             'topk')
        self.memory.load_state_dict(saved)
