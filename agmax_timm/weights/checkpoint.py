"""Read checkpoints and weights files, ours or timm's: tensors, options of the run, metadata."""
import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from timm.data import resolve_data_config
from timm.models import clean_state_dict, is_model, resolve_model_input_args
from timm.models._hub import load_model_config_from_path

from ..base.class_labels import known_names
from ..base.errors import CheckpointError, OptionError
from ..base.licences import license_in_folder, license_name
from ..base.safe_load import read_file
from ..base.text import one_line
from .fit import check_fit
from .notes import noted_options
from .original import is_original, original_options, original_to_timm

# The keys of a checkpoint that are ours; all others are timm's.
METADATA = 'agmax_timm'
STATE = 'agmax_state'
# timm's train.py validates with these values instead of the model's own.
CROP_OF_TRAINING = {'crop_mode': 'center'}
BEST = 'model_best.pth.tar'
# Files of a folder in timm's layout: the configuration, and the possible names of the weights.
_CONFIG, _WEIGHTS = 'config.json', ('model.safetensors', 'pytorch_model.bin')
# Arguments of create_model that say where weights come from: never taken from a file, which has its own.
_NOT_OF_A_MODEL = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir',
                   'features_only')


def find_file(path: str, which: str = 'best') -> str:
    """Return the file to read: a run's 'best' or 'last' checkpoint, or the weights of a folder in timm's layout.

    Raises:
        OptionError: The 'last' checkpoint is asked for, but the path is not the folder of a run.
    """
    layout = [os.path.join(path, name) for name in _WEIGHTS if os.path.isfile(os.path.join(path, _CONFIG))]
    file = path if not os.path.isdir(path) else next(filter(os.path.isfile, layout), None)
    if file is None:
        return os.path.join(path, BEST if which == 'best' else 'last.pth.tar')
    if which == 'last' and os.path.exists(path):
        raise OptionError(f"--last needs the folder of a run, '{path}' is not one: drop --last")
    return file


def choose_ema(options: dict[str, Any], use_ema: bool | None = None) -> bool:
    """Return `use_ema`. If it is None, return whether a run with these options ranked its checkpoints by the EMA."""
    if use_ema is not None:
        return use_ema
    evaluated = options.get('val_split') != ''  # without the option, the default is evaluated
    return bool(evaluated and options.get('model_ema') and not options.get('model_ema_force_cpu'))


def describe_weights(options: dict[str, Any], use_ema: bool) -> str:
    """Describe in words which weights of a run are taken."""
    if not (options.get('model_ema') or use_ema):
        return 'the weights as trained'
    kind, other = 'the raw weights', 'their EMA'
    if use_ema:
        kind, other = 'the EMA of the weights', 'the raw ones'
    if use_ema == choose_ema(options):
        return f'{kind}, by which the run ranked its checkpoints'
    return f'{kind}; the run ranked its checkpoints by {other}'


@contextmanager
def damage_reported(path: str) -> Iterator[None]:
    """Turn errors in reading the description of a model into CheckpointError.

    Values of a wrong type raise almost anything, timm's checks AssertionError. So a block contains the reading alone:
    an error of ours in it would be taken for a damaged file.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OSError) as error:
        raise CheckpointError(f"the description of the model in '{path}' is damaged: {one_line(error)}") from error


def options_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that wrote a checkpoint, as stored; empty if it stores none."""
    args = checkpoint.get('args')
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return dict(args) if isinstance(args, dict) else {}


def metadata_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a checkpoint (see metadata.make_metadata); empty if it has none."""
    metadata = checkpoint.get(METADATA)
    return metadata if isinstance(metadata, dict) else {}


def ranking_metric(checkpoint: dict[str, Any]) -> str:
    """Return the name of the metric by which a run, ours or timm's, ranked a checkpoint; '' if it is not known."""
    return metadata_in(checkpoint).get('metric_name') or options_in(checkpoint).get('eval_metric') or ''


