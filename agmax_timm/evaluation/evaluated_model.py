"""The model of an evaluation: created, loaded with weights, optionally re-parameterised, pooled and compiled."""
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn as nn
from timm import utils
from timm.layers import apply_test_time_pool
from timm.models import reparameterize_model
from torch.utils.data import Dataset

from ..assembly import datasets, loaders
from ..assembly.known_classes import classes_of, map_of_model
from ..assembly.model import (
    Precision,
    build_precision,
    create_named_model,
    script_model,
    set_backend_options,
)
from ..assembly.model_input import build_data_config, input_channels, try_input
from ..base.distributed import is_distributed, is_primary, world_size
from ..base.errors import DataError, OptionError
from ..base.text import one_line
from ..data.sources.classes import ModelClasses, MovedClassError, summary
from ..options.checks import check_measurements
from ..options.data_kinds import share_options, split_name
from ..options.declare import declared
from ..options.device import ValidationDevice
from ..options.model import Model, ValidationModel
from ..options.parsers import ValidateOptions
from ..options.quantities import share_of
from ..options.timm_names import REFUSED
from ..weights.checkpoint import load_weights, saved_options
from ..weights.notes import noted_options
from .metrics import set_targets

_logger = logging.getLogger('validate')


@dataclass
class EvaluatedModel:
    """A model that is ready for evaluation, with attributes that a wrapped model does not have."""
    options: ValidateOptions  # completed with options of the checkpoint or the pretrained weights
    model: Any
    data_config: dict[str, Any]
    num_classes: int
    classes: ModelClasses | None  # None if unknown
    param_count: int
    patch_size: tuple[int, int] | None  # for NaFlex models only
    device: torch.device
    precision: Precision
    run_options: dict[str, Any] = field(default_factory=dict)  # of the run that wrote the checkpoint, if known


def read_options(options: ValidateOptions) -> dict[str, Any]:
    """Return saved_options of the checkpoint, with the input size that --use-train-size asks for."""
    # Without the command line, use_train_size may also come from the checkpoint, see options_of_run.
    use_train_size = options.use_train_size and 'use_train_size' in options.given
    return saved_options(options.checkpoint, use_test_size=not use_train_size)


