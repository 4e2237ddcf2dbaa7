"""MixUp and CutMix for two views: each view its own lambda and its own random partners.

timm mixes image i with image B-1-i, so two views would get the same partner. Everything else is timm's: the
distributions of lambda, the boxes, the area correction, the label smoothing.

Papers: mixup, https://arxiv.org/abs/1710.09412; CutMix, https://arxiv.org/abs/1905.04899; per view as in AgMax,
https://arxiv.org/abs/2110.10536
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import FastCollateMixup, Mixup
from timm.data.mixup import cutmix_bbox_and_lam, one_hot
from torch.utils.data import default_collate

from ..base.image_modes import MIXUP_MODES


class SharedSwitch:
    """Mixin for timm.data.Mixup: `mixup_enabled` in shared memory.

    Persistent workers hold a copy of the collate function made when they started; only what is shared reaches them.
    """

    _switch: torch.Tensor | None = None

    @property
    def mixup_enabled(self) -> bool:
        return self._switch is not None and bool(self._switch)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if self._switch is None:
            self._switch = torch.zeros((), dtype=torch.bool).share_memory_()
        self._switch.fill_(bool(enabled))


class CollateMixup(SharedSwitch, FastCollateMixup):
    """timm's FastCollateMixup for one view, with a switch that reaches persistent workers."""


@dataclass
class Mix:
    """How the images of a view are mixed."""
    chosen: np.ndarray  # indices of those that are
    partner: np.ndarray  # with which [B]
    kept: np.ndarray  # the share of itself that each keeps [B], float32
    boxes: dict[int, tuple[int, int, int, int]]  # for CutMix (top, bottom, left, right), by index


class TwoViewMixup(SharedSwitch, Mixup):
    """Mix a view-major batch in place, each view with its own lambda and its own random partners.

    Whether an image is mixed at all is drawn once for both views; which of MixUp and CutMix, lambda, box and partner
    are drawn for each. A uint8 batch is blended in float32 and rounded, so the same distribution holds in a collate
    and, on normalised floats, on the device.

    Args:
        As timm.data.Mixup (without multi_label): mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode
        ('batch', 'pair' or 'elem'), correct_lam, label_smoothing, num_classes.

    Raises:
        ValueError: unknown mode, nothing to mix, no num_classes, multi_label; from a call, an odd number of images.
    """

    def __init__(self, **kwargs):
        if kwargs.get('multi_label'):
            raise ValueError('mixup of two views has no multi_label: AgMax needs one class index an image')
        super().__init__(**kwargs)
        if self.mode not in MIXUP_MODES:
            raise ValueError(f"mixup mode must be one of {', '.join(MIXUP_MODES)}, got '{self.mode}'")
        if not (self.mixup_alpha > 0. or self.cutmix_alpha > 0.):
            raise ValueError('mixup needs mixup_alpha > 0, cutmix_alpha > 0 or a cutmix_minmax')
        if 'num_classes' not in kwargs:  # timm's default is 1000
            raise ValueError('mixup needs num_classes, the number of columns of its targets: give that of the model')
        # Decided once for both views below; timm's draws of lambda then always mix.
        self.image_prob, self.mix_prob = self.mix_prob, 1.

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            input: View-major images [2B, C, H, W], uint8 or floating point; changed in place.
            target: Class indices [2B].

        Returns:
            The mixed images [2B, C, H, W], soft targets [2B, K].
        """
        if len(input) % 4:
            raise ValueError(f'mixup needs an even number of images in two views, got {len(input)} views')
        mixes = self.draw((len(input) // 2, *input.shape[1:]))
        for view, mix in zip(input.chunk(2), mixes):
            unmixed = view.clone() if len(mix.chosen) else view
            for i in mix.chosen:
                partner = unmixed[mix.partner[i]]
                if i in mix.boxes:
                    yl, yh, xl, xh = mix.boxes[i]
                    view[i, :, yl:yh, xl:xh] = partner[:, yl:yh, xl:xh]
                else:
                    view[i] = _blend(unmixed[i], partner, float(mix.kept[i]))
        return input, torch.cat([self.soft_targets(y, mix) for y, mix in zip(target.chunk(2), mixes)])

    def _choose_images(self, batch_size: int) -> np.ndarray:
        """Indices of the images that are mixed: all or none, or a random subset of whole pairs or of elements."""
        if not self.mixup_enabled:
            return np.arange(0)
        if self.mode == 'batch':
            return np.arange(batch_size if np.random.rand() < self.image_prob else 0)
        if self.mode == 'elem':
            return np.flatnonzero(np.random.rand(batch_size) < self.image_prob)
        num_pairs = np.random.binomial(batch_size // 2, self.image_prob)
        return np.random.permutation(batch_size)[:2 * num_pairs]

    def draw(self, shape: Sequence[int]) -> list['Mix']:
        """What to mix in each of the two views of a batch.

        Args:
            shape: That of one view, (B, C, H, W).
        """
        if shape[0] % 2:
            raise ValueError(f'mixup needs an even number of images in two views, got {shape[0]}')
        chosen = self._choose_images(shape[0])
        return [self._draw_mix(shape, chosen) for _ in range(2)]

    def _draw_mix(self, shape: Sequence[int], chosen: np.ndarray) -> 'Mix':
        if not len(chosen):
            return Mix(chosen, np.arange(shape[0]), np.ones(shape[0], np.float32), {})
        partner = self._draw_partners(shape[0], chosen)
        return Mix(chosen, partner, *self._draw_amounts(shape, chosen, partner))

    def soft_targets(self, target: torch.Tensor, mix: 'Mix') -> torch.Tensor:
        """Targets [B, K] of a view that is mixed so, from class indices [B]."""
        off_value = self.label_smoothing / self.num_classes
        labels = one_hot(target, self.num_classes, on_value=1. - self.label_smoothing + off_value, off_value=off_value)
        if not len(mix.chosen):
            return labels
        kept = torch.as_tensor(mix.kept, dtype=labels.dtype, device=labels.device)[:, None]
        return labels * kept + labels[torch.as_tensor(mix.partner, device=labels.device)] * (1. - kept)

    def _draw_partners(self, batch_size: int, chosen: np.ndarray) -> np.ndarray:
        """A random partner for each chosen image, never itself; itself for the others [B]."""
        partner = np.arange(batch_size)
        if self.mode == 'pair':
            order = np.random.permutation(chosen)
            partner[order] = order[::-1]
        else:
            order = np.random.permutation(batch_size)
            cycle = np.empty(batch_size, dtype=int)
            cycle[order] = np.roll(order, 1)
            partner[chosen] = cycle[chosen]
        return partner

    def _draw_amounts(
            self,
            shape: Sequence[int],
            chosen: np.ndarray,
            partner: np.ndarray,
    ) -> tuple[np.ndarray, dict[int, tuple[int, int, int, int]]]:
        """The share of itself that each image keeps [B], and for CutMix the box that comes from its partner."""
        images = np.arange(len(partner))
        # Images of one slot are mixed alike: the whole view, the two of a pair, or each on its own.
        slots = {'batch': np.zeros_like(images), 'pair': np.minimum(images, partner), 'elem': images}[self.mode]
        lam, use_cutmix = self._params_per_elem(slots.max() + 1)
        slot_boxes = {}
        for slot in np.unique(slots[chosen]):
            if use_cutmix[slot]:
                slot_boxes[slot], lam[slot] = cutmix_bbox_and_lam(
                    shape, lam[slot], ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam)
        kept = np.ones(len(partner), dtype=np.float32)
        kept[chosen] = lam[slots[chosen]]
        return kept, {i: slot_boxes[slots[i]] for i in chosen if slots[i] in slot_boxes}


class TwoViewCollate(FastCollateMixup):
    """Collate samples of two views view-major, and mix them where mixup is given.

    A FastCollateMixup in name only, since that is the type whose `mixup_enabled` timm's PrefetchLoader passes on.

    Args:
        mixup: None, or a dict of TwoViewMixup's arguments.
        levels: Whether to refuse floating-point views, because timm's prefetcher expects levels from 0 to 255.
    """

    def __init__(self, mixup: dict[str, Any] | None = None, *, levels: bool = False):
        self.mixup = TwoViewMixup(**mixup) if mixup is not None else None
        self.levels = levels

    @property
    def mixup_enabled(self) -> bool:
        return self.mixup is not None and self.mixup.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if self.mixup is not None:
            self.mixup.mixup_enabled = enabled

    def __call__(self, batch: list[tuple], _=None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            batch: B samples ((view, view), class index), the views tensors [C, H, W] of any dtype.

        Returns:
            View-major images [2B, C, H, W], and class indices [2B] or, mixed, soft targets [2B, K].

        Raises:
            ValueError: samples of another form, see pair_of and class_indices.
        """
        pairs = [pair_of(sample) for sample in batch]
        input = torch.stack([pair[v] for v in range(2) for pair in pairs])
        if self.levels and input.is_floating_point():
            raise ValueError('the prefetcher normalises levels 0 to 255, the data set gives views of floating-point '
                             'numbers: give PIL images, or use_prefetcher=False')
        target = class_indices([sample[1] for sample in batch]).repeat(2)
        return (input, target) if self.mixup is None else self.mixup(input, target)


