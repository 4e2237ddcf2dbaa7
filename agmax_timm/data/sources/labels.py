"""Labels as class indices. A label that is not exactly an index is an error, which names sample and value."""
import json
import reprlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from timm.data import MultiLabelTarget
from timm.data.readers.class_map import remap_target
from timm.data.readers.targets import get_field, has_field
from torch.utils.data import Dataset

from ...base.errors import LabelError

NO_CLASS_OF_MAP = 'it is not a class of --class-map: add it there, or leave its samples out of the data'


def class_index(label: Any, num_classes: int | None = None) -> int:
    """Convert a label to a class index. Bools and whole floats are accepted, because they are exact.

    Args:
        num_classes: Number of outputs of the model; None if unknown.

    Raises:
        ValueError: The label is not a class index. The message has the reason and the remedy.
    """
    if label is None:
        raise ValueError('it has no class: leave it out of the data, or label it')
    if isinstance(label, (str, bytes)):
        raise ValueError('a class index is a number: give --class-map FILE with a class name on each line')
    if isinstance(label, (list, tuple, dict)) or getattr(label, 'ndim', False):
        raise ValueError('one class index is expected: several labels of an image need --task multilabel')
    if isinstance(label, Integral):
        index = int(label)
    elif isinstance(label, (Real, np.bool_)) and float(label).is_integer():
        index = int(float(label))
    else:
        raise ValueError('a class index is a whole number: correct the label, or check --target-key')
    if index < 0:
        raise ValueError('class indices start at 0')
    if num_classes is not None and index >= num_classes:
        raise ValueError(f'the model has the classes 0 to {num_classes - 1}: subtract 1 if labels count from 1, or '
                         'train with a larger --num-classes')
    return index


def to_target(label: Any, transform: Callable | None, name: Callable[[], str], num_classes: int | None = None) -> Any:
    """Return the target for a label of timm's reader: its class index, or the result of the data set's transform.

    Raises:
        LabelError: The label is not an index, or MultiLabelTarget does not accept it. `name` names its sample.
    """
    if transform is not None and not isinstance(transform, MultiLabelTarget):
        return transform(label)
    try:
        return class_index(label, num_classes) if transform is None else transform(label)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # torch's errors for what is not a number
        raise label_error(name(), label, error) from error


def label_error(sample: str, label: Any, reason: Any) -> LabelError:
    return LabelError(f'{sample} has the label {reprlib.repr(label)}: {reason}')


def check_column(dataset: Any, num_classes: int | None = None) -> None:
    """Raise LabelError if a label of hfds/ is not a class index. Reads all labels, but no images.

    Args:
        dataset: Data set. Other kinds of data, and data with several labels per image, are not checked.
        num_classes: Number of outputs of the model; None if unknown.
    """
    reader: Any = getattr(dataset, 'reader', None)
    if not hasattr(reader, 'label_key') or isinstance(dataset.target_transform, MultiLabelTarget):
        return
    for number, label in enumerate(_labels(reader)):
        sample = f'sample {number} of split {reader.split!r}'
        try:
            index = remap_target(label, reader.class_to_idx, reader._source_names) if reader.remap_class else label
        except (KeyError, TypeError):
            raise label_error(sample, label, NO_CLASS_OF_MAP) from None
        try:
            class_index(index, num_classes)
        except ValueError as error:
            raise label_error(sample, label, error) from error


def _labels(reader: Any) -> Iterator[Any]:
    """Iterate over the labels of timm's reader of hfds/. Integer columns without nulls are skipped: they are valid."""
    key, rows = reader.label_key, reader.dataset
    if key in rows.features and not reader.remap_class:
        column = rows.with_format('arrow')[key]
        if not column.null_count and str(column.type).startswith(('int', 'uint')):
            return
    for row in rows.select_columns([key if key in rows.features else key.split('/')[0]]):
        yield get_field(row, key)


def check_shards(dataset: Any) -> None:
    """Make timm's data set of wds/ raise LabelError if a label is not a class index.

    timm leaves out samples whose label is a name, and truncates fractions.

    Args:
        dataset: Data set with timm's ReaderWds, which is changed in place. Its attribute `num_classes` is the number
            of outputs of the model, None if unknown.
    """
    dataset.reader._lazy_init = partial(_init_with_labels, dataset, dataset.reader)


def _init_with_labels(dataset: Dataset, reader: Any) -> None:
    import webdataset
    type(reader)._lazy_init(reader)
    reader.ds.pipeline.insert(-2, webdataset.map(partial(_with_index, dataset, reader)))  # before timm decodes


def _with_index(dataset: Any, reader: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Return a raw sample of a shard. Raise LabelError if its label is not a class index."""
    key = reader.target_keys or reader.target_key or reader.split_info.alt_label
    name = f"sample {sample['__key__']!r} of '{sample['__url__']}'"
    if not key:
        if 'cls' not in sample:
            return sample  # timm logs a warning and leaves it out
        label = sample['cls'].decode('utf-8', 'replace').strip()
    else:
        try:
            fields = json.loads(sample.get('json', '{}'))
        except ValueError:
            return sample  # timm logs a warning and leaves it out
        missing = [field for field in (key if isinstance(key, tuple) else [key]) if not has_field(fields, field)]
        if missing:
            there = ', '.join(map(repr, fields)) or 'none'
            raise LabelError(f'{name} has no field {missing[0]!r} in a json file, only {there}: check --target-key')
        label = None if isinstance(key, tuple) else get_field(fields, key)
        if isinstance(key, tuple) or isinstance(label, list) or label == -1:  # -1: timm leaves it out
            return sample
    try:
        index = class_index(_number(label), None if reader.remap_class else dataset.num_classes)
    except ValueError as error:
        raise label_error(name, label, error) from error
    return sample if key else {**sample, 'cls': b'%d' % index}


def _number(label: Any) -> Any:
    """Convert a label that is text to a number; other labels stay as they are."""
    if not isinstance(label, str):
        return label
    for kind in (int, float):
        with suppress(ValueError):
            return kind(label)
    raise ValueError('a class index is a number')
