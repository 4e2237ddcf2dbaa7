"""Weights of the original AgMax: conversion to timm's names, and the four released models in timm's registry.

Original: https://github.com/roatienza/agmax
"""
import logging
import os
import pickle
import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, load_state_dict, model_entrypoint, register_model, resolve_pretrained_cfg
from torch import Tensor, nn

from ..base.atomic_write import scratch_folder
from ..base.errors import CheckpointError
from ..base.text import listed, one_line
from .wide_resnet import CIFAR_MEAN, CIFAR_STD

PAPER_NAME = 'Improving Model Generalization by Agreement of Learned Representations from Data Augmentation'
PAPER_ID = 'arXiv:2110.10536'
# Name of the head in timm's models. In the original's networks it is `classifier`, next to the features.
_HEADS = ('head.fc', 'head', 'classifier', 'fc')
_WRAPPERS = re.compile(r'^(module\.)?(backbone\.)?')
_WIDE_RESNET = 'feature_extractor.conv.weight'  # only its WideResNets have this tensor
_FILE_HASH = re.compile(r'-([a-f0-9]{8,64})\.')

_logger = logging.getLogger(__name__)


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
            raise CheckpointError(f'{name} is not a tensor of the original AgMax')
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


def check_fit(
        state_dict: dict[str, Tensor],
        model: nn.Module,
        adapted: tuple[str, ...] = (),
        source: str = '',
) -> None:
    """Raise CheckpointError unless tensors are exactly those of a model. See misfits for the arguments."""
    problems = misfits(state_dict, model, adapted)
    if problems:
        architecture = getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__
        raise CheckpointError(f'{source} does not fit {architecture}: {problems}'.lstrip())


def misfits(state_dict: dict[str, Tensor], model: nn.Module, adapted: tuple[str, ...] = ()) -> str:
    """Return how tensors differ from those of a model, '' if they fit exactly.

    Args:
        adapted: Prefixes of tensors that are not compared.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own and not name.startswith(adapted)]
    shapes = [f'{name} {list(tensor.shape)} in place of {list(own[name].shape)}' for name, tensor in state_dict.items()
              if name in own and tensor.shape != own[name].shape and not name.startswith(adapted)]
    named = dict(missing=missing, unexpected=unexpected, shapes=shapes)
    return '; '.join(f'{problem} {listed(names, 3)}' for problem, names in named.items() if names)


def timm_architecture(name: str) -> str:
    """Return timm's architecture for a model name, without tag: 'resnet50' for 'agmax_resnet50.cutmix_aa_in1k'.

    A model that is published under this name loads without this package.
    """
    architecture = name.split('.', 1)[0]
    return architecture.removeprefix('agmax_') if architecture in default_cfgs else architecture


def package_of(architecture: str) -> str:
    """Return the package that registers a model with timm: 'timm', or the one to import before timm can create it."""
    return model_entrypoint(architecture).__module__.partition('.')[0]


def _plain(name: Any) -> str:
    return _WRAPPERS.sub('', str(name))


def adapted_modules(model: nn.Module, keys: tuple[str, ...] = ('first_conv', 'classifier')) -> tuple[str, ...]:
    """Return the prefixes of the tensors that timm adapts to the model: those of stem and head."""
    config = getattr(model, 'pretrained_cfg', {})
    modules: list[str] = []
    for key in keys:
        value = config.get(key) or ()
        modules += [value] if isinstance(value, str) else value
    return tuple(f'{module}.' for module in modules)


# ---- The release, in timm's registry ----

def _released(file: str, description: str) -> dict[str, Any]:
    return dict(
        url=f'https://github.com/roatienza/agmax/releases/download/agmax-0.1.0/{file}',
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation='bilinear',
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='conv1',
        classifier='fc',
        license='apache-2.0',  # LICENSE of its repository, which does not mention the weights
        description=description,
        origin_url='https://github.com/roatienza/agmax',
        paper_name=PAPER_NAME,
        paper_ids=PAPER_ID,
    )


default_cfgs = generate_default_cfgs({
    'agmax_resnet50.cutmix_aa_in1k': _released(
        'imagenet-agmax-ResNet50-cutmix-auto_augment-79.12-mlp-2048.pth',
        'AgMax, CutMix, AutoAugment; ImageNet-1k top-1 79.12'),
    'agmax_resnet50.baseline_cutmix_aa_in1k': _released(
        'imagenet-standard-ResNet50-cutmix-auto_augment-78.5.pth',
        'The baseline without AgMax, CutMix, AutoAugment; ImageNet-1k top-1 78.5'),
    'agmax_resnet101.cutmix_aa_in1k': _released(
        'imagenet-agmax-mi-ResNet101-cutmix-auto_augment-81.19-mlp-4096.pth',
        'AgMax, CutMix, AutoAugment; ImageNet-1k top-1 81.19'),
    'agmax_resnet101.baseline_cutmix_aa_in1k': _released(
        'imagenet-standard-ResNet101-cutmix-auto_augment-80.69.pth',
        'The baseline without AgMax, CutMix, AutoAugment; ImageNet-1k top-1 80.69'),
})


@register_model
def agmax_resnet50(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's ResNet-50 with the weights of the AgMax release."""
    return _create_released('agmax_resnet50', pretrained, **kwargs)


