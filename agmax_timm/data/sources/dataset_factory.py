"""Creation of data sets: timm's factory with checks of its splits, readers of folders, and the built-in demo."""
import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import timm.data
from PIL import Image
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset
from torchvision.datasets import SVHN, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...base.errors import DataError
from ...base.hub_connection import single_attempt
from ...base.text import quoted
from .class_map import number_classes, read_class_map
from .decoding import DecodedDataset, with_policy
from .folder import FolderReader, is_hidden

DEMO = 'demo'
TRAIN_SPLITS = ('train', 'training')
EVAL_SPLITS = ('val', 'valid', 'validation', 'eval', 'evaluation')
_SPLITS = (*TRAIN_SPLITS, *EVAL_SPLITS, 'test')
# timm's names of torchvision's data sets. For the first ones, timm opens the test set for any split except train.
_TORCH_BASIC = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
_TORCH_FOLDERS = ('folder', 'image_folder')
# torchvision's parts of SVHN for each split. timm does not open SVHN.
_SVHN = {**dict.fromkeys(TRAIN_SPLITS, ['train']), **dict.fromkeys((*EVAL_SPLITS, 'test'), ['test']),
         'extra': ['extra'], 'train+extra': ['train', 'extra']}


class DemoDataset(Dataset):
    """The built-in demo: a class-balanced subset of Fashion-MNIST, 28 x 28 pixels, 10 classes.

    It has 1,000 training images and 4,000 validation images. Images and labels have the MIT licence of Zalando SE (see
    LICENSE.fashion-mnist).

    Args:
        split: 'train', 'validation' or a synonym of timm.
        input_img_mode: PIL mode of the images, 'L' or 'RGB'.
    """

    def __init__(self, split: str = 'train', input_img_mode: str = 'RGB'):
        if split not in TRAIN_SPLITS + EVAL_SPLITS:
            raise DataError(f"the demo data has the splits train and validation, got '{split}'")
        part = 'train' if split in TRAIN_SPLITS else 'val'
        with files('agmax_timm.data').joinpath('demo.npz').open('rb') as f, np.load(f, allow_pickle=False) as data:
            self.images, self.targets = data[f'{part}_images'], data[f'{part}_labels']
            self.class_to_idx = {str(name): i for i, name in enumerate(data['class_names'])}
        self.input_img_mode = input_img_mode
        self.transform: Callable[[Image.Image], Any] | None = None
        self.target_transform: Callable[[int], Any] | None = None

    def __getitem__(self, index: int):
        image, target = Image.fromarray(self.images[index]).convert(self.input_img_mode), int(self.targets[index])
        if self.transform is not None:
            image = self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)

    def __len__(self) -> int:
        return len(self.images)


def create_dataset(
        name: str,
        root: str | None = None,
        split: str = 'validation',
        max_damaged: float | None = None,
        exif_orientation: bool = False,
        **kwargs,
) -> Any:
    """Create a data set like timm.data.create_dataset, or the built-in data for `name='demo'`.

    A folder of images is read with a compact index, and its images can be kept in memory.

    Args:
        name: Kind of data set as in timm, such as 'hfds/NAME' or 'wds/NAME'. '' is a folder or a tar file.
        root: Folder or tar file of the data.
        split: Name of the split.
        max_damaged: Share of the samples, in [0, 1], that may be replaced because they cannot be decoded. None raises
            an error at the first one. Used by kinds that timm opens through its ImageDataset.
        exif_orientation: Whether to turn images as their EXIF orientation says. For folders, tar files, hfds/, wds/
            and files of torch/. hfids/ always does.
        **kwargs: Further arguments of timm.data.create_dataset.

    Raises:
        DataError: The data cannot be opened, or the root has no folder for the split but folders for others.
    """
    if name == DEMO:
        demo = DemoDataset(split, kwargs.get('input_img_mode', 'RGB'))
        demo.transform, demo.target_transform = kwargs.get('transform'), kwargs.get('target_transform')
        return demo
    check_split(name, root, split)
    try:
        with single_attempt('use a copy on this machine, --dataset hfds/FOLDER'):
            dataset = _open(name, root, split, max_damaged, **kwargs)
    except DataError:
        raise
    except (RuntimeError, OSError, ValueError, AssertionError, KeyError, tarfile.TarError) as error:  # timm may assert
        reason = str(error or type(error).__name__).replace('download=True', '--dataset-download')
        if reason == 'not enough values to unpack (expected 2, got 0)':  # timm's reader of tar files
            reason = f'found 0 images: images are files that end in {", ".join(timm.data.get_img_extensions())}'
        source = f'--dataset {name!r}, ' if name else ''
        raise DataError(f'{source}{root!r}, split {split!r}: {reason}') from error
    dataset.exif_orientation = exif_orientation
    return dataset


