"""A trained classifier with all that reproduces it, read from a run or a file."""
import os
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.data import resolve_input_data_config
from timm.models import get_pretrained_cfg, is_model, resolve_model_input_args

from ..base.errors import CheckpointError
from ..base.text import one_line
from .checkpoint import (
    BEST,
    CROP_OF_TRAINING,
    METADATA,
    STATE,
    choose_ema,
    classifier_of,
    damage_reported,
    describe_weights,
    find_file,
    load_strictly,
    model_args_in,
    options_in,
    ranking_metric,
    read_checkpoint,
    tensors_in,
)
from .original import is_original
from .released import timm_architecture


@dataclass
class SavedModel:
    """A trained classifier with all that reproduces it."""
    architecture: str  # timm's model name, as given to create_model
    state_dict: dict[str, torch.Tensor]  # of the plain classifier
    num_classes: int
    in_chans: int = 3
    global_pool: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of create_model
    class_names: list[str] | None = None  # by index
    class_map: dict[Any, int] | None = None  # content of --class-map; None if the run stored none
    data_config: dict[str, Any] = field(default_factory=dict)  # input_size, interpolation, mean, std, crop_pct, _mode
    options: dict[str, Any] = field(default_factory=dict)  # resolved options of the run
    metrics: dict[str, float] = field(default_factory=dict)  # of these weights in validation; 'epoch'
    versions: dict[str, str] = field(default_factory=dict)  # of agmax_timm, timm, torch, python
    base: dict[str, str | None] | None = None  # see base_model.find_base; None if it is not recorded
    weights: str = ''  # which weights of the run they are, in words
    images: dict[str, int] = field(default_factory=dict)  # numbers of images: 'train', 'validation'
    chosen_by: str = ''  # the metric by which the run chose this epoch, '' for a last or single epoch
    source: str = ''  # the file it was read from
    run_dir: str | None = None  # the folder of the run, if the file was read from it

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
            place = f'{self.source!r}: ' if self.source else ''
            raise CheckpointError(
                f"{place}timm cannot build '{self.architecture}' with {args}: {one_line(error)}") from error
        load_strictly(model, self.state_dict, self.source)
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
    checkpoint = read_checkpoint(file)
    if is_original(checkpoint):
        raise CheckpointError(f"'{file}' is a checkpoint of the original AgMax: python -m agmax_timm.convert takes it")
    folder, options = os.path.dirname(file) or '.', options_in(checkpoint)
    use_ema = choose_ema(options, use_ema)
    known: dict[str, Any] = dict(
        state_dict=tensors_in(checkpoint, file, use_ema),
        options=options,
        weights=describe_weights(options, use_ema),
        source=file,
        run_dir=folder if os.path.isfile(os.path.join(folder, 'args.yaml')) else None,
        metrics={'epoch': checkpoint['epoch']} if isinstance(checkpoint.get('epoch'), int) else {},
    )
    metadata = checkpoint.get(METADATA)
    with damage_reported(file):
        saved_architecture = (metadata['architecture'] if metadata is not None
                              else options.get('model') or checkpoint.get('arch'))
        known['images'] = _images(checkpoint)
    architecture = architecture or saved_architecture
    if not isinstance(architecture, str) or ':' in architecture or not is_model(architecture):
        raise CheckpointError(f"'{file}' does not say which model of timm it holds"
                              f"{f' ({architecture!r} is none)' if architecture else ''}: name it with --model")
    if os.path.basename(file) == BEST:
        known['chosen_by'] = ranking_metric(checkpoint)
    given = {**({'num_classes': num_classes} if num_classes else {}), **model_args_in(model_kwargs or {})}
    if metadata is None:
        return _without_metadata(architecture, known, given)
    same_model = saved_architecture == timm_architecture(architecture)
    with damage_reported(file):
        if same_model and given.items() <= metadata['model_args'].items():
            known['metrics'].update(metadata['metrics'].get('ema' if use_ema else 'raw', {}))
        return _with_metadata(architecture, known, metadata, **given)


def model_of_metadata(metadata: dict[str, Any], model: nn.Module, options: dict[str, Any]) -> SavedModel:
    """Return what read_model returns for a checkpoint that the run would save now.

    Args:
        metadata: See metadata.make_metadata.
    """
    known = dict(state_dict=classifier_of(model.state_dict()), options=options)
    return _with_metadata(metadata['architecture'], known, metadata)


def _with_metadata(architecture: str, known: dict[str, Any], metadata: dict[str, Any], **given: Any) -> SavedModel:
    return SavedModel(
        architecture,
        **_fields({**metadata['model_args'], **given}),
        class_names=metadata['class_names'],
        class_map=metadata.get('class_map'),
        data_config=dict(metadata['data_config']),
        versions=dict(metadata['versions']),
        base=metadata.get('base'),
        **known,
    )


def _without_metadata(architecture: str, known: dict[str, Any], given: dict[str, Any]) -> SavedModel:
    """Describe a model without metadata by `given`, then the options of timm's train.py, then the tensor shapes."""
    options, tensors = known['options'], known['state_dict']
    described = {
        'num_classes': options.get('num_classes') or _width(architecture, 'classifier', tensors, 0),
        'in_chans': options.get('in_chans') or _width(architecture, 'first_conv', tensors, 1),
        'global_pool': options.get('gp'),
        'bn_momentum': options.get('bn_momentum'),
        'bn_eps': options.get('bn_eps'),
    }
    with damage_reported(known['source']):
        described.update(model_args_in(options.get('model_kwargs') or {}))
        model_args = resolve_model_input_args(architecture, options, **{**described, **given})
    del model_args['model_name']
    saved = SavedModel(architecture, **_fields({'num_classes': 1000, **model_args}), **known)
    evaluation = {**CROP_OF_TRAINING, **options} if options else {}
    model = saved.create_model()
    with damage_reported(known['source']):
        saved.data_config = resolve_input_data_config(model, evaluation, use_test_size=not options)
    return saved


def _width(architecture: str, layer: str, tensors: dict[str, torch.Tensor], dim: int) -> int | None:
    """Return a dimension of the weights of the first 'classifier' or 'first_conv', None if the file lacks the layer."""
    names = getattr(get_pretrained_cfg(architecture), layer, None) or ()
    name = names if isinstance(names, str) else next(iter(names), None)
    weight = tensors.get(f'{name}.weight')
    return weight.shape[dim] if weight is not None and weight.ndim > dim else None


def _images(checkpoint: dict[str, Any]) -> dict[str, int]:
    """Return the number of images of each split, as far as a checkpoint stores it."""
    data = (checkpoint.get(STATE) or {}).get('data') or {}
    counts = {split: (data.get(split) or {}).get('samples') for split in ('train', 'validation')}
    return {split: int(count) for split, count in counts.items() if count is not None}


def _fields(model_args: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of create_model as fields of SavedModel."""
    others = model_args_in(model_args)
    own: dict[str, Any] = {
        name: others.pop(name) for name in ('num_classes', 'in_chans', 'global_pool') if name in others}
    return {**own, 'model_args': others}
