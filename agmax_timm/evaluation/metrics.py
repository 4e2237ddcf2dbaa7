"""Evaluators: timm's, extended by the classes, labels and metrics that the options name."""
import os
from typing import Any

import torch
from timm.data import MultiLabelTarget, RealLabelsImagenet
from timm.task import ClassificationEvaluator, MultiLabelClassificationEvaluator, evaluation_sample_limit
from torch.utils.data import Dataset

from ..base.distributed import gather_objects, rank, sum_of_ranks, world_size
from ..base.errors import DataError, OptionError
from ..base.text_file import read_text, without_mark
from ..data.sources.checks import check_evaluated_classes
from ..data.sources.classes import ModelClasses, check_evaluation, class_names, class_to_idx
from ..options.data_kinds import kind_of
from ..options.evaluation import Labels
from ..options.parsers import ValidateOptions
from .analysis import class_counts, per_class
from .calibration import CalibrationBins


class LabelEvaluator(ClassificationEvaluator):
    """timm's evaluator for one class per image, with a subset of the outputs, real labels and further metrics.

    Args:
        max_samples: Number of images of this rank, without the padding of a distributed sampler.
        valid_labels: Output of the model for each class of the data; None for all outputs in their order.
        real_labels: timm's real labels for the files of this rank in their order. Top-1 and top-5 then refer to them.
        average: Average of precision, recall and F1: 'micro', 'macro' or 'weighted'; None for no such metrics.
        calibration: Whether to compute the expected calibration error, from the outputs that the loss uses.
    """

    def __init__(
            self,
            device: torch.device,
            *,
            max_samples: int | None,
            valid_labels: list[int] | None,
            real_labels: RealLabelsImagenet | None,
            average: str | None,
            calibration: bool,
    ):
        self.calibration = calibration
        self.valid_labels = valid_labels
        self.real_labels = real_labels
        self.average = average
        super().__init__(device, max_samples=max_samples)

    def reset(self) -> None:
        super().reset()
        self.class_counts: torch.Tensor | None = None  # sum of class_counts() over the batches
        self.bins = CalibrationBins(device=self.device) if self.calibration else None

    @torch.no_grad()
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits [B, outputs of the model], targets [B]."""
        if self.max_samples is not None:
            count = max(0, self.max_samples - self.num_samples)
            output, target = output[:count], target[:count]
        chosen = output if self.valid_labels is None else output[:, self.valid_labels]
        if self.real_labels is not None and len(output):
            if self.valid_labels is not None:  # real labels are indices of all outputs
                output = torch.full_like(output, -torch.inf)
                output[:, self.valid_labels] = chosen
            self.real_labels.add_result(output)
        super().update(chosen, target)
        if self.bins is not None:
            self.bins.update(chosen, target)
        if self.average is not None:
            counts = class_counts(chosen.argmax(1), target, chosen.shape[1])
            self.class_counts = counts if self.class_counts is None else self.class_counts + counts

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """Return metrics, in percent except the loss; with `distributed`, over all ranks."""
        metrics = super().compute(distributed)
        if self.real_labels is not None:
            metrics.update(self._real_accuracy(distributed))
        if self.average is not None:
            metrics.update(self._precision_and_recall(distributed))
        if self.bins is not None:
            metrics['ece'] = 100. * self.bins.compute(distributed).error
        return metrics

    def _real_accuracy(self, distributed: bool) -> dict[str, float]:
        assert self.real_labels is not None
        hits = [self.real_labels.is_correct[k] for k in self.real_labels.topk]
        counts = torch.tensor([len(hits[0])] + [sum(map(int, hit)) for hit in hits], device=self.device)
        count, top1, top5 = (sum_of_ranks(counts) if distributed else counts).tolist()
        return dict(top1=100 * top1 / max(1, count), top5=100 * top5 / max(1, count))

    def _precision_and_recall(self, distributed: bool) -> dict[str, float]:
        assert self.average is not None
        # A rank without a batch does not know the number of classes.
        own = None if self.class_counts is None else self.class_counts.cpu()
        counts = gather_objects(own) if distributed else [own]
        total = torch.stack([count for count in counts if count is not None]).sum(0)
        averages = per_class(total).average(self.average)
        names = (f'{self.average}_{name}' for name in ('precision', 'recall', 'f1_score'))
        return {name: 100. * value for name, value in zip(names, averages)}


def set_targets(
        options: ValidateOptions,
        dataset: Any,
        num_classes: int,
        classes: ModelClasses | None = None,
) -> None:
    """Set the targets of the data set for the task, and compare its classes with those of the model.

    Args:
        classes: Classes of the model, None if unknown.

    Raises:
        DataError: The data has more classes than the model has outputs or --valid-labels has lines, or the model
            has a class at another index.
    """
    if options.task == 'multilabel':
        if kind_of(options) in ('folder', 'tar', 'demo'):  # the task is adopted from the checkpoint
            raise DataError(f"the model gives several labels per image, --dataset '{options.dataset}' holds one: use "
                            '--task classification, or data with several')
        check_evaluation(classes, class_to_idx(dataset), num_classes)
        dataset.target_transform = MultiLabelTarget(num_classes, dense=options.target_format == 'multihot')
        return
    if not options.valid_labels:
        check_evaluated_classes(dataset, classes, num_classes, options.class_map)
        return
    outputs, found = read_valid_labels(options.valid_labels, num_classes), len(class_names(dataset) or ())
    if found > len(outputs):
        raise DataError(f"--valid-labels '{options.valid_labels}' has {len(outputs)} lines, the data {found} "
                        'classes: it takes one line per class, in the order of the classes')
    _check_subset(options.valid_labels, class_names(dataset))
    check_evaluated_classes(dataset, classes, num_classes, options.class_map, outputs)


def _check_subset(path: str, classes: list[str] | None) -> None:
    """Raise DataError if the data has other classes than timm's file of indices, whose synsets are in a second file."""
    names = path.replace('_indices.txt', '_synsets.txt')
    if classes is None or names == path or not os.path.isfile(names):
        return
    expected = read_text(names).split()
    other = sorted(set(classes) ^ set(expected))
    if classes != expected:
        raise DataError(f"--valid-labels '{os.path.basename(path)}' is for {len(expected)} classes by the names of "
                        f"their folders, from {expected[0]} on; the data has {len(classes)}"
                        + (f", and '{other[0]}' is only in one of both" if other else ' in another order'))


