"""Data sets: timm's factory, the built-in demo, and checks that fail before training does."""
import logging
import os
from collections import Counter
from importlib.resources import files
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import timm.data
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..command_line import listed
from .class_map import read_class_map
from .classes import ModelClasses, check_evaluation, class_names, class_outputs, class_to_idx  # noqa: F401
from .decoding import ConvertedIterable, DecodedDataset, with_policy
from .errors import DataError
from .folder import FolderReader, is_hidden
from .labels import check_column

_logger = logging.getLogger(__name__)

DEMO = 'demo'
TRAIN_SPLITS = ('train', 'training')
EVAL_SPLITS = ('val', 'valid', 'validation', 'eval', 'evaluation')
_SPLITS = (*TRAIN_SPLITS, *EVAL_SPLITS, 'test')
# Of timm's names of torchvision's data sets: those for which any split but train is the test set, and folders.
_TORCH_BASIC = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
_TORCH_FOLDERS = ('folder', 'image_folder')


class DemoDataset(Dataset):
    """The built-in demo: a class-balanced subset of Fashion-MNIST, 28 x 28, 10 classes; 1,000 images to train on and
    4,000 to validate on. Images and labels are under the MIT licence of Zalando SE (see LICENSE.fashion-mnist).

    Args:
        split: timm's name of a split, 'train' or 'validation' or a synonym.
        input_img_mode: PIL mode of the images, 'L' or 'RGB'.
    """

    def __init__(self, split: str = 'train', input_img_mode: str = 'RGB'):
        if split not in TRAIN_SPLITS + EVAL_SPLITS:
            raise DataError(f"the demo data has the splits train and validation, got '{split}'")
        part = 'train' if split in TRAIN_SPLITS else 'val'
        with files(__package__).joinpath('demo.npz').open('rb') as f, np.load(f, allow_pickle=False) as data:
            self.images, self.targets = data[f'{part}_images'], data[f'{part}_labels']
            self.class_to_idx = {str(name): i for i, name in enumerate(data['class_names'])}
        self.input_img_mode = input_img_mode
        self.transform = None
        self.target_transform = None

    def __getitem__(self, index: int):
        image, target = Image.fromarray(self.images[index]).convert(self.input_img_mode), int(self.targets[index])
        if self.transform is not None:
            image = self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)

    def __len__(self) -> int:
        return len(self.images)


def create_dataset(
        name: str,
        root: Optional[str] = None,
        split: str = 'validation',
        max_damaged: Optional[float] = None,
        **kwargs,
) -> Dataset:
    """timm.data.create_dataset, which see, and `name='demo'` for the built-in data. Folders have a reader of our own.

    Args:
        max_damaged: Share of the samples, in [0, 1], that may be replaced by the next because they cannot be decoded;
            None for an error at the first. Of data sets that are opened through timm's ImageDataset.

    Raises:
        DataError: no folder, or a folder without one for the split that holds folders for others: timm would read
            all of them as one data set.
    """
    if name == DEMO:
        return DemoDataset(split, kwargs.get('input_img_mode', 'RGB'))
    check_split(name, root, split)
    try:
        return _open(name, root, split, max_damaged, **kwargs)
    except DataError:
        raise
    except (RuntimeError, OSError, ValueError, AssertionError, KeyError) as error:  # timm asserts on unknown names
        raise DataError(f"--dataset '{name}', {root}, split '{split}': {error or type(error).__name__}") from error


def check_split(name: str, root: Optional[str], split: str) -> None:
    """Raise DataError for a split that is not there, or that timm would take for a whole one or for another one.

    The demo and data that knows its splits by name (hfds/, hfids/, tfds/, wds/) refuse other ones when opened.
    """
    torch_name = _torch_name(name)
    if name == DEMO or ('/' in name and torch_name is None):
        return
    if '[' in split:
        raise DataError(f'split {split!r}: only hfds/ and tfds/ take a part of a split: name a whole one, or a folder '
                        'that holds the part')
    if torch_name in _TORCH_BASIC and split not in _SPLITS:
        raise DataError(f'--dataset {name} has the splits train and validation, got {split!r}')
    if torch_name is None or torch_name in _TORCH_FOLDERS:
        check_root(root, split)


def check_root(root: Optional[str], split: str) -> None:
    """Raise DataError unless timm's folder reader finds `split` under `root`, or `root` is itself one split."""
    if not root:
        raise DataError('no data: give the folder of the data set, as DIR or --data-dir DIR, or --dataset demo')
    if not os.path.exists(root):
        raise DataError(f'no such folder or tar file: {root}')
    if not os.path.isdir(root):
        return
    if find_split(root, split):
        return
    others = [name for name in _folders(root) if name.lower() in _SPLITS]
    if others:
        raise DataError(f"{root} has no folder for split '{split}', only {', '.join(others)}: name the split to use"
                        + _hint_at_class(root, others[0]))