@register_model
def agmax_resnet101(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's ResNet-101 with the weights of the AgMax release."""
    return _create_released('agmax_resnet101', pretrained, **kwargs)


def _create_released(
        name: str,
        pretrained: bool,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
) -> nn.Module:
    """Return timm's model with a configuration of the release. It loads files of the original and of timm.

    Raises:
        CheckpointError: The weights cannot be downloaded, are damaged, not plain tensors, or of another model.
    """
    cfg: Any = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    # timm's own name, so that saved models load without this package.
    cfg = replace(cfg, architecture=timm_architecture(name))
    source = 'in memory' if cfg.state_dict else cfg.file or cfg.hf_hub_id or cfg.url  # timm's order
    if pretrained and source and source == cfg.url:
        source = _download(cfg.url, cache_dir)
    try:
        model = model_entrypoint(cfg.architecture)(
            pretrained, pretrained_cfg=cfg, pretrained_filter_fn=filter_checkpoint, cache_dir=cache_dir, **kwargs)
    except (CheckpointError, RuntimeError, pickle.UnpicklingError, EOFError, FileNotFoundError) as error:
        if not pretrained:
            raise
        raise CheckpointError(f'{name}: cannot use weights {source}: {one_line(error)}') from error
    model.register_load_state_dict_pre_hook(_rename_while_loading)
    return model


def _rename_while_loading(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_) -> None:
    """Rename the tensors of an original checkpoint. timm's `checkpoint_path` takes no filter, so the model does it."""
    if not prefix and is_original(state_dict):
        tensors = original_to_timm(state_dict)
        state_dict.clear()
        state_dict.update(tensors)


def _download(url: str, cache_dir: str | os.PathLike | None = None) -> str:
    """Return the path in torch's cache where timm looks for a URL. Download the file if it is missing.

    A file enters the cache only if it can be read as tensors. torch.hub would keep an incomplete download. The file
    names of the release contain accuracies, which torch.hub would take for hashes. So only a hash of 8 digits or more
    is checked.

    Raises:
        CheckpointError: The file cannot be downloaded or kept, or is not plain tensors.
    """
    folder = str(cache_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    filename = os.path.basename(urlparse(url).path)
    path = os.path.join(folder, filename)
    if os.path.exists(path):
        return path
    expected = _FILE_HASH.search(filename)
    _logger.info(f'Downloading {url} to {path}')
    try:
        os.makedirs(folder, exist_ok=True)
        with scratch_folder(path) as partial:
            download = os.path.join(partial, filename)
            torch.hub.download_url_to_file(url, download, expected and expected.group(1), progress=False)
            load_state_dict(download)
            os.replace(download, path)  # atomic: several processes may download at once
    except Exception as error:
        raise CheckpointError(f'cannot use the download of {url} to {path}: {one_line(error)}') from error
    return path
