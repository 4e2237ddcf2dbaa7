"""Classes that a model was trained on, from its checkpoint, its configuration or ImageNet's lists."""
import logging
from typing import Any

import torch
import torch.nn as nn
from timm import utils
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import parse_model_name
from torch.utils.data import Dataset

from ..base.distributed import is_primary
from ..base.errors import OptionError
from ..data.sources.classes import ModelClasses, class_to_idx
from ..options.model import TrainModel
from ..options.parsers import TrainOptions, ValidateOptions
from ..options.paths import CLASSES_OF_MODEL
from ..weights.checkpoint import metadata_in, read_checkpoint
from ..weights.synsets import describe
from .model_input import try_input

_logger = logging.getLogger(__name__)


def classes_of(model: Any, name: str, checkpoint: str = '') -> ModelClasses | None:
    """Return the classes of a model's outputs, or None if they are unknown.

    Args:
        model: Model that timm created.
        name: Name of the model in timm, or a folder or repository with its scheme.
        checkpoint: File of the weights; '' for the pretrained weights of the name.
    """
    if checkpoint:
        classes = classes_in(checkpoint)
        return classes if classes is not None and len(classes.names) == model.num_classes else None
    config = getattr(model, 'pretrained_cfg', None) or {}
    if config.get('num_classes') != model.num_classes:  # the head is new
        return None
    if config.get('label_names'):
        return _named(name, config['label_names'], model.num_classes, descriptions=config.get('label_descriptions'))
    return imagenet_classes(name, model.num_classes)


def classes_in(checkpoint: str) -> ModelClasses | None:
    """Return the classes that a checkpoint stores, or None if it stores none."""
    metadata = metadata_in(read_checkpoint(checkpoint, mmap=True))
    names = _by_index(metadata.get('class_names'))
    return _named(checkpoint, names, len(names), metadata.get('class_map'))


def imagenet_classes(name: str, num_classes: int) -> ModelClasses | None:
    """Return ImageNet's classes, by synset and by word, for timm's own weights; None for other models."""
    scheme, path = parse_model_name(name)[:2]
    subset = infer_imagenet_subset(dict(num_classes=num_classes))
    if subset is None or (scheme and not (scheme == 'hf-hub' and path.startswith('timm/'))):
        return None
    info = ImageNetInfo(subset)
    titles = info.label_descriptions()
    words = [(word, index) for index, title in enumerate(titles) for word in title.split(', ')]
    return ModelClasses(name, info.label_names(), words, list(titles))


def map_of_model(options: ValidateOptions, classes: ModelClasses | None) -> Any:
    """Return the class map of an evaluation: that of --class-map, or for `--class-map model` that of the model.

    Raises:
        OptionError: The names of the model's classes are unknown.
    """
    if options.class_map != CLASSES_OF_MODEL:
        return options.class_map
    if classes is None:
        raise OptionError(f"--class-map {CLASSES_OF_MODEL}: '{options.checkpoint or options.model}' does not name its "
                          'classes: give a file')
    return classes.class_map()


def _named(
        source: str,
        names: Any,
        num_classes: int,
        class_map: Any = None,
        descriptions: Any = None,
) -> ModelClasses | None:
    """Return ModelClasses from the fields of a file, or None unless it has one name for each output."""
    names = _by_index(names)
    if not names or len(names) != num_classes:
        return None
    if not isinstance(descriptions, dict):
        descriptions = describe(names)
    titles = [str(descriptions.get(name, name)) for name in names] if descriptions else []
    others = class_map.items() if isinstance(class_map, dict) else ()
    return ModelClasses(source, names, [item for item in others if isinstance(item[1], int)], titles)


def _by_index(names: Any) -> list[str]:
    """Return the names, a list or a dict by index, in the order of the outputs; empty if they are incomplete."""
    if isinstance(names, dict):
        indices = {str(index): name for index, name in names.items()}
        names = [indices.get(str(index)) for index in range(len(indices))]
    if not isinstance(names, (list, tuple)) or any(name is None for name in names):
        return []
    return list(map(str, names))


def warn_of_other_classes(options: TrainModel, model: nn.Module, dataset: Dataset) -> None:
    """Warn if the pretrained head has the classes of the data in another order. A resumed head is not pretrained."""
    if not (options.initial_checkpoint or options.pretrained) or options.resume or not is_primary():
        return
    flag = '--initial-checkpoint' if options.initial_checkpoint else '--pretrained'
    classes = classes_of(model, options.model, options.initial_checkpoint)
    if classes is not None and (moved := classes.compare(class_to_idx(dataset))[0]):
        _logger.warning(f'{flag}: {classes.describe(moved)}: the head starts with weights of other classes; a '
                        '--class-map in the order of the weights keeps them')


def check_teacher(options: TrainOptions, task: Any, dataset: Dataset, data_config: dict[str, Any]) -> None:
    """Check that a teacher of --kd-model-name fits the images and the classes of the data.

    Raises:
        OptionError: The teacher does not take images of a size or channels, or has a class of the data at another
            index.
    """
    if not options.kd_model_name:
        return
    teacher = utils.unwrap_model(task.teacher.model)
    try_input(options, teacher, data_config, teacher.num_classes, 'kd_model_name')
    channels, wrapped = data_config['input_size'][0], task.teacher
    alike = torch.equal(task.student_mean, wrapped.mean_kd) and torch.equal(task.student_std, wrapped.std_kd)
    if not (options.agmax or channels == 3 or alike):
        raise OptionError(f"--kd-model-name '{options.kd_model_name}' has another mean or std than '{options.model}', "
                          f'which needs 3 channels, got {channels}: use a teacher with the same mean and std, or add '
                          '--agmax')
    if options.kd_distill_type == 'feature':
        return
    config = getattr(teacher, 'pretrained_cfg', None) or {}
    if config.get('num_classes') != teacher.num_classes and is_primary():
        _logger.warning(f"--kd-model-name '{options.kd_model_name}' has weights of {config.get('num_classes')} "
                        f'classes, so its head of {teacher.num_classes} classes is untrained: train the teacher on '
                        'these classes first')
    classes = classes_of(teacher, options.kd_model_name)
    if classes is not None and (moved := classes.compare(class_to_idx(dataset))[0]):
        raise OptionError(f"--kd-model-name '{options.kd_model_name}': {classes.describe(moved)}: use a teacher of the "
                          'same classes, or a --class-map in its order')
