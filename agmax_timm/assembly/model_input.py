"""The input of a model: its size and normalisation from options, and a trial with one image."""
from typing import Any

import torch
import torch.nn as nn
from timm.data import resolve_data_config

from ..base.command_line import flag_of
from ..base.distributed import is_primary
from ..base.errors import OptionError
from ..base.text import one_line
from ..options.parsers import AnyOptions, TrainOptions
from ..options.timm_names import REFUSED
from .freezing import frozen_batch_norm


def build_data_config(options: AnyOptions, model: Any, use_test_size: bool = False) -> dict[str, Any]:
    """Return timm's data configuration, with size, mean and std for the channels of --in-chans."""
    try:
        config = resolve_data_config(
            vars(options), model=model, use_test_size=use_test_size, verbose=is_primary())
    except AssertionError as error:
        raise OptionError('--mean and --std need one value, or as many as there are channels') from error
    channels = input_channels(options) or model.pretrained_cfg['input_size'][0]
    config['input_size'] = (channels, *config['input_size'][1:])
    for name in ('mean', 'std'):
        if len(config[name]) != channels:
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def try_input(options: AnyOptions, model: nn.Module, data_config: dict[str, Any], num_classes: int,
              option: str = 'model') -> None:
    """Evaluate the model on one black image of each size that it gets.

    Args:
        option: Name of the option that names the model.

    Raises:
        OptionError: The model does not accept images of a size, or does not return num_classes logits.
    """
    given, own = f"{flag_of(option)} '{getattr(options, option)}'", option == 'model'
    channels, height, width = data_config['input_size']
    sides = vars(options).get('train_img_sizes') or []
    batches = vars(options).get('train_batch_sizes') or [options.batch_size] * len(sides)
    size_flags = ('--img-size, --input-size or --in-chans (a ViT takes --model-kwargs img_size=N)' if own else
                  '--img-size (or use another teacher)')
    sizes = [(height, width, size_flags, 0 if sides else options.batch_size),  # not a training size if there are others
             *((side, side, '--train-img-sizes', batch) for side, batch in zip(sides, batches))]
    one_view = model.training and isinstance(options, TrainOptions) and not options.agmax and (
        options.split_bn or not options.aug_splits)
    for *size, flags, batch in sizes:
        try:
            output = _output_for_black(model, (channels, *size), alone=one_view and batch == 1)
        except REFUSED as error:
            raise OptionError(f'{given} does not take images of {channels} x {size[0]} x {size[1]}, as set by {flags}: '
                              f'{one_line(error, 300)}') from error
        if torch.is_tensor(output) and output.shape != (1, num_classes):
            remedy = 'leave out --gp and --model-kwargs that change its head' if own else 'use another one'
            raise OptionError(f'{given} gives {tuple(output.shape)[1:]}, not {num_classes} classes: {remedy}')


def _output_for_black(model: nn.Module, size: tuple[int, ...], alone: bool) -> Any:
    """Return the output of the model for one black image [C, H, W], in evaluation mode.

    Args:
        alone: Whether the batches of training have one image. Batch norm of a single value is then refused, except
            in frozen layers and in those that compute their statistics over all ranks.
    """
    like, training, frozen = next(model.parameters()), model.training, frozen_batch_norm(model)
    hook_handles = [module.register_forward_pre_hook(_refuse_single_value) for module in model.modules()
                    if alone and isinstance(module, nn.modules.batchnorm._BatchNorm)
                    and not isinstance(module, nn.SyncBatchNorm) and module not in frozen]
    try:
        with torch.no_grad():
            return model.eval()(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    finally:
        model.train(training)
        for handle in hook_handles:
            handle.remove()


def _refuse_single_value(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    if inputs[0].numel() == inputs[0].shape[1]:
        raise ValueError('--batch-size 1 leaves batch norm a single value: use 2 or more')


def input_channels(options: AnyOptions) -> int | None:
    """Return the number of channels that the options ask for, or None for the model's own."""
    if options.in_chans is not None:
        return options.in_chans
    return options.input_size[0] if options.input_size is not None else None
