"""Checks of opened data sets before training: classes, class folders and labels."""
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset

from ...base.errors import DataError
from ...base.text import quoted
from .classes import ModelClasses, check_evaluation, class_outputs, class_to_idx
from .dataset_factory import TorchFolder, folders_in
from .decoding import ConvertedIterable
from .folder import FolderReader
from .labels import check_column

_logger = logging.getLogger(__name__)


def check_different(train: Dataset, validation: Dataset) -> None:
    """Raise DataError if timm found no folder for either split and opened the same images for both."""
    readers = [dataset if isinstance(dataset, TorchFolder) else getattr(dataset, 'reader', None)
               for dataset in (train, validation)]
    # timm's readers that find a split by its name (hfds/, hfids/, tfds/, wds/) have one root for all splits.
    roots = [getattr(reader, 'root', None) for reader in readers
             if not (hasattr(reader, 'split') or hasattr(reader, 'split_info'))]
    if len(roots) == 2 and roots[0] is not None and roots[0] == roots[1]:
        raise same_images(roots[0])


def same_images(root: str) -> DataError:
    return DataError(f"'{root}' would be both training and validation data: hold out a tenth, --val-split 0.1, "
                     "sort it into folders train and val, or train without validation: --val-split ''")


def check_classes(train: Dataset, validation: Dataset | None, num_classes: int, class_map: str = '') -> None:
    """Compare the classes of both splits, and their number with the outputs of the model.

    Args:
        train: Training data set. Data sets that do not know their classes are not checked.
        class_map: The user's map from class name to index. With a map, the splits may have different classes.

    Raises:
        DataError: A class folder has no image, a class is in only one split, the model has too few outputs, or a label
            is not an output.
    """
    known = class_to_idx(train)
    if known and not class_map:
        check_folders(train, validation)
    width = max(known.values()) + 1 if known else num_classes
    if num_classes < width:
        raise DataError(f'the data has {width} classes, the model {num_classes} outputs: use --num-classes {width}')
    if num_classes > width:
        _logger.warning(f'The data has {width} classes, the model {num_classes} outputs: use --num-classes {width}.')
    for dataset in (train, validation):
        check_labels(dataset, num_classes)
        _warn_of_folders(dataset)


def check_evaluated_classes(
        dataset: Dataset,
        classes: ModelClasses | None,
        num_outputs: int,
        class_map: Any = '',
        valid_labels: Sequence[int] | None = None,
) -> None:
    """Compare the classes of evaluation data with those of the model.

    Args:
        classes: Classes of the model, None if it does not name them.
        class_map: Class map with which the data was opened.
        valid_labels: Output of the model for each class of the data; None for the outputs in their order.

    Raises:
        DataError: A class folder has no image, a label is not an output, or check_evaluation finds an error.
    """
    if not class_map:
        check_folders(dataset, None)
    _warn_of_folders(dataset)
    check_evaluation(classes, class_outputs(dataset, valid_labels), num_outputs, valid_labels is None)
    check_labels(dataset, labels_of_model(dataset, classes, num_outputs, valid_labels), evaluation=True)


def labels_of_model(
        dataset: Dataset,
        classes: ModelClasses | None,
        num_outputs: int,
        valid_labels: Sequence[int] | None = None,
) -> int:
    """Return the number of labels of evaluation data: without class names, the classes that the model names."""
    if valid_labels is not None:
        return len(valid_labels)
    return min(classes.count, num_outputs) if classes is not None and not class_to_idx(dataset) else num_outputs


def _warn_of_folders(dataset: Dataset | None) -> None:
    for line in filter(None, (describe_left_out(dataset), describe_nested(dataset))):
        _logger.warning(line)


