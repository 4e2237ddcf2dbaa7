"""Read checkpoints and weights files, ours or timm's: the classifier, the options of its run, its metadata."""
import argparse
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.data import resolve_data_config, resolve_input_data_config
from timm.models import clean_state_dict, get_pretrained_cfg, is_model, resolve_model_input_args
from timm.models._hub import load_model_config_from_path

from ..base.class_labels import known_names
from ..base.errors import CheckpointError
from ..base.licences import license_in_folder, license_name
from ..base.safe_load import read_file
from ..base.text import one_line
from .limits import noted_options
from .models import check_fit, is_original, original_options, original_to_timm, timm_architecture

# The keys of a checkpoint that are ours; all others are timm's.
METADATA = 'agmax_timm'
STATE = 'agmax_state'
# timm's train.py validates so, whatever the model's own.
_CROP_OF_TRAINING = {'crop_mode': 'center'}
_FILES = {'best': 'model_best.pth.tar', 'last': 'last.pth.tar'}
# Files of a folder in timm's layout: the configuration, and the possible names of the weights.
_CONFIG, _WEIGHTS = 'config.json', ('model.safetensors', 'pytorch_model.bin')
# Arguments of create_model that say where weights come from: never taken from a file, which has its own.
_NOT_OF_A_MODEL = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir',
                   'features_only')


@dataclass
class SavedModel:
    """A trained classifier with all that reproduces it."""
    architecture: str  # timm's model name, as given to create_model
    state_dict: dict[str, torch.Tensor]  # the plain classifier's
    num_classes: int
    in_chans: int = 3
    global_pool: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of create_model
    class_names: list[str] | None = None  # by index
    class_map: dict[Any, int] | None = None  # what --class-map held, where the run kept it
    data_config: dict[str, Any] = field(default_factory=dict)  # input_size, interpolation, mean, std, crop_pct, _mode
    options: dict[str, Any] = field(default_factory=dict)  # resolved options of the run
    metrics: dict[str, float] = field(default_factory=dict)  # of these weights in validation; 'epoch'
    versions: dict[str, str] = field(default_factory=dict)  # of agmax_timm, timm, torch, python
    base: dict[str, str | None] | None = None  # see base_model.find_base; None where it is not recorded
    weights: str = ''  # which weights of the run they are, in words
    images: dict[str, int] = field(default_factory=dict)  # numbers of images: 'train', 'validation'
    chosen_by: str = ''  # the metric by which the run chose this epoch, '' for a last or single epoch
    source: str = ''  # the file it was read from
    run_dir: str | None = None  # the folder of the run that wrote it, where it was read from there

    def with_dataset(self, name: str) -> 'SavedModel':
        """Return a copy with another name of the training data on the Hub. '' keeps the name that the run gave."""
        return replace(self, options={**self.options, 'hub_dataset': name or self.options.get('hub_dataset')})

    def create_model(self) -> nn.Module:
        """Create the timm model with these weights, in evaluation mode.

        Raises:
            CheckpointError: Timm cannot create the model, or the tensors do not fit it. The message names both.
        """
        args: dict[str, Any] = {'num_classes': self.num_classes, 'in_chans': self.in_chans,
                                'global_pool': self.global_pool, **self.model_args}
        try:
            model = timm.create_model(self.architecture, **args)
        except Exception as error:
            raise CheckpointError(
                f'{self.source}: timm cannot build {self.architecture} with {args}: {one_line(error)}') from error
        _load_strictly(model, self.state_dict, self.source)
        return model.eval()


