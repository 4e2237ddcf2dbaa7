"""What predictions say beyond accuracy: each class, which classes are taken for which, and what confidence is worth."""
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .calibration import CalibrationBins

# Classes of which a whole confusion matrix can still be looked at.
MOST_CLASSES = 30


class PerClass(NamedTuple):
    """Of each class [K]: precision, recall and F1 as shares, 0 where they are 0 / 0; numbers of images."""
    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor  # images of the class
    predicted: Tensor  # images that were taken for it

    def average(self, how: str) -> tuple[float, float, float]:
        """Precision, recall and F1 as one number each, as scikit-learn has it.

        Args:
            how: 'macro', the mean over classes that there are or that are predicted; 'weighted', by the number of
                images of each; 'micro', of all images as if they were of one class.
        """
        if how == 'micro':
            accuracy = ((self.recall * self.support).sum() / self.support.sum().clamp(min=1)).item()
            return accuracy, accuracy, accuracy
        weights = self.support if how == 'weighted' else self.support + self.predicted > 0
        weights = weights.double() / weights.sum().clamp(min=1)
        return tuple((weights * of_classes).sum().item() for of_classes in self[:3])


class Calibration(NamedTuple):
    """Bins of equal width over confidence, [bins] each but for `error`, the expected calibration error as a share."""
    error: float
    count: Tensor  # of images
    confidence: Tensor  # mean of the bin, 0 where it is empty
    accuracy: Tensor  # share of the bin that is right, 0 where it is empty


class Pair(NamedTuple):
    """A class, another that is predicted in its place, and of how many images."""
    target: int
    prediction: int
    count: int


@dataclass
class Analysis:
    """All of it, of one class an image."""
    per_class: PerClass
    calibration: Calibration
    confused: list[Pair]  # the most frequent first
    confusion: Tensor | None  # [K, K], None of more than MOST_CLASSES


def analyse(prediction: Tensor, confidence: Tensor, target: Tensor, num_classes: int) -> Analysis:
    """Analyse the predictions of a classifier.

    Args:
        prediction: Most probable class of each image [N].
        confidence: Its probability [N].
        target: True class of each image [N].
        num_classes: K; all classes are below it.
    """
    return Analysis(
        per_class(prediction, target, num_classes),
        calibration(confidence, prediction == target),
        confused_pairs(prediction, target, num_classes),
        confusion(prediction, target, num_classes) if num_classes <= MOST_CLASSES else None)


def confusion(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Images by true class (rows) and predicted class (columns) [K, K]."""
    pairs = target.long() * num_classes + prediction
    return torch.bincount(pairs, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def confused_pairs(prediction: Tensor, target: Tensor, num_classes: int, most: int = 20) -> list[Pair]:
    """The most frequent mistakes: the confusion matrix off its diagonal, which is never made for this."""
    wrong = prediction != target
    pairs, counts = (target.long() * num_classes + prediction)[wrong].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most]
    frequent = zip(pairs[order].tolist(), counts[order].tolist())
    return [Pair(*divmod(pair, num_classes), count) for pair, count in frequent]


def per_class(prediction: Tensor, target: Tensor, num_classes: int) -> PerClass:
    """Precision, recall and F1 of each class."""
    return shares(class_counts(prediction, target, num_classes))


def class_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Images of each class that are predicted right, that are taken for it, and that are of it [3, K]; they add up."""
    right = target[prediction == target]
    return torch.stack([torch.bincount(classes, minlength=num_classes) for classes in (right, prediction, target)])


def shares(counts: Tensor) -> PerClass:
    """Precision, recall and F1 of each class.

    Args:
        counts: See class_counts.
    """
    right, predicted, support = counts
    return PerClass(
        right.double() / predicted.clamp(min=1),
        right.double() / support.clamp(min=1),
        2 * right.double() / (predicted + support).clamp(min=1),
        support,
        predicted)


def calibration(confidence: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    """Expected calibration error (ECE), M. P. Naeini et al. 2015, with the bins of C. Guo et al., arXiv 1706.04599.

    Bin m of M holds the confidences in (m / M, (m + 1) / M]. The error is the mean over images of the distance between
    the confidence and the accuracy of their bins.

    Args:
        confidence: Probability of the predicted class of each image [N].
        correct: Whether that is the true class [N].
        bins: M.
    """
    totals = CalibrationBins(bins, confidence.device)
    totals.add(confidence, correct)
    error, of_bins = totals.compute()
    _, _, count, mean_confidence, accuracy = zip(*of_bins)
    return Calibration(error, torch.tensor(count), torch.tensor(mean_confidence, dtype=torch.double),
                       torch.tensor(accuracy, dtype=torch.double))
