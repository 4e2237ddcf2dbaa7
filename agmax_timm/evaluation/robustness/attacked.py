"""Attacks on normalised batches of validate.py, with the unit, the norm and the steps of the options."""
from typing import Any

import torch

from ...assembly.model import Precision
from ...base.distributed import rank, world_size
from .attacks import pgd, random_start
from .seeding import sample_seed

EPSILONS = {'linf': (1., 2., 4., 8.), 'l2': (0.25, 0.5, 1., 2.)}
_UNITS = {'linf': 1. / 255., 'l2': 1.}


class Attack:
    """A function from a normalised batch to an attacked one. Batches must be in the order of the data set.

    Args:
        epsilon: Bound of the attack in the unit of --attack-eps.
        valid_labels: Outputs of the model for the classes of the data; None for all.
    """

    def __init__(self, subject: Any, epsilon: float, valid_labels: list[int] | None = None):
        options, config = subject.options, subject.data_config
        self.model, self.valid_labels = subject.model, valid_labels
        self.mean, self.std = (torch.tensor(config[name], device=subject.device).view(1, -1, 1, 1)
                               for name in ('mean', 'std'))
        # Small gradients underflow in float16 without a loss scale, so the attack uses float32.
        half = options.amp and options.amp_dtype == 'float16'
        self.autocast = Precision().autocast if half else subject.precision.autocast
        self.options = options
        unit = _UNITS[options.attack_norm]
        self.epsilon = epsilon * unit
        one_step = options.attack == 'fgsm'
        self.steps = 1 if one_step else options.attack_steps
        self.step_size = self.epsilon if one_step else options.attack_step_size and options.attack_step_size * unit
        self.next_index = rank()  # indices as in the distributed sampler

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: Normalised images [B, C, H, W].
            target: True classes [B].

        Returns:
            Normalised images [B, C, H, W] whose pixels are in [0, 1].
        """
        with torch.inference_mode(False), torch.enable_grad():
            input, target = input.clone(), target.clone()  # inference tensors have no gradients
            pixels = (input * self.std + self.mean).clamp(0., 1.)

            def normalized(images: torch.Tensor) -> torch.Tensor:
                return input + (images - pixels) / self.std  # bit-equal to the input if nothing changed

            def logits(images: torch.Tensor) -> torch.Tensor:
                with self.autocast():
                    output = self.model(normalized(images))
                output = output[0] if isinstance(output, (tuple, list)) else output
                return output if self.valid_labels is None else output[:, self.valid_labels]

            attacked = pgd(logits, pixels, target, self.epsilon, self.options.attack_norm, self.steps, self.step_size,
                           self._start(pixels))
            return normalized(attacked).detach()

    def _start(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Return random starts that depend on the index of the image, not on batches or ranks."""
        count, ranks = len(pixels), world_size()
        indices = range(self.next_index, self.next_index + count * ranks, ranks)
        self.next_index = indices.stop
        if self.options.attack == 'fgsm':
            return None
        seeds = [sample_seed(self.options.seed, index) for index in indices]
        return random_start(pixels.shape[1:], self.epsilon, self.options.attack_norm, seeds).to(pixels.device)