def find_split(root: str, split: str) -> Optional[str]:
    """What timm opens in the folder `root` for a split: its own name, else the first synonym; None without one."""
    synonyms = next((names for names in (TRAIN_SPLITS, EVAL_SPLITS) if split in names), ())
    return next(filter(os.path.exists, (os.path.join(root, name) for name in (split, *synonyms))), None)


def _folders(root: str) -> List[str]:
    """Names of the folders in a folder, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


def _hint_at_class(root: str, split: str) -> str:
    """The end of a message about the folder `split` of `root`: it may be a class of that name, beside others."""
    classes = [name for name in _folders(root) if name.lower() not in _SPLITS]
    if not classes:
        return ''
    return f'; if {split!r} is a class beside {_quoted(classes)}, sort all classes into folders train and val'


def _torch_name(name: str) -> Optional[str]:
    """timm's name of a torchvision data set, None for other kinds of data."""
    kind, slash, _ = name.partition('/')
    return name.split('/', 2)[-1].lower() if slash and kind.lower() == 'torch' else None


def _open(name: str, root: Optional[str], split: str, max_damaged: Optional[float], **kwargs) -> Dataset:
    """A data set by our reader of folders, and by timm's factory for all else."""
    in_folders = '/' not in name or _torch_name(name) in _TORCH_FOLDERS
    folder = root
    if in_folders and os.path.isdir(root) and kwargs.get('search_split', True):
        folder = find_split(root, split) or root
    kwargs['class_map'] = read_class_map(kwargs.get('class_map'), root, folder)
    if in_folders and os.path.isdir(folder):
        if '/' not in name:
            return _open_folder(folder, root, max_damaged, **kwargs)
        transforms = {key: kwargs.get(key) for key in ('transform', 'target_transform')}
        return with_policy(_TorchFolder(folder, **transforms), max_damaged)
    dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    if isinstance(getattr(dataset, 'reader', None), ReaderImageInTar):
        _leave_out_hidden(dataset.reader, renumber=not kwargs.get('class_map'))
    return with_policy(dataset, max_damaged)


def _open_folder(
        folder: str,
        root: str,
        max_damaged: Optional[float],
        class_map: Any = None,
        input_key: Optional[str] = None,
        target_key: Optional[str] = None,
        load_bytes: bool = False,
        input_img_mode: str = 'RGB',
        transform: Optional[Callable] = None,
        target_transform: Optional[Callable] = None,
        **_,
) -> Dataset:
    """timm's data set over our reader. What else create_dataset takes is for other kinds of data, to timm as well."""
    if target_key:
        raise DataError(f"--target-key '{target_key}': the targets of {folder} are its folders: leave the flag out")
    reader = FolderReader(folder, class_map, input_key)
    if reader.outside:
        raise _outside_of_classes(folder, reader.outside, root)
    return DecodedDataset(
        reader,
        max_damaged,
        load_bytes=load_bytes,
        input_img_mode=input_img_mode,
        transform=transform,
        target_transform=target_transform,
    )


def _outside_of_classes(source: str, image: str, root: Optional[str] = None) -> DataError:
    """The error for an image in no class folder, which timm makes a class without a name; `root` holds the split."""
    hint = '' if root in (None, source) else _hint_at_class(root, os.path.basename(source))
    return DataError(f'{source} has images outside of class folders, such as {image!r}: move each into the folder of '
                     f'its class, or out of {source}{hint}')


def _leave_out_hidden(reader: ReaderImageInTar, renumber: bool) -> None:
    """Leave out what is no image of timm's index of a tar file, see is_hidden.

    Args:
        reader: timm's reader, changed in place.
        renumber: Number the classes that remain, in timm's order.

    Raises:
        DataError: no images, or images outside of folders.
    """
    visible = np.array([not is_hidden(member.path) for member, *_ in reader.samples])
    if not visible.any():
        raise DataError(f'found 0 images in {reader.root}')
    if not visible.all():
        reader.samples, reader.targets = reader.samples[visible], reader.targets[visible]
        if renumber:
            kept, reader.targets = np.unique(reader.targets, return_inverse=True)
            reader.class_name_to_idx = {reader.class_idx_to_name[index]: new for new, index in enumerate(kept.tolist())}
            reader.class_idx_to_name = {index: name for name, index in reader.class_name_to_idx.items()}
    for name in ('', '.'):  # that timm gives the folder of 'image.jpg' and of './image.jpg'
        if name in reader.class_name_to_idx:
            first = reader.targets.tolist().index(reader.class_name_to_idx[name])
            raise _outside_of_classes(reader.root, reader.filename(first))


