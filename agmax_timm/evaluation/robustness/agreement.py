"""Agreement of a classifier with itself on two augmented views of an image: what AgMax rewards in training."""
from collections import OrderedDict

import torch
import torch.distributed as dist


class AgreementEvaluator:
    """How often two views get the same label, and how far their distributions over classes are apart.

    An evaluator of timm's protocol, for view-major batches of two views.

    Args:
        device: Of the running totals.
        max_samples: Images of this rank, without the padding of a distributed sampler.
        valid_labels: The outputs that are classes of the data; None for all.
    """

    def __init__(self, device: torch.device | None = None, max_samples: int | None = None, valid_labels=None):
        self.max_samples = max_samples
        self.valid_labels = valid_labels
        self.num_samples = 0
        dtype = torch.float32 if device is not None and torch.device(device).type == 'mps' else torch.float64
        self.totals = torch.zeros(3, dtype=dtype, device=device)  # images, same labels, sum of divergences

    @torch.no_grad()
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits [2B, K], all first views before all second ones; the target counts for nothing."""
        output = output if self.valid_labels is None else output[:, self.valid_labels]
        views = [*output.to(self.totals.dtype).log_softmax(1).chunk(2)]
        if self.max_samples is not None:
            views = [view[:max(0, self.max_samples - self.num_samples)] for view in views]
        self.num_samples += len(views[0])
        known = ~(views[0].isnan().any(1) | views[1].isnan().any(1))  # a network that is broken agrees on nothing
        same = (known & (views[0].argmax(1) == views[1].argmax(1))).sum()
        # The mean of both directions: sum of (p1 - p2) (log p1 - log p2) / 2.
        difference = (views[0].exp() - views[1].exp()) * (views[0] - views[1])
        difference = difference.masked_fill(known[:, None] & difference.isnan(), 0.)  # 0 * -inf: both are certain
        divergence = difference.sum() / 2
        self.totals += torch.stack([torch.full_like(divergence, len(views[0])), same.to(divergence.dtype), divergence])

    def summary(self) -> dict[str, float]:
        """'agreement' in percent, 'agreement_kl' in nats, of this rank."""
        return self._read(self.totals)

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """The same of all ranks."""
        totals = self.totals.clone()
        if distributed:
            dist.all_reduce(totals)
        return self._read(totals)

    def _read(self, totals: torch.Tensor) -> dict[str, float]:
        count, same, divergence = totals.tolist()
        return OrderedDict(agreement=100 * same / max(count, 1), agreement_kl=divergence / max(count, 1))
