"""Predictions for all images of an evaluation, and the most confident mistakes."""
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.loading.device import Input
from ..data.pictures import ToPicture
from .analysis import Analysis, analyse

MOST_MISTAKES = 24  # with a picture


@dataclass
class Mistake:
    """A misclassified image."""
    index: int  # index in the data set
    target: int
    prediction: int
    confidence: float
    picture: Image.Image  # input of the model as an image


class Outcomes:
    """Prediction, confidence and target of each image, and pictures of the most confident mistakes.

    Args:
        to_picture: Function that converts an input of the model to an image.
    """

    def __init__(self, to_picture: ToPicture):
        self.to_picture = to_picture
        self.count = 0
        self.mistakes: list[Mistake] = []  # most confident first
        self._batches: list[torch.Tensor] = []

    def update(self, input: Input, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: input of the model, logits [B, K], true classes [B]."""
        confidence, prediction = output.float().softmax(dim=1).nan_to_num(0.).max(dim=1)
        wrong = (prediction != target).nonzero().flatten()
        least = self.mistakes[-1].confidence if len(self.mistakes) == MOST_MISTAKES else -1.
        for i in wrong[confidence[wrong].argsort(descending=True)][:MOST_MISTAKES].tolist():
            if confidence[i] <= least:
                break
            self.mistakes.append(Mistake(self.count + i, int(target[i]), int(prediction[i]), float(confidence[i]),
                                         self.to_picture(input, i)))
        self.mistakes = sorted(self.mistakes, key=lambda mistake: -mistake.confidence)[:MOST_MISTAKES]
        self.count += len(target)
        self._batches.append(torch.stack([prediction.double(), confidence.double(), target.double()]).cpu())

    def analyse(self, num_classes: int) -> Analysis:
        """Return the analysis of all images so far."""
        prediction, confidence, target = torch.cat(self._batches, dim=1) if self._batches else torch.zeros(3, 0)
        return analyse(prediction.long(), confidence, target.long(), num_classes)