def options_of_run(options: ValidateOptions, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the options to take from the run that wrote the checkpoint. Those of the command line are left out."""
    if not saved:
        return {}
    explicit = set(options.given)
    adopted = {name: saved[name] for name, option in declared(ValidateOptions).items()
               if option.evaluation in ('input', 'labels') and name in saved}
    adopted.update(_shape_of_run(options, saved))
    if 'split' not in explicit or share_of(options.split) is not None:
        adopted.update(share_options(saved))
    adopted['batch_size'] = saved.get('validation_batch_size') or saved.get('batch_size') or options.batch_size
    adopted['use_train_size'] = True
    return {name: value for name, value in adopted.items() if name not in explicit}


def _shape_of_run(options: ValidateOptions, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the input's shape that change if the command line gives a part of the shape."""
    size = saved.get('input_size')
    if 'input_size' in options.given:
        return {'img_size': None, 'in_chans': None}
    if size is None:
        return {}
    if 'img_size' in options.given:
        return {'input_size': None, 'in_chans': options.in_chans or size[0]}
    return {'input_size': (options.in_chans, *size[1:])} if options.in_chans is not None else {}


def adopt_options(options: ValidateOptions, saved: dict[str, Any]) -> ValidateOptions:
    """Return the options with those of options_of_run. Log them, and warn of a split that the run trained on."""
    adopted, run_split, share = options_of_run(options, saved), share_options(saved), share_of(options.split)
    seed, own = options.val_split_seed, run_split.get('val_split_seed')
    share_of_run = 'split' not in options.given or share is not None
    if share_of_run and 'val_split_seed' in options.given and own not in (None, seed):
        _logger.warning(f'--val-split-seed {seed} has images that the run trained on (it held out those of {own}): '
                        'leave the flag out')
    if share is not None and run_split and share > float(run_split['split']):
        _logger.warning(f"--split '{options.split}' has images that the run trained on (it held out "
                        f"'{run_split['split']}'): leave the flag out")
    if saved.get('naflex_loader') and not options.naflex_loader:
        _logger.warning('The run was evaluated with --naflex-loader. Without it, images are resized to one size')
    changed = {name: value for name, value in adopted.items() if value != getattr(options, name)}
    if changed:
        _logger.info('From the checkpoint: ' + ', '.join(
            f'{name} of {len(value)} names' if name == 'class_map' and isinstance(value, dict) else f'{name} {value}'
            for name, value in changed.items()))
    return replace(options, **adopted)


def prepare(options: ValidateOptions, device: torch.device) -> EvaluatedModel:
    """Create the model, with the options of the run that wrote its checkpoint where the command line has none."""
    run_options = read_options(options) if options.checkpoint else {}
    options = adopt_options(options, run_options)
    for problem in check_measurements(options):
        raise OptionError(problem)
    precision = build_precision(options, device)
    utils.random_seed(options.seed)
    return replace(create_evaluated_model(options, device, precision), run_options=run_options)


def build_loader(subject: EvaluatedModel, dataset: Dataset) -> Any:
    """Return a loader in the order of the data set, with the preprocessing of the model."""
    options = subject.options
    return loaders.build_eval_loader(
        options, dataset, subject.data_config, subject.device, subject.precision, options.batch_size,
        subject.patch_size, options.crop_border_pixels, options.tf_preprocessing)


def open_split(options: ValidateOptions, data_config: dict[str, Any]) -> Dataset:
    if options.tf_preprocessing and options.exif_orientation:
        raise OptionError('--tf-preprocessing decodes images itself, without --exif-orientation: drop it')
    kwargs: dict[str, Any] = dict(load_bytes=True) if options.tf_preprocessing else {}
    mode = datasets.image_mode(options, data_config)
    return datasets.open_split(options, options.split, num_samples=options.num_samples, input_img_mode=mode,
                               seed=options.seed, **kwargs)


def open_data(subject: EvaluatedModel, logger: logging.Logger, remedy: str) -> Dataset:
    """Open the data of an evaluation, log its size and classes, and give its targets the numbers of the model.

    Raises:
        DataError: The classes of the data have other numbers than those of the model. The message ends with `remedy`.
    """
    options = subject.options
    dataset = open_split(options, subject.data_config)
    logger.info(summary({split_name(vars(options), options.split): dataset}))
    try:
        set_targets(options, dataset, subject.num_classes, subject.classes)
    except MovedClassError as error:
        raise DataError(f'{error}: {remedy}') from error
    return dataset


def create_evaluated_model(options: ValidateOptions, device: torch.device, precision: Precision) -> EvaluatedModel:
    """Create the model that the options name, in the order of timm's script.

    Raises:
        OptionError: The model, the machine or the version of torch does not support an option.
        CheckpointError: The checkpoint is not one of this model.
    """
    _check_devices(options, device)
    set_backend_options(options)
    model = create_named_model(
        options.model,
        pretrained=not options.checkpoint,
        num_classes=options.num_classes,
        in_chans=input_channels(options),
        global_pool=options.gp,
        scriptable=options.torchscript,
        **options.model_kwargs,
    )
    if options.checkpoint:
        load_weights(options.checkpoint, model, options.use_ema)
    else:
        _check_head(options, model)
        noted = noted_options(model.pretrained_cfg)
        options = replace(options, input_img_mode=options.input_img_mode or noted.get('input_img_mode'),
                          exif_orientation=options.exif_orientation or noted.get('exif_orientation', False))
    if options.reparam:
        names = model.state_dict().keys()
        model = reparameterize_model(model)
        if is_primary() and names == model.state_dict().keys():
            _logger.warning(f"--reparam has no effect: --model '{options.model}' has no branches to fuse")
    num_classes = model.num_classes
    classes = classes_of(model, options.model, options.checkpoint)
    options = replace(options, class_map=map_of_model(options, classes))
    param_count = sum(parameter.numel() for parameter in model.parameters())
    patch_size = loaders.patch_size(model) if options.naflex_loader else None
    _logger.info(f'Model {options.model} created, param count: {param_count}')

    data_config = build_data_config(options, model, use_test_size=not options.use_train_size)
    if options.test_pool:
        model, data_config = _pool_at_test_time(options, model, data_config)
    model = model.to(device=device, dtype=precision.model_dtype)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if not options.naflex_loader:
        try_input(options, model, data_config, num_classes)
    model = _compile(options, model)
    if options.num_gpu > 1:
        model = nn.DataParallel(model, device_ids=list(range(options.num_gpu)))
    return EvaluatedModel(options, model, data_config, num_classes, classes, param_count, patch_size, device, precision)


def _check_devices(options: ValidationDevice, device: torch.device) -> None:
    if options.num_gpu == 1:
        return
    if is_distributed():
        raise OptionError(f'--num-gpu {options.num_gpu} is for one process, torchrun started {world_size()}: drop it')
    if device.type == 'cuda' and device.index:
        raise OptionError(f'--device {device} with --num-gpu {options.num_gpu}: the model is copied to GPUs from 0 on: '
                          'use --device cuda')
    count = torch.cuda.device_count() if device.type == 'cuda' else 0
    if options.num_gpu > count:
        raise OptionError(f'--num-gpu {options.num_gpu}, but --device {device.type} has {count} GPUs: use --num-gpu '
                          f'{max(1, count)}')


def _check_head(options: Model, model: nn.Module) -> None:
    """Raise OptionError if --num-classes would replace the pretrained head by an untrained one."""
    outputs = (getattr(model, 'pretrained_cfg', None) or {}).get('num_classes')
    if options.num_classes is not None and outputs not in (None, options.num_classes):
        raise OptionError(f"--num-classes {options.num_classes}: the weights of --model '{options.model}' have "
                          f'{outputs} outputs, and an untrained head would take their place: leave it out')


def _pool_at_test_time(options: Model, model: Any, data_config: dict) -> tuple[nn.Module, dict]:
    """Average the outputs over windows of the training size if the input is larger. The crop is the whole image."""
    config = model.pretrained_cfg
    larger = all(side > own for side, own in zip(data_config['input_size'][1:], config['input_size'][1:]))
    if not larger:
        _logger.info(f"--test-pool: the input is not larger than {options.model}'s own {config['input_size'][1:]}, so "
                     'nothing is pooled')
        return model, data_config
    if not config.get('pool_size'):
        raise OptionError(f"--test-pool: the configuration of '{options.model}' has no pool_size, the size of a map of "
                          'features to pool over: drop it')
    # At the training size there is one window, so that the outputs are equal. timm's pooling omits all other layers of
    # a head, such as a norm.
    image = torch.randn(1, data_config['input_size'][0], *config['input_size'][1:],
                        generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = model.eval()(image)
            model, _ = apply_test_time_pool(model, data_config)
            difference = (model.eval()(image) - expected).abs().max()
        if difference > 1e-3 * expected.abs().max():
            raise ValueError('its outputs at the training size change')
    except (*REFUSED, AttributeError) as error:
        raise OptionError(f"--test-pool: the head of '{options.model}' is not average pooling and one linear layer: "
                          f'{one_line(error, 200)}: drop it') from error
    return model, {**data_config, 'crop_pct': 1.0}


def _compile(options: ValidationModel, model: nn.Module) -> Any:
    if options.torchscript:
        return script_model(options, model)
    if options.torchcompile:
        torch.compiler.reset()  # otherwise models compiled before count towards torch's limits
        return torch.compile(model, backend=options.torchcompile, mode=options.torchcompile_mode)
    if options.aot_autograd:
        try:
            from functorch.compile import memory_efficient_fusion
        except ImportError as error:
            raise OptionError(f'--aot-autograd: torch {torch.__version__} does not have functorch.compile: use '
                              '--torchcompile') from error
        return _FixedBatch(memory_efficient_fusion(model))
    return model


class _FixedBatch(nn.Module):
    """A model that needs batches of one size. Smaller batches, at the end of the data, are padded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.batch_size = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        count = len(input)
        self.batch_size = max(self.batch_size, count)
        padding = input[:1].expand(self.batch_size - count, *input.shape[1:])
        return self.model(torch.cat([input, padding]))[:count]
