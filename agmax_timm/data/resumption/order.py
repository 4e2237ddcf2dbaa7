"""The order of the samples of an epoch: the random state that it was drawn from, and the samples that remain."""
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from ...base.random_state import kept_random_state
from ...base.wrapping import Wrapper
from ..loading.ranks import RankSampler, batch_sampler_of


class Order(Wrapper):
    """A batch sampler that records the random state from which the order of each epoch is drawn.

    Attributes:
        drawn: Random states of the present epoch and, if the workers have begun it, of the next one.
        coming: Random states from which the next epochs are drawn.
        given: Indices of the batches that are being made.
        lead: Number of empty batches before the next epoch, so that another worker makes its first batch.
        skip: Number of batches at the start of the next epoch that are replaced by empty ones.
        rest: Batches of the next epoch in place of those of the batch sampler, or None.
    """
    wraps = 'batches'

    def __init__(self, batches: Any):
        self.batches = batches
        self.drawn: list[torch.Tensor] = []
        self.coming: deque[torch.Tensor] = deque()
        self.given: deque[list[Any]] = deque()
        self.lead = 0
        self.skip = 0
        self.rest: list[list[int]] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        if self.coming:
            torch.set_rng_state(self.coming.popleft())
        self.drawn.append(torch.get_rng_state())
        for _ in range(self.lead):
            self.given.append([])
            yield []
        self.lead = 0
        skip, self.skip = self.skip, 0
        rest, self.rest = self.rest, None
        for number, batch in enumerate(self.batches if rest is None else rest):
            batch = [] if number < skip else batch
            self.given.append(batch)
            yield batch

    def remaining(self, state: dict[str, Any], epoch: int, dataset: Any) -> list[int]:
        """Return the indices of the samples of an epoch that no rank has trained, in their order.

        Args:
            state: State of ResumableLoader.state_dict.
        """
        ranks, trained = state['shape']['ranks'], state['done'] * state['shape']['batch size']
        if ranks == 1:
            with kept_random_state():
                torch.set_rng_state(state['order'][0])
                return list(RandomSampler(dataset))[trained:]
        sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=1, rank=0)  # the order that ranks divide
        sampler.set_epoch(epoch)
        return list(sampler)[trained * ranks:]


def wrap_order(loader: DataLoader) -> Order:
    """Replace the batch sampler of a loader by an Order, and return it."""
    order = Order(batch_sampler_of(loader))
    if isinstance(loader, MultiEpochsDataLoader):
        outer: Any = loader.batch_sampler
        outer.sampler = order
    else:
        object.__setattr__(loader, 'batch_sampler', order)  # DataLoader.__setattr__ refuses it
    return order


def has_one_order(loader: DataLoader, order: Order) -> bool:
    """Whether all ranks together take one order of the samples, for any number of ranks."""
    if type(loader) is not DataLoader or type(order.batches) is not BatchSampler:
        return False
    sampler = order.batches.sampler
    if isinstance(sampler, RankSampler):
        sampler = sampler.sampler
    return isinstance(sampler, (RandomSampler, DistributedSampler))
