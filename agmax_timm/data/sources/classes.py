"""Names of the classes of data and of a model's outputs, and the check that both have the same order."""
import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from ...base.class_labels import index_names
from ...base.errors import DataError
from ...base.text import listed

_logger = logging.getLogger(__name__)

_MOST_NAMES = 10


class MovedClassError(DataError):
    """The data has a class at another index than the model."""


@dataclass(frozen=True)
class Moved:
    """A class that the data and a model have at different indices."""
    name: str
    index: int
    index_of_model: int


@dataclass(frozen=True)
class ModelClasses:
    """Names of a model's outputs.

    Args:
        source: File or model that contains the names, for messages.
        names: Name of each output [K].
        others: Further pairs (name, index), because a class map can give an output several names.
        titles: Description of each output [K], such as the words for a synset. Descriptions count as names.
    """
    source: str
    names: Sequence[str]
    others: Sequence[tuple[Any, int]] = field(default=(), repr=False)
    titles: Sequence[str] = field(default=(), repr=False)

    @property
    def only_numbers(self) -> bool:
        """Whether the names of the outputs are their indices."""
        return bool(self.names) and list(self.names) == index_names(len(self.names))

    @property
    def count(self) -> int:
        """Number of classes. Further outputs were not trained, and their names are their indices."""
        named = [index for index, name in enumerate(self.names) if name != str(index)]
        return named[-1] + 1 if named else len(self.names)

    def compare(self, found: Mapping[Any, int]) -> tuple[list[Moved], dict[str, int]]:
        """Compare the classes of data with those of the model, by their names in Unicode's NFC form.

        Args:
            found: Index of each class of the data.

        Returns:
            (moved, unknown): Classes that the model has at another index, and the indices of classes that the model
            does not have. If the names of the model are only indices, no class is unknown.
        """
        known = self._outputs(normalised)
        moved, unknown = [], {}
        for name, index in sorted(found.items(), key=lambda item: item[1]):
            indices = known.get(normalised(name))
            if indices is None:
                unknown[name] = index
            elif index not in indices:
                moved.append(Moved(name, index, min(indices)))
        return moved, {} if self.only_numbers else unknown

    def class_map(self) -> dict[Any, int]:
        """Return the index of each name, without names that several outputs share."""
        return {name: min(indices) for name, indices in self._outputs().items() if len(indices) == 1}

    def _outputs(self, key: Callable = lambda name: name) -> dict[Any, set[int]]:
        """Return the outputs of each name."""
        outputs: dict[Any, set[int]] = {}
        named = ((name, index) for names in (self.names, self.titles) for index, name in enumerate(names))
        for name, index in (*named, *self.others):
            outputs.setdefault(key(name), set()).add(index)
        return outputs

    def describe(self, moved: Sequence[Moved]) -> str:
        """Return one line about the first moved class and the number of other moved classes."""
        first = moved[0]
        in_model = f' ({self.names[first.index]!r} in the model)' if first.index < len(self.names) else ''
        more = f'; {len(moved) - 1} more differ' if len(moved) > 1 else ''
        return (f"class {first.index} of the data is {first.name!r}{in_model}: '{self.source}' has {first.name!r} as "
                f'class {first.index_of_model}{more}')


def normalised(name: Any) -> Any:
    """Return the NFC form of a name, because file systems encode accents in two ways. Numbers are not changed."""
    return unicodedata.normalize('NFC', name) if isinstance(name, str) else name


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists have the same classes in the same order. The shorter list is continued by indices."""
    indices = index_names(max(len(names), len(others)))

    def padded(known: Sequence[str]) -> list[str]:
        return [*map(normalised, known), *indices[len(known):]]

    return padded(names) == padded(others)


def class_to_idx(dataset: Dataset | None) -> dict[Any, int]:
    """Return the index of each class by its name, or by its number in data with a class map. Empty if unknown."""
    reader = getattr(dataset, 'reader', None)
    # timm's tar reader has the attribute class_name_to_idx.
    known = (getattr(dataset, 'class_to_idx', None), getattr(reader, 'class_to_idx', None),
             getattr(reader, 'class_name_to_idx', None))
    source_names = getattr(reader, '_source_names', None) or {}
    return {source_names.get(name, name): index for name, index in (next(filter(None, known), None) or {}).items()}


def class_outputs(dataset: Dataset, valid_labels: Sequence[int] | None = None) -> dict[Any, int]:
    """Return the output of the model for each class of the data: that of `valid_labels`, else its own index."""
    found = class_to_idx(dataset)
    if valid_labels is None:
        return found
    return {name: valid_labels[index] for name, index in found.items() if 0 <= index < len(valid_labels)}


def class_names(dataset: Dataset | None) -> list[str] | None:
    """Return the class names by index, None if the data set does not know them."""
    known = class_to_idx(dataset)
    if not known or any(not isinstance(name, str) for name in known):
        return None
    names = {index: name for name, index in known.items()}
    return [names.get(i, str(i)) for i in range(max(names) + 1)]


def check_evaluation(
        classes: ModelClasses | None, found: Mapping[Any, int], num_outputs: int, in_order: bool = True) -> None:
    """Compare the classes of evaluation data with those of the model.

    Args:
        classes: Classes of the model, None if it does not name them.
        found: Index of each class of the data (see class_outputs); empty if unknown.
        in_order: Whether class i of the data is output i of the model, because the user gave no other outputs.

    Raises:
        DataError: The data has more classes than the model has outputs.
        MovedClassError: A class has another index than in the model, so that labels would be wrong.
    """
    if not found:
        return
    moved, unknown = classes.compare(found) if classes is not None else ([], {})
    if classes is not None and moved:
        raise MovedClassError(classes.describe(moved))
    width = max(found.values()) + 1
    if width > num_outputs:
        raise DataError(f'the data has {width} classes, the model {num_outputs} outputs: use a model of the same '
                        'classes')
    if classes is not None and unknown:
        name, index = next(iter(unknown.items()))
        more = f'; the model does not know {len(unknown) - 1} more classes of the data' if len(unknown) > 1 else ''
        _logger.warning(f"class {index} of the data is {name!r}, but {classes.names[index]!r} in '{classes.source}': "
                        f'check that both names mean the same class{more}')
    elif (classes is None or classes.only_numbers) and in_order and width < num_outputs:
        _logger.warning(f'The data has {width} classes, the model {num_outputs} outputs, whose names are not known: '
                        f'the labels are right only if the classes are the first {width} outputs.')


def summary(datasets: Mapping[str, Dataset | None]) -> str:
    """Return one line about the data: number of images and of ignored files in each split, and the classes."""
    parts = []
    for split, dataset in datasets.items():
        if dataset is not None:
            others = getattr(getattr(dataset, 'reader', dataset), 'other_files', {})
            parts.append(f'{split} {_length(dataset)} images{describe_others(others)}')
    names = next(filter(None, map(class_names, datasets.values())), None)
    return f"Data: {'; '.join(parts)}; {describe_names(names)}"


def describe_others(others: Mapping[str, int]) -> str:
    """Return the numbers of ignored files by ending, in brackets. '' if there are none."""
    counts = ', '.join(f"{count} {ending or 'without ending'}" for ending, count in sorted(others.items()))
    return f' (left out: {counts})' if counts else ''


def describe_names(names: Sequence[str] | None) -> str:
    """Return the number of classes and the first names."""
    if not names:
        return 'classes without names'
    return f'{len(names)} classes: {listed([*map(repr, names)], _MOST_NAMES)}'


def _length(dataset: Any) -> str:
    try:
        return str(len(dataset))
    except (TypeError, NotImplementedError):
        return 'an unknown number of'