def pair_of(sample: Any) -> Any:
    """Return the two views of a sample, each [C, H, W].

    Raises:
        ValueError: the sample holds anything else, such as one image of three channels or three views.
    """
    views = sample[0] if isinstance(sample, (tuple, list)) else sample
    if (isinstance(views, (tuple, list, torch.Tensor)) and len(views) == 2
            and all(isinstance(view, torch.Tensor) and view.ndim == 3 for view in views)):
        return views
    got = type(views).__name__
    if isinstance(views, torch.Tensor):
        got = f'a tensor {[*views.shape]}'
    elif isinstance(views, (tuple, list)):
        got = f"{len(views)} ({', '.join(type(view).__name__ for view in views)})"
    raise ValueError(f'each image must come as two views [C, H, W], got {got}: the data set must apply its attribute '
                     'transform to the image and return what that gives')


def class_indices(targets: list[Any]) -> torch.Tensor:
    """Collate the class indices of the images of one view [B].

    Raises:
        ValueError: a target is no class index, such as several labels of an image.
    """
    target = default_collate(targets)
    if isinstance(target, torch.Tensor) and target.ndim == 1:
        indices = target.long()
        if (indices == target).all():
            return indices
    got = f'{target.dtype} {[*target.shape]}' if isinstance(target, torch.Tensor) else type(targets[0]).__name__
    raise ValueError(f'two views need one class index an image, got targets {got}: AgMax is for one label an image')


def _blend(x: torch.Tensor, partner: torch.Tensor, lam: float) -> torch.Tensor:
    if x.is_floating_point():
        return x * lam + partner * (1. - lam)
    return (x.float() * lam + partner.float() * (1. - lam)).round_().to(x.dtype)