def create_evaluator(
        options: ValidateOptions,
        dataset: Dataset,
        loader: Any,
        num_classes: int,
        device: torch.device,
) -> ClassificationEvaluator:
    """Create the evaluator for the task: one class or several labels per image."""
    max_samples = evaluation_sample_limit(loader)
    if options.task == 'multilabel':
        return MultiLabelClassificationEvaluator(
            device, threshold=options.multilabel_threshold, max_samples=max_samples)
    return LabelEvaluator(
        device,
        max_samples=max_samples,
        valid_labels=labels_of_data(options, num_classes),
        real_labels=open_real_labels(options, dataset, num_classes) if options.real_labels else None,
        average=options.metrics_avg,
        calibration=options.calibration,
    )


def labels_of_data(options: Labels, num_outputs: int) -> list[int] | None:
    """Return the output of the model for each class of the data, or None for all outputs in their order."""
    return read_valid_labels(options.valid_labels, num_outputs) if options.valid_labels else None


def read_valid_labels(path: str, num_outputs: int) -> list[int]:
    """Read a file with one line per class of the data: the index of its output of the model.

    Raises:
        OptionError: The file cannot be read, or a line is not the index of an output.
    """
    try:
        lines = read_text(path).split('\n')
    except (OSError, ValueError) as error:
        raise OptionError(f"--valid-labels '{path}': {error}") from error
    outputs: dict[int, int] = {}  # line number by output
    for number, line in enumerate(lines, 1):
        for word in line.split():
            where = f"--valid-labels '{path}', line {number}"
            if not word.isdecimal() or int(word) >= num_outputs:
                raise OptionError(f'{where}: {word!r} is not an output of the model, which has 0 to {num_outputs - 1}: '
                                  'a line has the output for one class of the data')
            if int(word) in outputs:
                raise OptionError(f"{where}: '{word}' is in line {outputs[int(word)]} as well: an output can stand for "
                                  'one class')
            outputs[int(word)] = number
    if not outputs:
        raise OptionError(f"--valid-labels '{path}' is empty: write a line with the output of the model for "
                          'each class of the data')
    return list(outputs)


def open_real_labels(options: Labels, dataset: Any, num_outputs: int) -> RealLabelsImagenet:
    """Open timm's real labels for the files that this rank evaluates.

    Raises:
        OptionError: The data has no file names, or it is not ImageNet's validation set.
    """
    path = options.real_labels
    try:
        files = dataset.filenames(basename=True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"--real-labels '{path}' needs file names, which this data set does not have: use a folder "
                          'or tar file') from error
    try:
        with without_mark(path) as readable:
            labels = RealLabelsImagenet(files, real_json=readable, topk=(1, min(5, num_outputs)))
    except AssertionError as error:
        raise OptionError(f"--real-labels '{path}' is not for these {len(files)} images: it has another number of "
                          'labels') from error
    except (OSError, ValueError) as error:
        raise OptionError(f"--real-labels '{path}': {error}") from error
    unknown = next((name for name in files if name not in labels.real_labels), None)
    if unknown is not None:
        raise OptionError(f"--real-labels '{path}' is for ILSVRC2012_val_00000001.JPEG and on, the data has "
                          f"'{unknown}'")
    labels.filenames = files[rank()::world_size()]  # as in the distributed sampler
    return labels