class _TorchFolder(ImageFolder):
    """torchvision's ImageFolder without hidden folders, AppleDouble files, and images that it would not read."""

    def __init__(self, root: str, **kwargs):
        self.other_files: Counter = Counter()  # as FolderReader.other_files
        super().__init__(root, is_valid_file=self._is_image, **kwargs)

    def find_classes(self, directory: str) -> Tuple[List[str], Dict[str, int]]:
        for entry in os.scandir(directory):
            if not entry.is_dir() and self._is_image(entry.path):
                raise _outside_of_classes(directory, entry.name)
        classes = _folders(directory)
        return classes, {name: index for index, name in enumerate(classes)}

    def _is_image(self, path: str) -> bool:
        visible = not is_hidden(os.path.relpath(path, self.root))
        if path.lower().endswith(IMG_EXTENSIONS):
            return visible
        if visible and not os.path.basename(path).startswith('.'):
            self.other_files[os.path.splitext(path)[1].lower()] += 1
        return False


def check_different(train: Dataset, validation: Dataset) -> None:
    """Raise DataError where timm, finding no folder for either split, opened the same images for both."""
    readers = [dataset if isinstance(dataset, _TorchFolder) else getattr(dataset, 'reader', None)
               for dataset in (train, validation)]
    # Readers of named splits have them all under one root.
    roots = [getattr(reader, 'root', None) for reader in readers if not _has_splits(reader)]
    if len(roots) == 2 and roots[0] is not None and roots[0] == roots[1]:
        raise DataError(f"{roots[0]} would be both training and validation data: sort it into folders train and val, "
                        "or train without validation, --val-split ''")


def check_classes(train: Dataset, validation: Optional[Dataset], num_classes: int, class_map: str = '') -> None:
    """Compare the classes of both splits, and their number with the width of the head.

    Args:
        train, validation: Data sets; those that do not know their classes are not checked.
        num_classes: Outputs of the model.
        class_map: The user's own map from class name to index; with one, splits may differ.

    Raises:
        DataError: class folders without an image, classes in one split alone, fewer outputs than classes, labels that
            are no output.
    """
    known = class_to_idx(train)
    if known:
        _check_known_classes(train, validation, known, num_classes, class_map)
    for dataset in (train, validation):
        check_labels(dataset, num_classes)
        for line in filter(None, (left_out(dataset), nested(dataset))):
            _logger.warning(line)


def check_evaluated_classes(
        dataset: Dataset,
        classes: Optional[ModelClasses],
        num_outputs: int,
        class_map: Any = '',
        valid_labels: Optional[Sequence[int]] = None,
) -> None:
    """Compare the classes of evaluation data with those of the model, whose head stays as it is.

    Args:
        classes: Those of the model, None where it does not name them.
        class_map: The map that the data was opened with.
        valid_labels: Output of the model for each class of the data; None for the outputs in their order.

    Raises:
        DataError: class folders without an image, labels that are no output, and as check_evaluation.
    """
    if not class_map:
        check_folders(dataset, None)
    for line in filter(None, (left_out(dataset), nested(dataset))):
        _logger.warning(line)
    check_evaluation(classes, class_outputs(dataset, valid_labels), num_outputs, valid_labels is None)
    check_labels(dataset, num_outputs if valid_labels is None else len(valid_labels), evaluation=True)


def _check_known_classes(
        train: Dataset,
        validation: Optional[Dataset],
        known: Dict[Any, int],
        num_classes: int,
        class_map: str,
) -> None:
    if not class_map:
        check_folders(train, validation)
    width = max(known.values()) + 1
    if num_classes < width:
        raise DataError(f'the data has {width} classes, the model {num_classes} outputs: use --num-classes {width}')
    if num_classes > width:
        _logger.warning(f'The data has {width} classes, the model {num_classes} outputs: --num-classes {width} fits.')


def check_labels(dataset: Optional[Dataset], num_classes: Optional[int], evaluation: bool = False) -> None:
    """Raise DataError for labels that are negative, or past the outputs of the model where that is not None.

    They are known for class maps, torchvision's data sets with `targets`, and integer columns of hfds/.

    Args:
        evaluation: Whether the model is trained already, so that its number of outputs cannot change.
    """
    check_column(dataset, num_classes)
    if isinstance(dataset, ConvertedIterable):
        dataset.num_classes = num_classes  # its labels are checked when they are read
    span = _label_span(dataset)
    if span is None:
        return
    low, high = span
    if low == 1 and high == num_classes:
        raise DataError(f'the data has the labels 1 to {high}: class indices count from 0: subtract 1')
    if low < 0:
        raise DataError(f'the data has the label {low}: labels count from 0; give --class-map or data with labels')
    if num_classes is not None and high >= num_classes:
        remedy = 'it is a model of other classes' if evaluation else f'use --num-classes {high + 1}'
        raise DataError(f'the data has labels up to {high}, the model {num_classes} outputs: {remedy}')


