"""Agreement of the predictions for two augmented views of an image, which AgMax maximises in training."""
import torch

from ...base.distributed import sum_of_ranks, total_dtype


class AgreementEvaluator:
    """Share of images whose two views get the same label, and the mean divergence of their class distributions.

    The evaluator has timm's protocol and takes view-major batches of two views.

    Args:
        max_samples: Number of images of this rank, without the padding of a distributed sampler.
        valid_labels: Outputs of the model for the classes of the data; None for all.
    """

    def __init__(self, device: torch.device | None = None, max_samples: int | None = None, valid_labels=None):
        self.max_samples = max_samples
        self.valid_labels = valid_labels
        self.num_samples = 0
        # Images, images with the same label twice, sum of divergences.
        self.totals = torch.zeros(3, dtype=total_dtype(device), device=device)

    @torch.no_grad()
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits [2B, K], all first views before all second ones. The target is ignored."""
        output = output if self.valid_labels is None else output[:, self.valid_labels]
        views = [*output.to(self.totals.dtype).log_softmax(1).chunk(2)]
        if self.max_samples is not None:
            views = [view[:max(0, self.max_samples - self.num_samples)] for view in views]
        self.num_samples += len(views[0])
        known = ~(views[0].isnan().any(1) | views[1].isnan().any(1))  # NaN counts as disagreement
        same = (known & (views[0].argmax(1) == views[1].argmax(1))).sum()
        # Mean KL divergence of both directions: sum of (p1 - p2) (log p1 - log p2) / 2.
        difference = (views[0].exp() - views[1].exp()) * (views[0] - views[1])
        difference = difference.masked_fill(known[:, None] & difference.isnan(), 0.)  # 0 * -inf is 0 here
        divergence = difference.sum() / 2
        self.totals += torch.stack([torch.full_like(divergence, len(views[0])), same.to(divergence.dtype), divergence])

    def summary(self) -> dict[str, float]:
        """Return 'agreement' in percent and 'agreement_kl' in nats on this rank."""
        return self.compute()

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """Return 'agreement' in percent and 'agreement_kl' in nats; with `distributed`, over all ranks."""
        totals = sum_of_ranks(self.totals) if distributed else self.totals
        count, same, divergence = totals.tolist()
        return dict(agreement=100 * same / max(count, 1), agreement_kl=divergence / max(count, 1))