def model_args_in(saved: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of create_model without those that name weights or return another model."""
    return {name: value for name, value in saved.items() if name not in _NOT_OF_A_MODEL}


def read_checkpoint(path: str, mmap: bool = False, use_test_size: bool = True) -> dict[str, Any]:
    """Read a file. For weights in a folder of timm's layout, add metadata from the config.json beside them.

    Args:
        use_test_size: Whether the metadata has the input of evaluation, if config.json also has one of training.
    """
    checkpoint = read_file(path, mmap)
    folder = os.path.dirname(path) or '.'
    config = os.path.join(os.path.dirname(path), _CONFIG)
    if os.path.basename(path) not in _WEIGHTS or not os.path.isfile(config):
        return checkpoint
    with damage_reported(config):
        with open(config, encoding='utf-8') as f:
            if 'architecture' not in json.load(f):  # of another library
                return checkpoint
        published, architecture, model_args = load_model_config_from_path(folder)
        model_args = {'num_classes': published['num_classes'], **model_args}
        options = noted_options(published)
        data_config = resolve_data_config(pretrained_cfg=published, use_test_size=use_test_size, verbose=False)
    return {
        'state_dict': checkpoint,
        'args': options,
        METADATA: {
            'architecture': architecture,
            'model_args': model_args,
            'class_names': known_names(published.get('label_names'), published['num_classes']),
            'data_config': data_config,
            'versions': {}, 'metrics': {},
            'base': {'name': None, 'license': license_in_folder(folder) or license_name(published.get('license'))},
        }}


def load_weights(path: str, model: nn.Module, use_ema: bool = False) -> None:
    """Load all tensors of the classifier in a checkpoint or weights file.

    Raises:
        CheckpointError: The file is missing or damaged, holds more than plain tensors, has no EMA, or its tensors do
            not fit the model.
    """
    load_strictly(model, tensors_in(read_checkpoint(path), path, use_ema), path)


def saved_options(path: str, use_test_size: bool = True) -> dict[str, Any]:
    """Return the options of the run that wrote a checkpoint; empty if the file holds none.

    Values of its metadata replace the options. The metadata has the model's name even if the options name a folder or
    repository, the values that timm resolved, and the content of the class map (a dict from class to index).

    Args:
        use_test_size: See read_checkpoint.
    """
    checkpoint = read_checkpoint(path, mmap=True, use_test_size=use_test_size)
    if is_original(checkpoint):
        return original_options(checkpoint)
    options = options_in(checkpoint)
    if options:
        options.update(CROP_OF_TRAINING)
    if METADATA in checkpoint:
        metadata = checkpoint[METADATA]
        with damage_reported(path):
            model_args = model_args_in(metadata['model_args'])
            options.update(metadata['data_config'], model=metadata['architecture'])
            if options.get('class_map'):
                options['class_map'] = _class_map(metadata, options['class_map'])
        options['gp'] = model_args.pop('global_pool', None)
        options.update((name, model_args.pop(name)) for name in ('num_classes', 'in_chans') if name in model_args)
        options['model_kwargs'] = model_args
    elif options:
        with damage_reported(path):
            options['model_kwargs'] = _model_kwargs_of_timm(options)
    return options


def _model_kwargs_of_timm(options: dict[str, Any]) -> dict[str, Any]:
    """Return --model-kwargs of validate.py for a model of timm's script, which has further options for its model."""
    kwargs = {'bn_eps': options.get('bn_eps'), **model_args_in(options.get('model_kwargs') or {})}
    if is_model(options.get('model') or ''):  # --img-size is an argument of a model with a fixed size
        kwargs = resolve_model_input_args(options['model'], options, **kwargs)
    return {name: value for name, value in kwargs.items()
            if value is not None and name not in ('model_name', 'pretrained_cfg', 'in_chans')}


def _class_map(metadata: dict[str, Any], path: str) -> Any:
    """Return the class map of a run. Older runs recorded its path; if that is gone, use their class names."""
    if metadata.get('class_map'):
        return dict(metadata['class_map'])
    if os.path.exists(path) or not metadata['class_names']:
        return path
    return {name: index for index, name in enumerate(metadata['class_names'])}


def tensors_in(checkpoint: dict[str, Any], path: str, use_ema: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of the classifier in a file, by timm's names."""
    if is_original(checkpoint) and not use_ema:
        try:
            return original_to_timm(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"'{path}': {error}") from error
    keys = ('state_dict_ema', 'model_ema') if use_ema else ('state_dict', 'model')
    tensors = next((checkpoint[key] for key in keys if checkpoint.get(key) is not None), None)
    if tensors is None and use_ema:
        raise CheckpointError(f"'{path}' holds no EMA weights: drop --use-ema of validate.py, or give --raw to other "
                              'commands')
    tensors = checkpoint if tensors is None else tensors
    if not isinstance(tensors, dict) or not tensors or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()):
        raise CheckpointError(f"'{path}' holds no weights of a model")
    return classifier_of(tensors)


def classifier_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors as timm does. Drop the parts of split batch norm that are only used in training."""
    return {name: value for name, value in clean_state_dict(tensors).items() if '.aux_bn.' not in name}


def load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], path: str) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        check_fit(tensors, model, source=path)
        raise CheckpointError(f"'{path}' does not load: {one_line(error)}") from error
