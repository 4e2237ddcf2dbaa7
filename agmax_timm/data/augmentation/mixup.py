"""MixUp and CutMix for two views, and for one view with the weight of each image in its mix.

Each of two views has its own lambda and its own random partners: timm mixes image i with image B-1-i, so both views
would get the same partner. Everything else is timm's: the distribution of lambda, the boxes, the area correction and
the label smoothing.

Papers: MixUp, https://arxiv.org/abs/1710.09412; CutMix, https://arxiv.org/abs/1905.04899; mixing per view as in AgMax,
https://arxiv.org/abs/2110.10536
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import FastCollateMixup, Mixup
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from torch.utils.data import default_collate

from ...base.image_modes import MIXUP_MODES


class SharedSwitch:
    """Mixin for timm.data.Mixup that keeps `mixup_enabled` in shared memory.

    Persistent workers have their own copy of the collate function, so only shared memory reaches them.
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
    """timm's FastCollateMixup for one view, with a `mixup_enabled` that reaches persistent workers."""


class LambdaCollate(CollateMixup):
    """CollateMixup with targets [B, 2] in place of soft targets: class index and lambda of each image."""

    def __call__(self, batch: list[tuple], _=None) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_classes, self.label_smoothing = len(batch), 0.  # each image is a class of its own
        input, mixes = super().__call__([(sample[0], place) for place, sample in enumerate(batch)])
        return input, torch.stack([class_indices([sample[1] for sample in batch]).float(), mixes.diagonal()], dim=1)