def read_model(
        path: str,
        use_ema: bool | None = False,
        which: str = 'best',
        architecture: str | None = None,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
) -> SavedModel:
    """Read a classifier from a run or a file: ours, timm's, or weights alone.

    Args:
        path: Folder of a run, folder in timm's layout, checkpoint, or state dict (.pth or .safetensors). In a folder of
            timm's layout, config.json describes the weights.
        use_ema: Whether to read the EMA of the weights. None reads the weights that the run ranked, see choose_ema.
        which: 'best' or 'last' checkpoint of a run's folder.
        architecture: timm's name of the model, if the file does not store it.
        num_classes: Number of outputs, if the file does not store it and its tensors do not show it.
        model_kwargs: Further arguments of create_model, if the file does not store them.

    Raises:
        CheckpointError: The file is missing or damaged, holds more than plain tensors, has no EMA or no architecture,
            or, if it has no metadata, its tensors do not fit the model.
    """
    file = find_file(path, which)
    checkpoint = _read(file)
    if is_original(checkpoint):
        raise CheckpointError(f'{file} is a checkpoint of the original AgMax: python -m agmax_timm.convert takes it')
    folder, options = os.path.dirname(file) or '.', options_in(checkpoint)
    use_ema = choose_ema(options, use_ema)
    known: dict[str, Any] = dict(
        state_dict=_tensors(checkpoint, file, use_ema),
        options=options,
        weights=describe_weights(options, use_ema),
        source=file,
        run_dir=folder if os.path.isfile(os.path.join(folder, 'args.yaml')) else None,
        metrics={'epoch': checkpoint['epoch']} if isinstance(checkpoint.get('epoch'), int) else {},
    )
    with _damage_reported(file):
        metadata = checkpoint.get(METADATA)
        said = known['options'].get('model') or checkpoint.get('arch') if metadata is None else metadata['architecture']
        architecture = architecture or said
        if not isinstance(architecture, str) or ':' in architecture or not is_model(architecture):
            raise CheckpointError(f"{file} does not say which model of timm it holds"
                                  f"{f' ({architecture} is none)' if architecture else ''}: name it with --model")
        known['images'] = _images(checkpoint)
        if os.path.basename(file) == _FILES['best']:
            known['chosen_by'] = (metadata or {}).get('metric_name') or options.get('eval_metric') or ''
        given = {**({'num_classes': num_classes} if num_classes else {}), **_model_args(model_kwargs or {})}
        if metadata is None:
            return _without_metadata(architecture, known, given)
        same_model = timm_architecture(architecture) == metadata['architecture']
        if same_model and given.items() <= metadata['model_args'].items():
            known['metrics'].update(metadata['metrics'].get('ema' if use_ema else 'raw', {}))
        return _with_metadata(architecture, known, metadata, given)


def find_file(path: str, which: str = 'best') -> str:
    """Return the file to read: a run's 'best' or 'last' checkpoint, or the weights of a folder in timm's layout."""
    if not os.path.isdir(path):
        return path
    layout = [os.path.join(path, name) for name in _WEIGHTS if os.path.isfile(os.path.join(path, _CONFIG))]
    return next(filter(os.path.isfile, layout), os.path.join(path, _FILES[which]))


def chosen_by_ema(options: dict[str, Any]) -> bool:
    """Whether a run with these options ranked its checkpoints by the metrics of the EMA."""
    evaluated = options.get('val_split', 'validation') != ''
    return bool(evaluated and options.get('model_ema') and not options.get('model_ema_force_cpu'))


def choose_ema(options: dict[str, Any], use_ema: bool | None) -> bool:
    """Return `use_ema`. If it is None, return whether a run with these options ranked its checkpoints by the EMA."""
    return chosen_by_ema(options) if use_ema is None else use_ema


def describe_weights(options: dict[str, Any], use_ema: bool) -> str:
    """Describe in words which weights of a run are taken."""
    if not (options.get('model_ema') or use_ema):
        return 'the weights as trained'
    kind, other = 'the weights without averaging', 'their EMA'
    if use_ema:
        kind, other = 'the EMA of the weights', 'those without averaging'
    if use_ema == chosen_by_ema(options):
        return f'{kind}, by which the run ranked its checkpoints'
    return f'{kind}; the run ranked its checkpoints by {other}'


