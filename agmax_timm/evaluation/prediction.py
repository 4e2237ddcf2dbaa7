"""Predictions for image files: the k most probable classes, with the preprocessing of validate.py."""
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from timm.data.readers.reader import Reader

from ..assembly import datasets
from ..assembly import model as build
from ..base.errors import CheckpointError
from ..data.sources.decoding import DecodedDataset, UndecodableError, why_undecodable
from ..options import timm_names
from ..options.parse import validate_options
from ..options.parsers import ValidateOptions
from ..weights.checkpoint import choose_ema, describe_weights, saved_options
from ..weights.notes import SEVERAL_LABELS, noted_options
from ..weights.saved_model import read_model
from . import evaluated_model
from .evaluate import outputs_of


@dataclass
class Prediction:
    """The most probable classes of an image in descending order; empty if there is an `error`."""
    path: str
    classes: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    error: str = ''


class Predictor:
    """A classifier of image files.

    Args:
        options: Options of validate.py that name a model (see options_of).

    Raises:
        OptionError: The model or the device does not exist.
        CheckpointError: The checkpoint cannot be used.
    """

    def __init__(self, options: ValidateOptions):
        timm_names.check_device(options.device)
        self.subject = evaluated_model.prepare(options, build.init_device(options.device, single_process=True))
        self.options = options = self.subject.options
        self.weights = ''  # description of the checkpoint's weights; '' for pretrained weights
        if options.checkpoint:
            self.weights = f'{options.checkpoint}: {describe_weights(self.subject.run_options, options.use_ema)}'
        classes = self.subject.classes
        self.class_names = None if classes is None else classes.titles or classes.names
        published = {} if options.checkpoint else noted_options(self.subject.model.pretrained_cfg)
        self.several_labels = SEVERAL_LABELS in (options.task, published.get('task'))

    def name_of(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)

    def predict(self, paths: list[str], topk: int = 5) -> Iterator[Prediction]:
        """Yield the predictions of images in their order."""
        topk = min(topk, self.subject.num_classes)
        index = 0
        for dataset, logits in self._logits(paths):
            probabilities = logits.sigmoid() if self.several_labels else logits.softmax(dim=1)
            best = probabilities.topk(topk, dim=1)
            for classes, values in zip(best.indices.tolist(), best.values.tolist()):
                error = dataset.blank_reason(index)
                if not error and not all(0 <= value <= 1 for value in values):
                    error = 'the outputs of the model are not finite'
                yield Prediction(paths[index], error=error) if error else Prediction(paths[index], classes, values)
                index += 1

    def _logits(self, paths: list[str]) -> Iterator[tuple['ImageFiles', torch.Tensor]]:
        mode = datasets.image_mode(self.options, self.subject.data_config)
        dataset = ImageFiles(paths, mode, self.options.exif_orientation)
        subject, loader = self.subject, evaluated_model.build_loader(self.subject, dataset)
        for _, output, _ in outputs_of(subject.model, loader, self.options, subject.device, subject.precision):
            yield dataset, output.float().cpu()


class ImageFiles(DecodedDataset):
    """Image files without targets. An image that cannot be decoded is recorded and replaced by a blank one.

    Args:
        mode: PIL mode of the images.
        exif_orientation: Whether to turn images as their EXIF orientation says.
    """

    def __init__(self, paths: list[str], mode: str, exif_orientation: bool = False):
        super().__init__(_Files(paths), max_damaged=1., input_img_mode=mode)
        self.exif_orientation = exif_orientation

    def blank_reason(self, index: int) -> str:
        """Return why an image is blank, or '' if it is not. Call it after the batch of the image is loaded."""
        return why_undecodable(self.reader, index, self.input_img_mode) if self.damage.flags[index] else ''

    def _next_sample(self, index: int) -> tuple[Any, ...]:
        try:
            return self.load(index)
        except UndecodableError as error:
            self.damage.record(index, str(error))
            return Image.new(self.input_img_mode, (32, 32)), None


class _Files(Reader):
    """A timm reader for a list of paths."""

    def __init__(self, paths: list[str]):
        super().__init__()
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        return open(self.paths[index], 'rb'), None

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.paths[index]


def options_of(
        checkpoint: str = '',
        model: str | None = None,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **given: Any,
) -> ValidateOptions:
    """Return options of validate.py for a checkpoint, or for pretrained weights by the name of the model in timm.

    Args:
        checkpoint: Checkpoint file. Properties of the model that it does not store are derived from its tensors.
        model: Name of the model in timm, for a checkpoint that does not store it.
        num_classes, model_kwargs: Arguments of checkpoint.read_model.
        **given: Further options. If `use_ema` is None, the weights are those that the run ranked its epochs by.

    Raises:
        CheckpointError: The file cannot be read, or the name of its model is unknown.
    """
    if not checkpoint:
        return validate_options(model=model, pretrained=True, **given)
    saved = saved_options(checkpoint)
    if model is None and not saved.get('model'):
        raise CheckpointError(f"'{checkpoint}' does not say which model of timm it holds: name it with --model")
    use_ema = choose_ema(saved, given.pop('use_ema', False))
    known = dict(model=model, num_classes=num_classes, model_kwargs=model_kwargs)
    if not saved:
        weights = read_model(checkpoint, use_ema, 'best', model, num_classes, model_kwargs)
        known.update(num_classes=weights.num_classes, in_chans=weights.in_chans)
        if model_kwargs:  # they may include the input size
            given['input_size'] = weights.data_config['input_size']
    known = {name: value for name, value in known.items() if value is not None}
    return validate_options(checkpoint=checkpoint, use_ema=use_ema, **known, **given)


def image_endings(checkpoint: str) -> str | None:
    """Return --input-key of a run on an image folder: the file endings of its images. None for timm's endings."""
    saved = saved_options(checkpoint) if checkpoint else {}
    return None if saved.get('dataset') else saved.get('input_key')
