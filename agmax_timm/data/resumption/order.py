"""The order of the samples of an epoch: how it was drawn, what is left of it."""
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from ...base.random_state import kept_random_state


class Order:
    """The batch sampler of a loader, which remembers the random state that its order was drawn from.

    Args:
        batches: The batch sampler.
    """

    def __init__(self, batches: Any):
        self.batches = batches
        self.drawn: list[torch.Tensor] = []  # of the pass in progress, then of a next one that has begun ahead
        self.coming: deque = deque()  # states to draw the next passes from
        self.given: deque = deque()  # indices of the batches that are being made
        self.lead = 0  # empty batches before the next pass, which give the first to another worker
        self.skip = 0  # empty batches in place of the first of it
        self.rest: list[list[int]] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        if self.coming:
            torch.set_rng_state(self.coming.popleft())
        self.drawn.append(torch.get_rng_state())
        for _ in range(self.lead):
            self.given.append([])
            yield []
        self.lead = 0
        (skip, self.skip), (rest, self.rest) = (self.skip, 0), (self.rest, None)
        for number, batch in enumerate(self.batches if rest is None else rest):
            batch = [] if number < skip else batch
            self.given.append(batch)
            yield batch

    def remaining(self, state: dict[str, Any], epoch: int, dataset: Any) -> list[int]:
        """The samples of an epoch that its ranks had not trained, in their order."""
        ranks, trained = state['shape']['ranks'], state['done'] * state['shape']['batch size']
        if ranks == 1:
            with kept_random_state():
                torch.set_rng_state(state['order'][0])
                return list(RandomSampler(dataset))[trained:]
        parts = []
        for rank in range(ranks):
            sampler: DistributedSampler = DistributedSampler(dataset, ranks, rank)
            sampler.set_epoch(epoch)
            parts.append(list(sampler))
        order = [index for indices in zip(*parts) for index in indices]
        return order[:len(dataset)][trained * ranks:]  # without what the samplers fill up with


def wrap_order(loader: DataLoader) -> Order:
    sampler: Any = loader.batch_sampler
    if isinstance(loader, MultiEpochsDataLoader):
        order = sampler.sampler = Order(sampler.sampler)
    else:
        order = Order(sampler)
        object.__setattr__(loader, 'batch_sampler', order)  # torch lets nobody set it
    return order