def _with_metadata(
        architecture: str,
        known: dict[str, Any],
        metadata: dict[str, Any],
        given: dict[str, Any] | None = None,
) -> SavedModel:
    return SavedModel(
        architecture,
        **_fields({**_model_args(metadata['model_args']), **(given or {})}),
        class_names=metadata['class_names'],
        class_map=metadata.get('class_map'),
        data_config=dict(metadata['data_config']),
        versions=dict(metadata['versions']),
        base=metadata.get('base'),
        **known,
    )


def model_of_metadata(metadata: dict[str, Any], model: nn.Module, options: dict[str, Any]) -> SavedModel:
    """Return what read_model returns for a checkpoint that the run would save now.

    Args:
        metadata: See metadata.make_metadata.
        options: Options of the run.
    """
    known = dict(state_dict=_classifier(model.state_dict()), options=options)
    return _with_metadata(metadata['architecture'], known, metadata)


def _without_metadata(architecture: str, known: dict[str, Any], given: dict[str, Any]) -> SavedModel:
    """Describe a model without a metadata by `given`, then the options of timm's train.py, then the tensor shapes."""
    options, tensors = known['options'], known['state_dict']
    model_args = resolve_model_input_args(architecture, options, **{
        'num_classes': options.get('num_classes') or _width(architecture, 'classifier', tensors, 0),
        'in_chans': options.get('in_chans') or _width(architecture, 'first_conv', tensors, 1),
        'global_pool': options.get('gp'),
        'bn_momentum': options.get('bn_momentum'),
        'bn_eps': options.get('bn_eps'),
        **_model_args(options.get('model_kwargs') or {}),
        **given,
    })
    del model_args['model_name']
    saved = SavedModel(architecture, **_fields({'num_classes': 1000, **_model_args(model_args)}), **known)
    evaluation = {**_CROP_OF_TRAINING, **options} if options else {}
    saved.data_config = resolve_input_data_config(saved.create_model(), evaluation, use_test_size=not options)
    return saved


@contextmanager
def _damage_reported(path: str):
    """Turn errors about the description of a model in a file into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OSError) as error:
        raise CheckpointError(f'what {path} says of its model is damaged: {one_line(error)}') from error


def options_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that wrote a checkpoint, as stored; empty if it stores none."""
    args = checkpoint.get('args')
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, dict) else {}


def _images(checkpoint: dict[str, Any]) -> dict[str, int]:
    """Number of images of each split that the checkpoint of a run records."""
    data = (checkpoint.get(STATE) or {}).get('data') or {}
    counts = {split: (data.get(split) or {}).get('samples') for split in ('train', 'validation')}
    return {split: int(count) for split, count in counts.items() if count is not None}


def _model_args(saved: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name not in _NOT_OF_A_MODEL}