def check_split(name: str, root: str | None, split: str) -> None:
    """Raise DataError for a split that is missing, or for which timm would open other images.

    The demo and data with named splits (hfds/, hfids/, tfds/, wds/) are not checked, because opening them checks names.
    """
    torch_name = _torch_name(name)
    if name == DEMO or ('/' in name and torch_name is None):
        return
    if '[' in split:
        raise DataError(f'split {split!r}: only hfds/ and tfds/ take a part of a split: give a whole split, or a '
                        'folder with the part')
    if torch_name in _TORCH_BASIC and split not in _SPLITS:
        raise DataError(f"--dataset '{name}' has the splits train and validation, got {split!r}")
    if torch_name == 'svhn' and split not in _SVHN:
        raise DataError(f"--dataset '{name}' has the splits train, extra, train+extra and validation, got {split!r}")
    if torch_name is None or torch_name in _TORCH_FOLDERS:
        check_root(root, split)
    elif not root:
        raise DataError(f"--dataset '{name}': no folder for its files: give one, as DIR or --data-dir DIR")


def check_root(root: str | None, split: str) -> None:
    """Raise DataError unless timm's folder reader finds `split` under `root`, or `root` is itself one split."""
    if not root:
        raise DataError('no data: give the folder of the data set, as DIR or --data-dir DIR, or try -c demo')
    if not os.path.exists(root):
        raise DataError(f'no such folder or tar file: {root!r}: give the data as DIR or --data-dir DIR')
    if not os.path.isdir(root) or find_split(root, split):
        return
    others = [name for name in folders_in(root) if name.lower() in _SPLITS]
    if others:
        raise DataError(f"'{root}' has no folder for split '{split}', only {quoted(others)}: choose by --train-split "
                        'and --val-split (--split of validate.py), or hold out a share of the training images with '
                        '--val-split 0.1' + _hint_at_class(root, others[0]))


def find_split(root: str, split: str) -> str | None:
    """Return the folder of a split as timm finds it in `root`: the split's name, else a synonym. None if missing."""
    synonyms = next((names for names in (TRAIN_SPLITS, EVAL_SPLITS) if split in names), ())
    return next(filter(os.path.exists, (os.path.join(root, name) for name in (split, *synonyms))), None)


def folders_in(root: str) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


def _hint_at_class(root: str, split: str) -> str:
    """Return the end of a message about the folder `split`: it may be a class of that name."""
    classes = [name for name in folders_in(root) if name.lower() not in _SPLITS]
    if not classes:
        return ''
    return f'; if {split!r} is a class beside {quoted(classes)}, sort all classes into folders train and val'


def _torch_name(name: str) -> str | None:
    """Return timm's name of a torchvision data set, None for other kinds of data."""
    kind, slash, _ = name.partition('/')
    return name.split('/', 2)[-1].lower() if slash and kind.lower() == 'torch' else None


def _open(name: str, root: str | None, split: str, max_damaged: float | None, **kwargs) -> Any:
    """Open folders by FolderReader or TorchFolder, and other data by timm's factory."""
    mode = kwargs.get('input_img_mode')
    in_folders = '/' not in name or _torch_name(name) in _TORCH_FOLDERS
    folder = root or ''
    if in_folders and root and os.path.isdir(root) and kwargs.get('search_split', True):
        folder = find_split(root, split) or root
    class_map = kwargs['class_map'] = read_class_map(kwargs.get('class_map'), root, folder)
    if in_folders and os.path.isdir(folder):
        if '/' not in name:
            return _open_folder(folder, root, max_damaged, **kwargs)
        transforms = {key: kwargs.get(key) for key in ('transform', 'target_transform')}
        return with_policy(TorchFolder(folder, **transforms), max_damaged, mode)
    if _torch_name(name) == 'svhn':
        return with_policy(_open_svhn(root, split, **kwargs), max_damaged, mode)
    if '/' not in name:
        kwargs['class_map'] = None  # timm's reader of tar files would leave out other classes without a message
    dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    if isinstance(getattr(dataset, 'reader', None), ReaderImageInTar):
        _select_images(dataset.reader, class_map)
    if _torch_name(name) == 'qmnist':  # further columns of its targets describe the writers
        dataset.targets, dataset.compat = dataset.targets[:, 0].tolist(), False
    return with_policy(dataset, max_damaged, mode)


