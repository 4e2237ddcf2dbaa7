"""The models of the original AgMax's release in timm's registry, and their weights.

Release: https://github.com/roatienza/agmax
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
from torch import nn

from ..base.atomic_write import scratch_folder
from ..base.errors import CheckpointError
from ..base.text import one_line
from .original import filter_checkpoint, is_original, original_to_timm

PAPER_NAME = 'Improving Model Generalization by Agreement of Learned Representations from Data Augmentation'
PAPER_ID = 'arXiv:2110.10536'
_FILE_HASH = re.compile(r'-([a-f0-9]{8,64})\.')

_logger = logging.getLogger(__name__)


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
    source = 'in memory' if cfg.state_dict else (cfg.file or cfg.hf_hub_id or cfg.url)  # timm's order
    if pretrained and source and source == cfg.url:
        source = _download(cfg.url, cache_dir)  # timm below finds the file in its cache; `source` is for the message
    try:
        model = model_entrypoint(cfg.architecture)(
            pretrained, pretrained_cfg=cfg, pretrained_filter_fn=filter_checkpoint, cache_dir=cache_dir, **kwargs)
    except (CheckpointError, RuntimeError, pickle.UnpicklingError, EOFError, FileNotFoundError) as error:
        if not pretrained:
            raise
        raise CheckpointError(f"'{name}': cannot use weights '{source}': {one_line(error)}") from error
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
        raise CheckpointError(f"cannot use the download of '{url}' to '{path}': {one_line(error)}") from error
    return path


def timm_architecture(name: str) -> str:
    """Return timm's architecture for a model name, without tag: 'resnet50' for 'agmax_resnet50.cutmix_aa_in1k'.

    A model that is published under this name loads without this package.
    """
    architecture = name.split('.', 1)[0]
    return architecture.removeprefix('agmax_') if architecture in default_cfgs else architecture


def package_of(architecture: str) -> str:
    """Return the package that registers a model with timm: 'timm', or the one to import before timm can create it."""
    return model_entrypoint(architecture).__module__.partition('.')[0]