def check_labels(dataset: Any, num_classes: int | None, evaluation: bool = False) -> None:
    """Raise DataError for negative labels, and for labels that are not outputs of the model.

    Checks the labels that are known before samples are read: class maps, torchvision's data sets with `targets`, and
    integer columns of hfds/.

    Args:
        num_classes: Number of outputs of the model; None if unknown.
        evaluation: Whether the model is already trained, so that its number of outputs cannot change.
    """
    check_column(dataset, num_classes)
    if isinstance(dataset, ConvertedIterable):
        dataset.num_classes = num_classes  # its labels are checked when they are read
    span = _label_span(dataset)
    if span is None:
        return
    low, high = span
    if low == 1 and high == num_classes:
        raise DataError(f'the data has the labels 1 to {high}, but class indices start at 0: subtract 1')
    if low < 0:
        raise DataError(f'the data has the label {low}, but labels start at 0: give --class-map or data with labels')
    if num_classes is not None and high >= num_classes:
        outputs, remedy = 'outputs', f'use --num-classes {high + 1}'
        if evaluation:
            outputs, remedy = 'classes', 'use a model of the same classes'
        raise DataError(f'the data has labels up to {high}, the model {num_classes} {outputs}: {remedy}')


def describe_nested(dataset: Dataset | None) -> str:
    """Return a warning about folders in class folders, '' if there are none. As in timm, inner folders are classes."""
    reader = getattr(dataset, 'reader', None)
    if isinstance(reader, FolderReader):
        folders = reader.folders
    elif isinstance(reader, ReaderImageInTar):
        folders = sorted({os.path.dirname(member.path) for member, *_ in reader.samples})
        common = os.path.commonpath(folders)  # with a single class, its own folder
        folders = [os.path.relpath(folder, common) for folder in folders]
    else:
        return ''
    parts = [folder.split(os.sep) for folder in folders if os.sep in folder]
    if not parts:
        return ''
    inner, above = ({path[index]: None for path in parts} for index in (-1, -2))
    return (f"'{reader.root}': the classes are the innermost folders {quoted(inner)}, not the folders above, "
            f'{quoted(above)}: if those should be the classes, move the images up into them')


def describe_left_out(dataset: Dataset | None) -> str:
    """Return a warning about class folders with images that --class-map leaves out, '' if there are none."""
    reader: Any = getattr(dataset, 'reader', None)
    names = getattr(reader, 'left_out', None)
    return f"'{reader.root}': --class-map leaves out the images of {quoted(sorted(names))}" if names else ''


def _label_span(dataset: Dataset | None) -> tuple[int, int] | None:
    """Return the lowest and highest label. None if only the samples contain them."""
    reader: Any = getattr(dataset, 'reader', None)
    labels = getattr(dataset, 'targets', None)
    if isinstance(reader, FolderReader):
        labels = list(reader.class_to_idx.values())
    elif hasattr(reader, 'label_key') and not reader.remap_class:
        column = reader.dataset.features.get(reader.label_key)
        if getattr(column, 'dtype', '').startswith(('int', 'uint')):
            labels = reader.dataset.with_format('numpy')[reader.label_key][:]
    labels = np.asarray(labels if labels is not None else [])
    return (labels.min().item(), labels.max().item()) if labels.size and labels.dtype.kind in 'iu' else None


def check_folders(train: Dataset, validation: Dataset | None) -> None:
    """Raise DataError for class folders without an image, and for classes in only one split."""
    for dataset in (train, validation):
        _check_empty_folders(dataset)
    _check_same_classes(class_to_idx(train), class_to_idx(validation))


def _check_empty_folders(dataset: Dataset | None) -> None:
    """Raise DataError for class folders without an image. timm skips them, which shifts the following labels."""
    reader = getattr(dataset, 'reader', None)
    if not isinstance(reader, FolderReader):
        return
    filled = {folder.split(os.sep)[0] for folder in reader.folders}
    empty = [name for name in folders_in(reader.root) if name not in filled]
    if empty:
        raise DataError(f"'{reader.root}': no images in class folder(s) {quoted(empty)}: fill or remove them")


def _check_same_classes(train: dict[Any, int], validation: dict[Any, int]) -> None:
    if not train or not validation:
        return
    trained, evaluated = (ModelClasses(f'the {split} split', [], list(known.items()))
                          for split, known in (('training', train), ('validation', validation)))
    moved, extra = trained.compare(validation)
    _, missing = evaluated.compare(train)
    if not (moved or extra or missing):
        return
    parts = [f'{quoted(sorted(missing))} missing from the validation split'] if missing else []
    parts += [f'{quoted(sorted(extra))} only in the validation split'] if extra else []
    raise DataError('the classes of the two splits differ: ' + '; '.join(parts or [trained.describe(moved)])
                    + ': make them equal, or give --class-map')
