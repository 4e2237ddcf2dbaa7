"""Metrics of a run that an evaluation of the published model can repeat."""
import math
from collections.abc import Iterable, Mapping
from typing import Any

from .saved_model import SavedModel


def measured(saved: SavedModel) -> dict[str, float]:
    """Return the metrics to publish: those that are finite and that an evaluation can repeat."""
    if unrepeatable(saved):
        return {}
    return {name: value for name, value in saved.metrics.items() if math.isfinite(value)}


def unrepeatable(saved: SavedModel) -> str:
    """Return why an evaluation of the staged model cannot repeat that of its run, as the end of a sentence; else ''."""
    options = saved.options
    if (options.get('tta') or 0) > 1:
        return f'the run averaged the predictions of each {options["tta"]} images in a row (`--tta`)'
    if has_own_statistics(options, saved.state_dict):
        return "each process of the run evaluated with batch norm statistics of its own (`--dist-bn ''`)"
    if options.get('class_map') and not _names_hold(saved):
        return 'the class map of the run has names that are not those of the outputs (`--class-map`)'
    return ''


def has_own_statistics(options: Mapping[str, Any], tensors: Iterable[str]) -> bool:
    """Whether each rank of a run evaluated with its own batch norm statistics.

    Args:
        tensors: Names of the model's tensors.
    """
    apart = (options.get('world_size') or 1) > 1 and not (options.get('dist_bn', 'reduce') or options.get('sync_bn'))
    return apart and any(name.endswith('running_mean') for name in tensors)


def describe_input(options: Mapping[str, Any], data_config: Mapping[str, Any]) -> str:
    """Describe the images of an evaluation, as the end of a sentence: 'at 32 x 32, crop 0.9'.

    Args:
        data_config: Data configuration of the model, with input_size (C, H, W) and crop_pct.
    """
    mode = f", in {options['input_img_mode']}" if options.get('input_img_mode') else ''
    mode += ', turned as their EXIF orientation says' if options.get('exif_orientation') else ''
    if options.get('naflex_loader'):
        return f"of images in their own aspect at up to {options['naflex_max_seq_len']} patches (NaFlex){mode}"
    crop = data_config.get('crop_pct')
    return 'at {1} x {2}'.format(*data_config['input_size']) + (f', crop {crop:g}' if crop else '') + mode


def _names_hold(saved: SavedModel) -> bool:
    """Whether the names of the outputs give each class the index that the class map of the run gave it."""
    names = saved.class_names or []
    known = {name: index for index, name in enumerate(names)}
    return bool(names) and len(known) == len(names) and all(
        known.get(name) == index for name, index in (saved.class_map or {}).items())