def _open_svhn(root: str | None, split: str, download: bool = False, **kwargs) -> SVHN:
    """Open the parts of SVHN that make up a split as one data set of torchvision."""
    transforms = {key: kwargs.get(key) for key in ('transform', 'target_transform')}
    try:
        dataset, *others = [SVHN(root or '', part, download=download, **transforms) for part in _SVHN[split]]
    except ImportError as error:
        raise DataError(f"--dataset torch/svhn needs '{error.name}': pip install 'agmax_timm[svhn]'") from error
    for other in others:
        dataset.data = np.concatenate([dataset.data, other.data])
        dataset.labels = np.concatenate([dataset.labels, other.labels])
    dataset.targets = dataset.labels.tolist()  # the name in torchvision's other data sets
    return dataset


def _open_folder(
        folder: str,
        root: str | None,
        max_damaged: float | None,
        class_map: Any = None,
        input_key: str | None = None,
        target_key: str | None = None,
        **kwargs,
) -> Dataset:
    """Open a folder by FolderReader. Other arguments of create_dataset are ignored, as in timm."""
    if target_key:
        raise DataError(f"--target-key '{target_key}': the targets of '{folder}' are its folders: omit the flag")
    reader = FolderReader(folder, class_map, input_key)
    if reader.outside:
        raise _outside_of_classes(folder, reader.outside, root)
    taken = ('load_bytes', 'input_img_mode', 'transform', 'target_transform')
    return DecodedDataset(reader, max_damaged, **{name: kwargs[name] for name in taken if name in kwargs})


def _outside_of_classes(source: str, image: str, root: str | None = None) -> DataError:
    """Return the error for an image of the split `source` outside of class folders. timm would name its class ''."""
    hint = '' if root in (None, source) else _hint_at_class(root, os.path.basename(source))
    return DataError(f"'{source}' has images outside of class folders, such as {image!r}: move each into the folder of "
                     f"its class, or out of '{source}'{hint}")


def _select_images(reader: Any, class_map: dict[Any, int] | None) -> None:
    """Remove hidden files and classes that a class map lacks from timm's index of a tar file. Number the others.

    The reader gets the attributes left_out and fingerprint of FolderReader.

    Args:
        reader: timm's ReaderImageInTar without a class map, changed in place.

    Raises:
        DataError: There are no images, or images outside of folders.
        RuntimeError: The class map has none of the folders.
    """
    visible = np.array([not is_hidden(member.path) for member, *_ in reader.samples])
    if not visible.any():
        raise DataError(f"found 0 images in '{reader.root}': hidden files and folders do not count")
    folders = [reader.class_idx_to_name[index] for index in range(len(reader.class_idx_to_name))]
    labels = {folders[index] for index in np.unique(reader.targets[visible]).tolist()}
    class_to_idx, reader.left_out = number_classes(labels, class_map, reader.root)
    kept = visible & np.array([folder in class_to_idx for folder in folders])[reader.targets]
    numbers = np.array([class_to_idx.get(folder, 0) for folder in folders])
    reader.samples, reader.targets = reader.samples[kept], numbers[reader.targets[kept]]
    reader.class_name_to_idx = class_to_idx
    reader.class_idx_to_name = {index: name for name, index in class_to_idx.items()}
    names = os.fsencode('\0'.join(member.path for member, *_ in reader.samples))
    reader.fingerprint = hashlib.blake2b(names, digest_size=16).hexdigest()
    for name in labels & {'', '.'} & set(class_to_idx):  # folders of 'image.jpg' and './image.jpg' in timm
        first = reader.targets.tolist().index(class_to_idx[name])
        raise _outside_of_classes(reader.root, reader.filename(first))


class TorchFolder(ImageFolder):
    """torchvision's ImageFolder without hidden folders and AppleDouble files.

    Raises DataError for images outside of class folders, which torchvision ignores.
    """

    def __init__(self, root: str, **kwargs):
        self.other_files: Counter = Counter()  # see FolderReader
        super().__init__(root, is_valid_file=self._is_image, **kwargs)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        for entry in os.scandir(directory):
            if not entry.is_dir() and self._is_image(entry.path):
                raise _outside_of_classes(directory, entry.name)
        classes = folders_in(directory)
        return classes, {name: index for index, name in enumerate(classes)}

    def _is_image(self, path: str) -> bool:
        visible = not is_hidden(os.path.relpath(path, self.root))
        if path.lower().endswith(IMG_EXTENSIONS):
            return visible
        if visible and not os.path.basename(path).startswith('.'):
            self.other_files[os.path.splitext(path)[1].lower()] += 1
        return False