def nested(dataset: Optional[Dataset]) -> str:
    """A line on folders within class folders: timm takes the innermost folders for the classes. '' without any."""
    reader = getattr(dataset, 'reader', None)
    if isinstance(reader, FolderReader):
        folders = reader.folders
    elif isinstance(reader, ReaderImageInTar):
        folders = sorted({os.path.dirname(member.path) for member, *_ in reader.samples})
        common = os.path.commonpath(folders)  # of one class alone, the class itself
        folders = [os.path.relpath(folder, common) for folder in folders]
    else:
        return ''
    parts = [folder.split(os.sep) for folder in folders if os.sep in folder]
    if not parts:
        return ''
    inner, above = ({path[index]: None for path in parts} for index in (-1, -2))
    return (f'{reader.root}: classes are the innermost folders: {_quoted(inner)}, and not {_quoted(above)} '
            'above them')


def left_out(dataset: Optional[Dataset]) -> str:
    """A line on class folders with images that --class-map leaves out, '' without any."""
    names = getattr(getattr(dataset, 'reader', None), 'left_out', None)
    return f'{dataset.reader.root}: --class-map leaves out the images of {_quoted(sorted(names))}' if names else ''


def _label_span(dataset: Optional[Dataset]) -> Optional[Tuple[int, int]]:
    """Lowest and highest label, None where that would take reading the samples."""
    reader = getattr(dataset, 'reader', None)
    labels = getattr(dataset, 'targets', None)
    if isinstance(reader, FolderReader):
        labels = list(reader.class_to_idx.values())
    elif hasattr(reader, 'label_key') and not reader.remap_class:
        column = reader.dataset.features.get(reader.label_key)
        if getattr(column, 'dtype', '').startswith('int'):
            labels = reader.dataset.with_format('numpy')[reader.label_key][:]
    labels = np.asarray(labels if labels is not None else [])
    return (labels.min().item(), labels.max().item()) if labels.size and labels.dtype.kind in 'iu' else None


def check_folders(train: Dataset, validation: Optional[Dataset]) -> None:
    """Raise DataError for class folders without an image and for classes in one split alone."""
    for dataset in (train, validation):
        _check_empty_folders(dataset)
    _check_same_classes(class_to_idx(train), class_to_idx(validation))


def _has_splits(reader: Any) -> bool:
    """Whether timm's reader finds a split by its name (hfds/, hfids/, tfds/, wds/), not as a folder."""
    return hasattr(reader, 'split') or hasattr(reader, 'split_info')


def _check_empty_folders(dataset: Optional[Dataset]) -> None:
    """timm numbers the classes that have images: an empty folder shifts every label after it."""
    reader = getattr(dataset, 'reader', None)
    if isinstance(reader, FolderReader):
        folders = reader.folders
    elif isinstance(reader, ReaderImageFolder):
        folders = {os.path.dirname(path) for path, _ in reader.samples}
        folders = [os.path.relpath(folder, reader.root) for folder in folders]
    else:
        return
    root = reader.root
    filled = {folder.split(os.sep)[0] for folder in folders}
    empty = sorted(entry.name for entry in os.scandir(root)
                   if entry.is_dir() and entry.name not in filled and not entry.name.startswith('.'))
    if empty:
        raise DataError(f'{root}: no images in class folder(s) {_quoted(empty)}: fill or remove them')


def _check_same_classes(train: Dict[Any, int], validation: Dict[Any, int]) -> None:
    if not train or not validation:
        return
    trained, evaluated = (ModelClasses(f'the {split} split', [], list(known.items()))
                          for split, known in (('training', train), ('validation', validation)))
    moved, extra = trained.compare(validation)
    _, missing = evaluated.compare(train)
    if not (moved or extra or missing):
        return
    parts = [f'{_quoted(sorted(missing))} missing from the validation split'] if missing else []
    parts += [f'{_quoted(sorted(extra))} only in the validation split'] if extra else []
    raise DataError('the classes of the two splits differ: ' + '; '.join(parts or [trained.describe(moved)])
                    + ': make them equal, or give --class-map')


def _quoted(names: Iterable[Any]) -> str:
    """The first names in quotes, invisible characters as escapes."""
    return listed([repr(name) for name in names])
