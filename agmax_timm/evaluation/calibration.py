"""Expected calibration error: the difference between the confidence of a classifier and its accuracy.

C. Guo and others, 'On Calibration of Modern Neural Networks', arXiv 1706.04599, section 2.
"""
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..base.distributed import sum_of_ranks, total_dtype


@dataclass(frozen=True)
class Bin:
    """Number, mean confidence and accuracy, in [0, 1], of the images with a confidence in (low, high]."""
    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """Expected calibration error in [0, 1], and the bins that it is computed from."""
    error: float
    bins: list[Bin]


class CalibrationBins:
    """Running totals of confidences and correct predictions in bins of equal width."""

    def __init__(self, bins: int = 15, device: torch.device | None = None):
        self.bins = bins
        # By bin: images, confidence, correct predictions.
        self.totals = torch.zeros(3, bins, dtype=total_dtype(device), device=device)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits [B, K], targets [B]."""
        confidence, prediction = logits.to(self.totals.dtype).softmax(1).max(1)
        self.add(confidence, prediction == target)

    def add(self, confidence: torch.Tensor, correct: torch.Tensor) -> None:
        """Add a batch: probability of the predicted class [B], and whether the prediction is correct [B]."""
        confidence = confidence.to(self.totals.dtype)
        place = (confidence * self.bins).ceil().long().sub_(1).clamp_(0, self.bins - 1)
        added = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence.dtype)])
        self.totals.index_add_(1, place, added)

    def compute(self, distributed: bool = False) -> Calibration:
        """Return the error and the bins; with `distributed`, over all ranks."""
        totals = sum_of_ranks(self.totals) if distributed else self.totals
        count, confidence, hits = totals.cpu()
        error = ((confidence - hits).abs().sum() / count.sum().clamp(min=1)).item()
        mean = totals.cpu() / count.clamp(min=1)
        return Calibration(error, [
            Bin(i / self.bins, (i + 1) / self.bins, int(count[i]), mean[1, i].item(), mean[2, i].item())
            for i in range(self.bins)])

