"""Decoding of files to images, with timm's pixels except for 16-bit gray, and the policy for damaged files."""
import copy
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, count
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from timm.data import ImageDataset, IterableImageDataset
from torch.utils.data import Dataset
from torchvision.datasets import VisionDataset

from ...base.errors import DamagedError
from ...base.text import one_line
from ...base.wrapping import Wrapper
from .damage import Damage
from .labels import NO_CLASS_OF_MAP, check_shards, label_error, to_target

# Names of timm's readers that decode images. Importing their modules needs further packages.
_DECODING_READERS = ('ReaderWds', 'ReaderHfids')

# By the value of the EXIF orientation, as in PIL.ImageOps.exif_transpose.
_TURNS = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90), 2))

_MOST_IN_A_ROW = 100  # number of successive damaged samples after which a deferred check is done


class UndecodableError(ValueError):
    """A file that is not a complete image. The message is the reason, without the path."""


def decode(file: BinaryIO, mode: str | None = 'RGB', exif_orientation: bool = False) -> Image.Image:
    """Decode a file like timm, by PIL's convert(mode), except 16-bit gray (see convert).

    Args:
        mode: PIL mode of the returned image. None or '' keeps the mode of the file.
        exif_orientation: Whether to turn or mirror the image as its EXIF orientation says.

    Raises:
        UndecodableError: PIL raised any error except MemoryError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # PIL raises an error at twice this size
            image: Image.Image = Image.open(file)
            turn = turn_of(image) if exif_orientation else None
            if mode:
                image = convert(image, mode)
            image.load()
            return image if turn is None else image.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make PIL's plugins raise SyntaxError, ValueError, TypeError and others
        raise UndecodableError(reason_of(error, file)) from error


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that the EXIF orientation of an opened file asks for, None if it asks for none."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data can make PIL raise anything
        return None


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image by PIL, except 16-bit gray, which is converted to its upper 8 bits. PIL would clip it."""
    if has_16_bits(image) and not mode.startswith(('I', 'F')):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def why_undecodable(reader: Any, index: int, mode: str = 'RGB') -> str:
    """Return why a damaged sample of a reader of timm cannot be decoded."""
    reader = copy.copy(reader)
    reader.cache_tarfiles = False  # loader workers that are forked later must not share an open tar file
    try:
        file, *_ = read_sample(reader, index)
        with closing(file):
            decode(file, mode)
    except UndecodableError as error:
        return str(error)
    except (OSError, tarfile.TarError) as error:
        return reason_of(error)
    return 'the second attempt to decode it succeeded'


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image has 16-bit gray: PIL's mode I;16, or mode I in PNG and PGM files."""
    return image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM'))


def read_sample(reader: Any, index: int) -> tuple[Any, ...]:
    """Return the open file of a sample, its target and its features, from a reader of timm.

    Raises:
        UndecodableError: The image of a sample of hfds/ is missing or empty.
        OSError, tarfile.TarError: The file cannot be opened.
    """
    try:
        return reader[index]
    except (AssertionError, TypeError) as error:
        if hasattr(reader, 'image_key') and not any((reader.dataset[index][reader.image_key] or {}).values()):
            raise UndecodableError('no image') from error
        raise


class DecodedDataset(ImageDataset):
    """timm's ImageDataset with decode(), and with Damage in place of timm's ten silent retries.

    A damaged sample is replaced by the next valid one, as in timm, or raises an error (see Damage). Images, targets and
    random draws are timm's.

    Args:
        reader: timm's reader of files and targets.
        max_damaged: Share of the samples, in [0, 1], that may be replaced. None allows no damaged sample.
        **kwargs: Arguments of timm.data.ImageDataset.

    Attributes:
        exif_orientation: Whether to turn images as their EXIF orientation says.
    """

    def __init__(self, reader, max_damaged: float | None = None, **kwargs):
        super().__init__(getattr(reader, 'root', ''), reader=reader, **kwargs)
        self.exif_orientation = False
        self.damage = Damage(reader, max_damaged)
        self.memory: Any = None  # see keep_decoded

    @property
    def decode(self) -> Callable:
        """Decoder of files: that of the transform if it works on arrays (see ArrayTransform), else decode()."""
        return getattr(self.transform, 'decode_pixels', decode)

    @property
    def batches(self) -> Callable | None:
        """Function that makes the samples of a batch, if the transform has one (see SmallBatches)."""
        return getattr(self.transform, 'batches', None)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, target, *features = self._next_sample(index)
        if self.transform is not None:
            image = self.transform(image)
        target = -1 if target is None else to_target(target, self.target_transform, partial(self._name, index))
        return (image, target) if self.additional_features is None else (image, target, *features)

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the samples of a batch, for torch's loaders. They are made together if that is faster."""
        batches = self.batches
        if batches is None or not indices or not self.memory.is_available:
            return [self[index] for index in indices]
        return batches(indices)

    def _next_sample(self, index: int) -> tuple[Any, ...]:
        for tried, number in enumerate(self._from(index), 1):
            try:
                return self.load(number)
            except UndecodableError as error:
                self.damage.record(number, str(error))
                if tried >= _MOST_IN_A_ROW:  # for example, if the disk was disconnected
                    self.damage.check()
        first = self.damage.path(next(self._from(index)))
        raise DamagedError(f"none of the {len(self)} samples can be decoded, such as '{first}'")

    def _from(self, index: int) -> Iterator[int]:
        """Iterate over the indices of all samples, from `index` to the end and then from 0."""
        first = range(len(self))[index]  # a negative index counts from the end
        return chain(range(first, len(self)), range(first))

    def _name(self, index: int) -> str:
        """Return the name of a sample, or of its replacement if it is damaged."""
        return self.damage.path(next(number for number in self._from(index) if not self.damage.flags[number]))

    def load(self, index: int) -> tuple[Any, ...]:
        """Return the image of a sample, its target and its features, without transforms.

        Raises:
            UndecodableError: The file cannot be read, or is not a complete image.
        """
        decoded = self.memory.get(index) if self.memory is not None else None
        if decoded is not None:
            pixels, target = decoded
            if self.decode is decode:
                return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), target
            return pixels, target
        try:
            file, *rest = read_sample(self.reader, index)
            if self.load_bytes:
                return file.read(), *rest
            return self.decode(file, self.input_img_mode, self.exif_orientation), *rest
        except (OSError, tarfile.TarError) as error:
            raise UndecodableError(reason_of(error)) from error


