"""What became of each image of an evaluation, and the mistakes that the model was most sure of."""
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.device import Input
from ..data.pictures import ToPicture
from .analysis import Analysis, analyse


@dataclass
class Mistake:
    """An image that was taken for another class."""
    index: int  # in the data
    target: int
    prediction: int
    confidence: float
    picture: Image.Image  # as the network saw it


class Outcomes:
    """Keeps three numbers an image, and pictures of the most confident mistakes.

    Args:
        to_picture: Makes pictures of what the model sees.
        most: Mistakes to keep.
    """

    def __init__(self, to_picture: ToPicture, most: int = 24):
        self.to_picture = to_picture
        self.most = most
        self.count = 0
        self.mistakes: list[Mistake] = []  # the most confident first
        self._batches: list[torch.Tensor] = []

    def update(self, input: Input, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: what the model saw, its logits [B, K], true classes [B]."""
        confidence, prediction = output.float().softmax(dim=1).nan_to_num(0.).max(dim=1)
        wrong = (prediction != target).nonzero().flatten()
        surest = wrong[confidence[wrong].argsort(descending=True)][:self.most].tolist()
        for i in surest:
            if len(self.mistakes) >= self.most and confidence[i] <= self.mistakes[self.most - 1].confidence:
                break
            self.mistakes.append(Mistake(self.count + i, int(target[i]), int(prediction[i]), float(confidence[i]),
                                         self.to_picture(input, i)))
        self.mistakes = sorted(self.mistakes, key=lambda mistake: -mistake.confidence)[:self.most]
        self.count += len(target)
        self._batches.append(torch.stack([prediction.double(), confidence.double(), target.double()]).cpu())

    def analyse(self, num_classes: int) -> Analysis:
        """The numbers of all images so far."""
        prediction, confidence, target = torch.cat(self._batches, dim=1) if self._batches else torch.zeros(3, 0)
        return analyse(prediction.long(), confidence, target.long(), num_classes)
