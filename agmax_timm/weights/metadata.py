"""Metadata of a checkpoint, with which its weights can be used again. It has plain types only; timm ignores it."""
import platform
from typing import Any

import timm
import torch
from timm.models import get_model_args, parse_model_name

from .. import __version__
from .released import timm_architecture


def make_metadata(
        model: Any,
        name: str,
        data_config: dict[str, Any],
        class_names: list[str] | None = None,
        metric_name: str = 'top1',
        class_map: dict[Any, int] | None = None,
        base: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return what is needed to use the weights of a model, in addition to the run's options, in plain types.

    Args:
        model: Classifier, as timm created it.
        name: Name with which the model was created.
        data_config: Preprocessing in evaluation: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.
        class_names: Class names by index, None if unknown. Further outputs are named by their index.
        metric_name: Metric that ranks the checkpoints.
        class_map: Content of --class-map, so that the file is not needed again; None without a class map.
        base: Weights that training started from, see base_model.find_base.
    """
    if parse_model_name(name)[0]:  # a folder or repository, which may be gone when the checkpoint is read
        name = model.pretrained_cfg['architecture']
    if class_names is not None:
        class_names = class_names + [str(i) for i in range(len(class_names), model.num_classes)]
    return {
        'architecture': timm_architecture(name),
        'model_args': get_model_args(model),
        'class_names': class_names,
        **({'class_map': class_map} if class_map else {}),
        'data_config': dict(data_config),
        'metric_name': metric_name,
        'base': base,
        'versions': {'agmax_timm': __version__, 'timm': timm.__version__, 'torch': str(torch.__version__),
                     'python': platform.python_version()},
        'metrics': {},
    }