def _fields(model_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of create_model as fields of SavedModel."""
    fields: dict[str, Any] = {'model_args': dict(model_args)}
    for name in ('num_classes', 'in_chans', 'global_pool'):
        if name in model_args:
            fields[name] = fields['model_args'].pop(name)
    return fields


def _width(architecture: str, layer: str, tensors: dict[str, torch.Tensor], dim: int) -> int | None:
    """A dimension of the weights of a model's first 'classifier' or 'first_conv'; None if the file lacks the layer."""
    names = getattr(get_pretrained_cfg(architecture), layer, None) or ()
    name = names if isinstance(names, str) else next(iter(names), None)
    weight = tensors.get(f'{name}.weight')
    return weight.shape[dim] if weight is not None and weight.ndim > dim else None


def _read(path: str, mmap: bool = False) -> dict[str, Any]:
    """Read a file. For weights in a folder of timm's layout, add a metadata made from config.json beside them."""
    checkpoint = read_file(path, mmap)
    config = os.path.join(os.path.dirname(path), _CONFIG)
    if os.path.basename(path) not in _WEIGHTS or not os.path.isfile(config):
        return checkpoint
    with _damage_reported(config):
        with open(config, encoding='utf-8') as f:
            if 'architecture' not in json.load(f):  # of another library
                return checkpoint
        published, architecture, model_args = load_model_config_from_path(os.path.dirname(path) or '.')
        return {
            'state_dict': checkpoint,
            'args': noted_options(published),
            METADATA: {
                'architecture': architecture,
                'model_args': {'num_classes': published['num_classes'], **model_args},
                'class_names': known_names(published.get('label_names'), published['num_classes']),
                'data_config': resolve_data_config(pretrained_cfg=published, verbose=False),
                'versions': {},
                'metrics': {},
                'base': {'name': None, 'license': license_in_folder(os.path.dirname(path) or '.')
                         or license_name(published.get('license'))},
            }}


def load_weights(path: str, model: nn.Module, use_ema: bool = False) -> None:
    """Load all tensors of the classifier in a checkpoint or weights file.

    Raises:
        CheckpointError: See read_model.
    """
    _load_strictly(model, _tensors(_read(path), path, use_ema), path)


def saved_options(path: str) -> dict[str, Any]:
    """Return the options of the run that wrote a checkpoint; empty if the file holds none.

    Values of its metadata replace the options. The metadata has the model's name even if the options name a folder or
    repository, the values that timm resolved, and the content of the class map (a dict from class to index).
    """
    checkpoint = _read(path, mmap=True)
    if is_original(checkpoint):
        return original_options(checkpoint)
    options = options_in(checkpoint)
    if options:
        options.update(_CROP_OF_TRAINING)
    if METADATA in checkpoint:
        with _damage_reported(path):
            metadata = checkpoint[METADATA]
            model_args = _model_args(metadata['model_args'])
            options.update(
                metadata['data_config'], model=metadata['architecture'], gp=model_args.pop('global_pool', None))
            options.update((name, model_args.pop(name)) for name in ('num_classes', 'in_chans') if name in model_args)
            options['model_kwargs'] = model_args
            if options.get('class_map'):
                options['class_map'] = _class_map(metadata, options['class_map'])
    return options


def saved_run(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the resolved options of the run that wrote a file, and its metadata. Each is empty if the file has none.

    Raises:
        CheckpointError: As read_file.
    """
    checkpoint = _read(path, mmap=True)
    metadata = checkpoint.get(METADATA)
    return options_in(checkpoint), metadata if isinstance(metadata, dict) else {}


def _class_map(metadata: dict[str, Any], path: str) -> Any:
    """Return the class map of a run. Older runs recorded its path; if that is gone, use their class names."""
    if metadata.get('class_map'):
        return dict(metadata['class_map'])
    if os.path.exists(path) or not metadata['class_names']:
        return path
    return {name: index for index, name in enumerate(metadata['class_names'])}


def saved_metadata(path: str) -> dict[str, Any]:
    """Return the metadata in a checkpoint (see metadata.make_metadata); empty if it has none.

    Raises:
        CheckpointError: As read_file.
    """
    return saved_run(path)[1]


def _tensors(checkpoint: dict[str, Any], path: str, use_ema: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of the classifier in a file, by timm's names."""
    if is_original(checkpoint) and not use_ema:
        try:
            return original_to_timm(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f'{path}: {error}') from error
    keys = ('state_dict_ema', 'model_ema') if use_ema else ('state_dict', 'model')
    tensors = next((checkpoint[key] for key in keys if checkpoint.get(key) is not None), None)
    if tensors is None and use_ema:
        raise CheckpointError(f'{path} holds no EMA weights: drop --use-ema, or give --raw')
    tensors = checkpoint if tensors is None else tensors
    if not isinstance(tensors, dict) or not tensors or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()):
        raise CheckpointError(f'{path} holds no weights of a model')
    return _classifier(tensors)


def _classifier(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors as timm does. Drop the parts of split batch norm that are only used in training."""
    return {name: value for name, value in clean_state_dict(tensors).items() if '.aux_bn.' not in name}


def _load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], path: str) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        check_fit(tensors, model, source=path)
        raise CheckpointError(f'{path} does not load: {one_line(error)}') from error