class LambdaMixup(Mixup):
    """timm's Mixup with the targets of LambdaCollate."""

    def __call__(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_classes, self.label_smoothing = len(x), 0.  # each image is a class of its own
        x, mixes = super().__call__(x, torch.arange(len(x), device=x.device))
        return x, torch.stack([target.float(), mixes.diagonal()], dim=1)


@dataclass
class Mix:
    """How the images of a view are mixed."""
    chosen: np.ndarray  # indices of the images that are mixed
    partner: np.ndarray  # index of the partner of each image [B]
    lam: np.ndarray  # weight of each image in its mix [B], float32; its partner has the rest
    boxes: dict[int, tuple[int, int, int, int]]  # CutMix box (top, bottom, left, right) by index of the image


class TwoViewMixup(SharedSwitch, Mixup):
    """Mix a batch of two views in place, each view with its own lambda and its own random partners.

    Whether an image is mixed is drawn once for both views. The choice of MixUp or CutMix, lambda, box and partner are
    drawn for each view. uint8 images are blended in float32 and rounded. So mixing uint8 images in a collate function
    has the same distribution as mixing normalised floats on the device.

    Args:
        **kwargs: Arguments of timm.data.Mixup: mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode
            ('batch', 'pair' or 'elem'), correct_lam, label_smoothing, and num_classes, which must be given. The
            default of label_smoothing is 0, as with --agmax, and not timm's 0.1.

    Raises:
        ValueError: The mode is unknown, no alpha is above 0, num_classes is missing, or multi_label is set. Raised by a
            call if the number of images is odd.
    """

    def __init__(self, **kwargs):
        super().__init__(**with_defaults(kwargs))
        # Whether to mix is decided once for both views, so timm's draw of lambda must always mix.
        self.image_prob, self.mix_prob = self.mix_prob, 1.

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mixed images and their soft targets.

        Args:
            input: Images [2B, C, H, W]: all first views, then all second views. uint8 or floating point; changed in
                place.
            target: Class indices [2B].

        Returns:
            (input, target): Mixed images [2B, C, H, W] and soft targets [2B, K].
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
                    view[i] = _blend(unmixed[i], partner, float(mix.lam[i]))
        return input, torch.cat([self.soft_targets(y, mix) for y, mix in zip(target.chunk(2), mixes)])

    def _choose_images(self, batch_size: int) -> np.ndarray:
        """Return the indices of the images to mix: all or none, or a random subset of pairs or of single images."""
        if not self.mixup_enabled:
            return np.arange(0)
        if self.mode == 'batch':
            return np.arange(batch_size if np.random.rand() < self.image_prob else 0)
        if self.mode == 'elem':
            return np.flatnonzero(np.random.rand(batch_size) < self.image_prob)
        num_pairs = np.random.binomial(batch_size // 2, self.image_prob)
        return np.random.permutation(batch_size)[:2 * num_pairs]

    def draw(self, shape: Sequence[int]) -> list[Mix]:
        """Draw how each of the two views of a batch is mixed.

        Args:
            shape: Shape of one view, (B, C, H, W).
        """
        if shape[0] % 2:
            raise ValueError(f'mixup needs an even number of images in two views, got {shape[0]}')
        chosen = self._choose_images(shape[0])
        return [self._draw_mix(shape, chosen) for _ in range(2)]

    def _draw_mix(self, shape: Sequence[int], chosen: np.ndarray) -> Mix:
        if not len(chosen):
            return Mix(chosen, np.arange(shape[0]), np.ones(shape[0], np.float32), {})
        partner = self._draw_partners(shape[0], chosen)
        return Mix(chosen, partner, *self._draw_amounts(shape, chosen, partner))

    def soft_targets(self, target: torch.Tensor, mix: Mix) -> torch.Tensor:
        """Return the soft targets [B, K] of a mixed view, from class indices [B]."""
        labels = mixup_target(target, self.num_classes, smoothing=self.label_smoothing)
        if not len(mix.chosen):
            return labels
        lam = torch.as_tensor(mix.lam, dtype=labels.dtype, device=labels.device)[:, None]
        return labels * lam + labels[torch.as_tensor(mix.partner, device=labels.device)] * (1. - lam)

    def _draw_partners(self, batch_size: int, chosen: np.ndarray) -> np.ndarray:
        """Return the index of a random partner for each chosen image [B]. Other images have their own index."""
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
        """Return the lambda of each image [B], and for CutMix the box that is taken from its partner."""
        images = np.arange(len(partner))
        # Images of one slot share a lambda: the whole view, the two images of a pair, or a single image.
        slots = {'batch': np.zeros_like(images), 'pair': np.minimum(images, partner), 'elem': images}[self.mode]
        lam, use_cutmix = self._params_per_elem(slots.max() + 1)
        slot_boxes = {}
        for slot in np.unique(slots[chosen]):
            if use_cutmix[slot]:
                slot_boxes[slot], lam[slot] = cutmix_bbox_and_lam(
                    shape, lam[slot], ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam)
        of_images = np.ones(len(partner), dtype=np.float32)
        of_images[chosen] = lam[slots[chosen]]
        return of_images, {i: slot_boxes[slots[i]] for i in chosen if slots[i] in slot_boxes}


def with_defaults(mixup: dict[str, Any]) -> dict[str, Any]:
    """Check arguments of timm.data.Mixup, and return them with a default label_smoothing of 0.

    Raises:
        ValueError: The mode is unknown, no alpha is above 0, num_classes is missing, or multi_label is set.
    """
    if mixup.get('multi_label'):
        raise ValueError('mixup has no multi_label here: AgMax needs one class index per image')
    mode = mixup.get('mode', 'batch')
    if mode not in MIXUP_MODES:
        raise ValueError(f"mixup mode must be one of {', '.join(MIXUP_MODES)}, got '{mode}'")
    if not (mixup.get('mixup_alpha', 1.) > 0. or mixup.get('cutmix_alpha', 0.) > 0. or mixup.get('cutmix_minmax')):
        raise ValueError('mixup needs mixup_alpha > 0, cutmix_alpha > 0 or a cutmix_minmax')
    if 'num_classes' not in mixup:  # timm's default is 1000
        raise ValueError('mixup needs num_classes, the number of columns of its targets: give that of the model')
    return {'label_smoothing': 0., **mixup}


class TwoViewCollate(SharedSwitch, FastCollateMixup):
    """Collate samples with two views: all first views, then all second views. Mixes them if mixup is given.

    It inherits from FastCollateMixup only because timm's PrefetchLoader sets `mixup_enabled` on this type alone.

    Args:
        mixup: Dict of TwoViewMixup's arguments. None does not mix.
        levels: Whether to refuse floating-point views. timm's prefetcher expects levels from 0 to 255.
    """

    def __init__(self, mixup: dict[str, Any] | None = None, *, levels: bool = False):
        self.mixup = TwoViewMixup(**mixup) if mixup is not None else None
        self._switch = None if self.mixup is None else self.mixup._switch  # one switch for both
        self.levels = levels

    def __call__(self, batch: list[tuple], _=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch.

        Args:
            batch: B samples ((view, view), class index). The views are tensors [C, H, W] of any dtype.

        Returns:
            (input, target): Images [2B, C, H, W], and class indices [2B] or, with mixup, soft targets [2B, K].

        Raises:
            ValueError: A sample has another form, see pair_of and class_indices.
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
        ValueError: The sample has anything else, such as one image with three channels, or three views.
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
    """Collate the class indices of the images of one view to a tensor [B].

    Raises:
        ValueError: A target is not a class index, such as several labels of one image.
    """
    target = default_collate(targets)
    if isinstance(target, torch.Tensor) and target.ndim == 1:
        indices = target.long()
        if (indices == target).all():
            return indices
    got = f'{target.dtype} {[*target.shape]}' if isinstance(target, torch.Tensor) else type(targets[0]).__name__
    raise ValueError(f'each image needs one class index, got targets {got}: AgMax is for one label per image')


def _blend(x: torch.Tensor, partner: torch.Tensor, lam: float) -> torch.Tensor:
    if x.is_floating_point():
        return x * lam + partner * (1. - lam)
    return (x.float() * lam + partner.float() * (1. - lam)).round_().to(x.dtype)
