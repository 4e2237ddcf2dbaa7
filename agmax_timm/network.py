"""The networks of AgMax: the Q-network, the trained module of classifier and Q-network, and initial weights."""
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn as nn
from timm.models import group_parameters
from timm.optim import auto_group_layers

from .base.errors import UserError


def default_hidden(num_classes: int) -> int:
    """Return the default number of hidden units of the Q-network, that of the original code.

    128 below 100 classes, 512 below 1,000, 4,096 below 10,000, 8,192 below 100,000, and twice as many for each further
    power of ten.
    """
    digits = len(str(num_classes)) - 1  # floor(log10 K) without rounding
    width = 128 * (2 ** digits if digits > 1 else 1)
    return width * 4 if num_classes >= 1000 else width


class UnsupportedModelError(UserError, ValueError):
    """A model does not return one tensor of logits in training. The message names the model."""


class QNet(nn.Sequential):
    """Q-network: joint logits of two views from the logits of both, section 3 of https://arxiv.org/abs/2110.10536.

    The layers are Linear(2K, hidden), ReLU and Linear(hidden, K). They compute in the precision of their parameters,
    also under autocast, because large logits would overflow in float16.

    Args:
        num_classes: Number of classes K.
        hidden: Number of hidden units. None is default_hidden(num_classes).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: There are fewer than 2 classes or no hidden units.
    """

    def __init__(self, num_classes: int, hidden: int | None = None, device=None, dtype=None):
        if hidden is None:
            hidden = default_hidden(num_classes)
        if num_classes < 2 or hidden < 1:
            raise ValueError(f'QNet needs 2 classes or more and 1 hidden unit or more, got num_classes {num_classes} '
                             f'and hidden {hidden}')
        super().__init__(
            nn.Linear(2 * num_classes, hidden, device=device, dtype=dtype),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes, device=device, dtype=dtype),
        )

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the joint logits.

        Args:
            logits: Logits of the first view, concatenated with those of the second view [B, 2K].

        Returns:
            Joint logits [B, K].
        """
        with torch.autocast(logits.device.type, enabled=False):
            return super().forward(logits.to(cast(nn.Linear, self[0]).weight.dtype))


class AgMaxModule(nn.Module):
    """The trained module: the model on all 2B views at once, then the Q-network on the pairs of logits."""

    def __init__(self, model: nn.Module, qnet: QNet | None, num_classes: int):
        super().__init__()
        self.model = model
        self.qnet = qnet
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        names: set[str] = getattr(self.model, 'no_weight_decay', set)()
        return {f'model.{name}' for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the function from a parameter to its layer, for layer decay. The Q-network is in the last layer."""
        layers = layer_of_parameters(self.model, coarse)
        last_layer = max(layers.values())
        return lambda name: layers.get(name.removeprefix('model.'), last_layer)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits of all views and the joint logits.

        Args:
            input: Images [2B, C, H, W]: all first views, then all second views.

        Returns:
            (logits, joint_logits): Logits [2B, K]; joint logits [B, K], or None without a Q-network.

        Raises:
            UnsupportedModelError: The model does not return one tensor [2B, K].
        """
        logits = logits_of(self.model(input), self.model, self.num_classes)
        if self.qnet is None:
            return logits, None
        return logits, self.qnet(torch.cat(logits.chunk(2), dim=1))


def logits_of(output: Any, model: nn.Module, num_classes: int) -> torch.Tensor:
    """Return the logits [B, K] of an output of a model, a tensor or an object with the attribute `logits`.

    Raises:
        UnsupportedModelError: The output is anything else, such as a tuple, or K is not num_classes.
    """
    if not isinstance(output, tuple):  # the other fields of a tuple are outputs of auxiliary heads
        output = getattr(output, 'logits', output)
    name = type(model).__name__
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise UnsupportedModelError(f'{name} does not return one tensor of logits [batch, K] when training: use a '
                                    'variant of the model without auxiliary heads')
    if output.shape[1] != num_classes:
        raise UnsupportedModelError(
            f'{name} gives {output.shape[1]} logits, AgMax was created for {num_classes} classes: create the model '
            f'with num_classes={num_classes}, or give the task num_classes={output.shape[1]}')
    return output


def layer_of_parameters(model: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Return the number of the layer of each parameter, as in timm's layer decay."""
    matcher = getattr(model, 'group_matcher', None)
    if matcher is None:
        return auto_group_layers(model)
    return group_parameters(model, matcher(coarse=coarse), reverse=True)


def init_normal(module: nn.Module, std: float) -> None:
    """Draw the weights of every Linear and Conv layer from N(0, std), as in the published ImageNet runs.

    They are drawn on the CPU, so they do not depend on the device.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            new = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device='cpu')
            layer.weight.data.copy_(nn.init.normal_(new, std=std))


def count_classes(model: nn.Module, task: str, num_classes: int | None = None) -> int:
    """Return num_classes or, if it is None, the number of classes of a model of timm or transformers.

    For any other model it is the number of outputs of the last linear layer.

    Raises:
        ValueError: The number is unknown, or below 2. The task has an argument for it.
    """
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    last = linear[-1].out_features if linear else None
    count = getattr(model, 'num_classes', getattr(model, 'num_labels', last)) if num_classes is None else num_classes
    if count is None:
        raise ValueError(f'{type(model).__name__} has no attribute num_classes: give {task} num_classes=...')
    if count < 2:
        raise ValueError(f'AgMax needs a classifier of 2 classes or more, {type(model).__name__} has {count}')
    return count
