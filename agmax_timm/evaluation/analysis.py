"""Analysis of predictions: metrics of each class, confusion between classes, calibration."""
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .calibration import Calibration, CalibrationBins

# Largest number of classes whose confusion matrix is shown, and largest number of mistakes in the list of them.
MOST_CLASSES = 30
MOST_PAIRS = 20


class PerClass(NamedTuple):
    """Precision, recall and F1 of each class [K] in [0, 1] (0 for 0 / 0), and numbers of images [K]."""
    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor  # number of images of the class
    predicted: Tensor  # number of images that are predicted as the class

    def average(self, how: str) -> tuple[float, float, float]:
        """Return the averages of precision, recall and F1, as scikit-learn defines them.

        Args:
            how: 'macro': mean over the classes that occur or are predicted; 'weighted': mean weighted by the number
                of images of each class; 'micro': accuracy over all images.
        """
        if how == 'micro':
            accuracy = ((self.recall * self.support).sum() / self.support.sum().clamp(min=1)).item()
            return accuracy, accuracy, accuracy
        weights = self.support if how == 'weighted' else self.support + self.predicted > 0
        weights = weights.double() / weights.sum().clamp(min=1)
        precision, recall, f1 = ((weights * values).sum().item() for values in self[:3])
        return precision, recall, f1


@dataclass(frozen=True)
class Pair:
    """Number of images of one class that are predicted as another."""
    target: int
    prediction: int
    count: int


@dataclass
class Analysis:
    """Analysis of predictions for data with one class per image."""
    per_class: PerClass
    calibration: Calibration
    confused: list[Pair]  # most frequent mistakes first
    confusion: Tensor | None  # [K, K]; None for more than MOST_CLASSES classes


def analyse(prediction: Tensor, confidence: Tensor, target: Tensor, num_classes: int) -> Analysis:
    """Analyse the predictions of a classifier.

    Args:
        prediction: Most probable class of each image [N].
        confidence: Probability of that class [N].
        target: True class of each image [N].
        num_classes: Number of classes K.
    """
    bins = CalibrationBins(device=confidence.device)
    bins.add(confidence, prediction == target)
    return Analysis(
        per_class(class_counts(prediction, target, num_classes)),
        bins.compute(),
        confused_pairs(prediction, target, num_classes),
        confusion(prediction, target, num_classes) if num_classes <= MOST_CLASSES else None)


def confusion(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return the number of images by true class (rows) and predicted class (columns) [K, K]."""
    pairs = target.long() * num_classes + prediction
    return torch.bincount(pairs, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def confused_pairs(prediction: Tensor, target: Tensor, num_classes: int) -> list[Pair]:
    """Return the MOST_PAIRS most frequent mistakes. The confusion matrix [K, K] is not built: K may be large."""
    wrong = prediction != target
    pairs, counts = (target.long() * num_classes + prediction)[wrong].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_PAIRS]
    frequent = zip(pairs[order].tolist(), counts[order].tolist())
    return [Pair(pair // num_classes, pair % num_classes, count) for pair, count in frequent]


def class_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return true positives, predictions and images of each class [3, K]. Counts of batches can be added."""
    right = target[prediction == target]
    return torch.stack([torch.bincount(classes, minlength=num_classes) for classes in (right, prediction, target)])


def per_class(counts: Tensor) -> PerClass:
    """Return precision, recall and F1 of each class from the result of class_counts."""
    right, predicted, support = counts
    return PerClass(
        right.double() / predicted.clamp(min=1),
        right.double() / support.clamp(min=1),
        2 * right.double() / (predicted + support).clamp(min=1),
        support,
        predicted)