class ConvertedIterable(IterableImageDataset):
    """timm's IterableImageDataset with checked labels, and with convert() for readers that decode (wds/, hfids/).

    Args:
        dataset: timm's data set. Its reader is changed in place, so that it does not convert images.
    """

    def __init__(self, dataset: IterableImageDataset):
        super().__init__('', dataset.reader, transform=dataset.transform, target_transform=dataset.target_transform)
        self.exif_orientation = False
        self.num_classes: int | None = None  # outputs of the model, if known
        self.remaps = self.reader.remap_class
        self.input_img_mode = ''
        if type(self.reader).__name__ in _DECODING_READERS:
            self.input_img_mode, self.reader.input_img_mode = self.reader.input_img_mode, ''
        if type(self.reader).__name__ == 'ReaderWds':
            check_shards(self)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        samples = iter(self.reader)
        for number in count():
            try:
                image, label = next(samples)
            except StopIteration:
                return
            except UnidentifiedImageError:
                image = None
            except KeyError as error:
                if not self.remaps:
                    raise
                raise label_error(f'sample {number}', error.args[0], NO_CLASS_OF_MAP) from error
            if image is None:  # as in an empty row of hfids/
                raise DamagedError(f"'sample {number}' cannot be decoded: no image: repair or remove it")
            turn = turn_of(image) if self.exif_orientation else None
            image = convert(image, self.input_img_mode) if self.input_img_mode else image
            image = image if turn is None else image.transpose(turn)
            image = image if self.transform is None else self.transform(image)
            name = partial('sample {}'.format, number)
            yield image, to_target(label, self.target_transform, name, self.num_classes)


class ConvertedImages(Wrapper, Dataset):
    """A data set of torchvision whose images are arrays, such as MNIST, with images of another PIL mode.

    Args:
        dataset: Data set of torchvision, whose transform moves to this one.
    """
    wraps = 'source'

    def __init__(self, dataset: Any, mode: str):
        self.source = dataset
        self.input_img_mode = mode
        self.transform, dataset.transform = dataset.transform, None

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.source[index]
        image = convert(image, self.input_img_mode)
        return image if self.transform is None else self.transform(image), target


def _decode_path(dataset: Any, path: str) -> Image.Image:
    """Decode a file, as the `loader` of torchvision's data sets of files. The error names the file."""
    try:
        with open(path, 'rb') as file:
            return decode(file, dataset.input_img_mode, getattr(dataset, 'exif_orientation', False))
    except (UndecodableError, OSError) as error:
        raise DamagedError(f"'{path}' cannot be decoded: {reason_of(error)}: repair or remove it") from error


def with_policy(dataset: Any, max_damaged: float | None, mode: str | None = None) -> Any:
    """Return a data set of timm or torchvision with the decoding of this module.

    Args:
        mode: PIL mode of torchvision's images. None is RGB for files, and the mode of the data set for arrays.
    """
    if type(dataset) is IterableImageDataset:
        return ConvertedIterable(dataset)
    if type(dataset) is ImageDataset:
        names = ('load_bytes', 'input_img_mode', 'transform', 'target_transform', 'additional_features')
        return DecodedDataset(dataset.reader, max_damaged, **{name: getattr(dataset, name) for name in names})
    if hasattr(dataset, 'loader'):  # torchvision's data sets of files
        dataset.input_img_mode = mode or 'RGB'
        dataset.loader = partial(_decode_path, dataset)
    elif mode and isinstance(dataset, VisionDataset):
        return ConvertedImages(dataset, mode)
    return dataset


def damage_of(dataset: Dataset | None) -> Damage | None:
    """Return the Damage of a data set or of the data set that it wraps. None if there is none."""
    while dataset is not None and not hasattr(dataset, 'damage'):
        dataset = getattr(dataset, 'base_dataset', getattr(dataset, 'dataset', None))  # NaFlex, or Subset and others
    return getattr(dataset, 'damage', None)


def reason_of(error: Exception, file: BinaryIO | None = None) -> str:
    """Return why a file cannot be decoded, in one line without the path."""
    if isinstance(error, UnidentifiedImageError):
        empty = file is not None and file.seek(0, 2) == 0
        return 'empty file' if empty else 'not an image'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
