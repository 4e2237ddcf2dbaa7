"""Checkpoints of the original AgMax, https://github.com/roatienza/agmax: their conversion to timm's names."""
import re
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..base.errors import CheckpointError
from .fit import adapted_modules, check_fit
from .wide_resnet import CIFAR_MEAN, CIFAR_STD

# Name of the head in timm's models. In the original's networks it is `classifier`, next to the features.
_HEADS = ('head.fc', 'head', 'classifier', 'fc')
_WRAPPERS = re.compile(r'^(module\.)?(backbone\.)?')
_WIDE_RESNET = 'feature_extractor.conv.weight'  # only its WideResNets have this tensor


def is_original(checkpoint: Any) -> bool:
    """Whether an unpickled file is a checkpoint of the original, with AgMax or without."""
    tensors = checkpoint.get('model_state_dict') if isinstance(checkpoint, dict) else None
    return isinstance(tensors, dict) and any(_plain(name).startswith('feature_extractor.') for name in tensors)


def original_to_timm(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Convert the classifier of a checkpoint of the original to timm's names, without the Q-network.

    The original's ResNets have timm's names already. In networks from timm (RegNet, EfficientNet), the names begin with
    `features.` and timm's head is unused. The original's `classifier` replaces this head. WideResNets get the names of
    wide_resnet.WideResNet, whose classifier is a convolution of 1 x 1.

    Raises:
        CheckpointError: The checkpoint has an unexpected tensor. The message names it.
    """
    tensors = checkpoint['model_state_dict']
    plain_names = {_plain(name) for name in tensors}
    head = next((head for head in _HEADS if f'feature_extractor.features.{head}.weight' in plain_names), None)
    unused = {f'feature_extractor.features.{head}.{kind}' for kind in ('weight', 'bias')}
    wide = _WIDE_RESNET in plain_names
    state_dict = {}
    for name, tensor in tensors.items():
        plain = _plain(name)
        if plain in unused or plain.startswith('qnet.model.'):
            continue
        source, _, rest = plain.partition('.')
        timm_name = f"{head or 'fc'}.{rest}" if source == 'classifier' else rest.removeprefix('features.')
        if wide:
            timm_name = _wide_resnet_name(timm_name)
        if source not in ('feature_extractor', 'classifier') or timm_name in state_dict or not torch.is_tensor(tensor):
            raise CheckpointError(f"'{name}' is not a tensor of the original AgMax")
        state_dict[timm_name] = tensor[..., None, None] if wide and timm_name == 'head.fc.weight' else tensor
    return state_dict


def _wide_resnet_name(name: str) -> str:
    """Return the name of a tensor of WideResNet for that of the original: stages.0.blocks.1.norm2 for layer1.1.bn2."""
    name = re.sub(r'^layer(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.', name)
    name = re.sub(r'^(conv|fc)\.', lambda match: {'conv': 'stem.conv.', 'fc': 'head.fc.'}[match[1]], name)
    return re.sub(r'(^|\.)bn', r'\1norm', name).replace('.shortcut.', '.downsample.conv.')


def original_options(checkpoint: dict[str, Any], img_size: int | None = None) -> dict[str, Any]:
    """Return the options of validate.py with which the original evaluates a checkpoint.

    The shorter side of an image is resized to 32 pixels more than the central crop. Images for WideResNets are neither
    resized nor cropped, and have the normalisation of CIFAR; its run with all of SVHN had another one.

    Args:
        img_size: Side of the crop in pixels. None is the published side: 224 for the original's ResNets, 32 for its
            WideResNets, 256 for networks from timm.
    """
    tensors = {_plain(name): tensor for name, tensor in checkpoint['model_state_dict'].items()}
    of_timm = any(name.startswith('feature_extractor.features.') for name in tensors)
    wide = _WIDE_RESNET in tensors
    img_size = img_size or (32 if wide else 256 if of_timm else 224)
    head = tensors.get('classifier.weight')
    return dict(
        num_classes=head.shape[0] if torch.is_tensor(head) and head.ndim == 2 else None,
        input_size=(3, img_size, img_size),
        interpolation='bilinear',
        mean=CIFAR_MEAN if wide else IMAGENET_DEFAULT_MEAN,
        std=CIFAR_STD if wide else IMAGENET_DEFAULT_STD,
        crop_pct=1. if wide else img_size / (img_size + 32),
    )


def filter_checkpoint(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Convert and check the tensors of an original checkpoint. Return others unchanged. This is timm's `filter_fn`.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or has another shape. Stem and head may differ, because timm
            adapts them to the input channels and the classes.
    """
    if not is_original(state_dict):
        return state_dict
    state_dict = original_to_timm(state_dict)
    check_fit(state_dict, model, adapted_modules(model))
    return state_dict


def _plain(name: Any) -> str:
    return _WRAPPERS.sub('', str(name))
