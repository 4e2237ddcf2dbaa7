"""The model as it is evaluated: with its weights, re-parameterised, pooled, scripted or compiled, on its devices."""
import argparse
import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from timm import utils
from timm.layers import apply_test_time_pool
from timm.models import reparameterize_model

from ..assembly import loaders
from ..assembly.known_classes import classes_of, map_of_model
from ..assembly.model import (
    Precision,
    build_data_config,
    create_named_model,
    input_channels,
    script_model,
    set_backend_options,
    try_input,
)
from ..base.errors import OptionError
from ..data.sources.classes import ModelClasses
from ..weights.checkpoint import load_weights
from ..weights.limits import noted_options

_logger = logging.getLogger('validate')


@dataclass
class Subject:
    """A model that is ready to be evaluated, and what can no longer be asked of it once it is wrapped."""
    model: nn.Module
    data_config: dict[str, Any]
    num_classes: int
    classes: ModelClasses | None  # None if unknown
    param_count: int
    patch_size: tuple[int, int] | None  # of a NaFlex model


def build_subject(args: argparse.Namespace, device: torch.device, precision: Precision) -> Subject:
    """The model that the options name, in timm's order of building it.

    Raises:
        OptionError: the options ask for what the model, this machine or this version of torch does not have.
        CheckpointError: the checkpoint is not one of this model.
    """
    _check_devices(args, device)
    set_backend_options(args)
    model = create_named_model(
        args.model,
        pretrained=args.pretrained or not args.checkpoint,
        num_classes=args.num_classes,
        in_chans=input_channels(args),
        global_pool=args.gp,
        scriptable=args.torchscript,
        **args.model_kwargs,
    )
    if args.checkpoint:
        load_weights(args.checkpoint, model, args.use_ema)
    else:
        _check_head(args, model)
        args.input_img_mode = args.input_img_mode or noted_options(model.pretrained_cfg).get('input_img_mode')
    if args.reparam:
        names = model.state_dict().keys()
        model = reparameterize_model(model)
        if utils.is_primary(args) and names == model.state_dict().keys():
            _logger.warning(f'--reparam has no effect: --model {args.model} has no branches to fuse')
    num_classes = model.num_classes
    classes = classes_of(model, args.model, args.checkpoint)
    args.class_map = map_of_model(args, classes)
    param_count = sum(parameter.numel() for parameter in model.parameters())
    patch_size = loaders.patch_size(model) if args.naflex_loader else None
    _logger.info(f'Model {args.model} created, param count: {param_count}')

    data_config = build_data_config(args, model, use_test_size=not args.use_train_size)
    if args.test_pool:
        model, data_config = _pool_at_test_time(args, model, data_config)
    model = model.to(device=device, dtype=precision.model_dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if not args.naflex_loader:
        try_input(args, model, data_config, num_classes)
    model = _compile(args, model)
    if args.num_gpu > 1:
        model = nn.DataParallel(model, device_ids=list(range(args.num_gpu)))
    return Subject(model, data_config, num_classes, classes, param_count, patch_size)


def _check_devices(args: argparse.Namespace, device: torch.device) -> None:
    if args.num_gpu == 1:
        return
    if args.distributed:
        raise OptionError(f'--num-gpu {args.num_gpu} is for one process, torchrun started {args.world_size}: drop it')
    there = torch.cuda.device_count() if device.type == 'cuda' else 0
    if args.num_gpu > there:
        raise OptionError(f'--num-gpu {args.num_gpu}, but --device {args.device} has {there} GPUs: use --num-gpu '
                          f'{max(1, there)}')


def _check_head(args: argparse.Namespace, model: nn.Module) -> None:
    """Raise OptionError if --num-classes would replace the head of the weights by an untrained one."""
    outputs = (getattr(model, 'pretrained_cfg', None) or {}).get('num_classes')
    if args.num_classes is not None and outputs not in (None, args.num_classes):
        raise OptionError(f'--num-classes {args.num_classes}: the weights of --model {args.model} have {outputs} '
                          'outputs, and an untrained head would take their place: leave it out')


def _pool_at_test_time(args: argparse.Namespace, model: nn.Module, data_config: dict) -> tuple[nn.Module, dict]:
    """Average windows of the training size, where the input is larger: the whole image is then looked at."""
    config = model.pretrained_cfg
    larger = all(asked > own for asked, own in zip(data_config['input_size'][1:], config['input_size'][1:]))
    if not larger:
        _logger.info(f"--test-pool: the input is not larger than {args.model}'s own {config['input_size'][1:]}, so "
                     'nothing is pooled')
        return model, data_config
    if not config.get('pool_size'):
        raise OptionError(f'--test-pool: {args.model} does not end in a map of features to pool over: drop it')
    model, _ = apply_test_time_pool(model, data_config)
    return model, {**data_config, 'crop_pct': 1.0}


def _compile(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    if args.torchscript:
        return script_model(args, model)
    if args.torchcompile:
        torch.compiler.reset()  # what was compiled before is not to count against torch's limits
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        try:
            from functorch.compile import memory_efficient_fusion
        except ImportError as error:
            raise OptionError(f'--aot-autograd: torch {torch.__version__} does not have functorch.compile: use '
                              '--torchcompile') from error
        return _FixedBatch(memory_efficient_fusion(model))
    return model


class _FixedBatch(nn.Module):
    """A model that computes only batches of the size of its first one: fills up smaller ones, which come last."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.batch_size = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        count = len(input)
        self.batch_size = max(self.batch_size, count)
        filling = input[:1].expand(self.batch_size - count, *input.shape[1:])
        return self.model(torch.cat([input, filling]))[:count]
