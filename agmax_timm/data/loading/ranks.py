"""Shares of the samples for each rank, for create_two_view_loader in a script of your own.

The process group may be initialised after the loader: Lightning does so when training begins, and calls set_epoch.
accelerate initialises it before the loader. Both shard a torch DataLoader, and do not change other loaders.
"""
from collections.abc import Iterator
from typing import Any

from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, Sampler

from ...base.distributed import world_size


class RankSampler(Sampler):
    """A sampler that adapts to the number of ranks. Each iteration has a new order.

    Args:
        sampler: Sampler for the present number of ranks.
        batch_size: Number of images per rank in a batch.
        dataset: Data set of the sampler. None if another number of ranks cannot share it.
    """

    def __init__(self, sampler: Any, batch_size: int | None, dataset: Any = None):
        self.sampler = sampler
        self.batch_size = batch_size
        self.dataset = dataset
        self.ranks = world_size()

    def __iter__(self) -> Iterator[int]:
        self._follow_group()
        indices = iter(self.sampler)
        if hasattr(self.sampler, 'epoch'):
            self.sampler.epoch += 1  # the number that set_epoch gives, if a framework calls it before the next pass
        return indices

    def __len__(self) -> int:
        self._follow_group()
        return len(self.sampler)

    @property
    def epoch(self) -> int | None:
        """Number of the next epoch, from which timm's MultiEpochsDataLoader counts. None if the sampler has none."""
        return getattr(self.sampler, 'epoch', None)

    def set_epoch(self, epoch: int) -> None:
        self._follow_group()
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _follow_group(self) -> None:
        ranks = world_size()
        if ranks == self.ranks:
            return
        if self.dataset is None or self.batch_size is None:
            raise ValueError(f'the loader was created for {self.ranks} process(es), but there are {ranks}, which would '
                             'train on the same images: create data set and loader after the process group')
        check_batch(self.dataset, self.batch_size, ranks)
        self.sampler = DistributedSampler(self.dataset) if ranks > 1 else RandomSampler(self.dataset)
        self.ranks = ranks


def batch_sampler_of(loader: DataLoader) -> Any:
    """Return the batch sampler of a DataLoader. timm's MultiEpochsDataLoader wraps it."""
    sampler: Any = loader.batch_sampler
    return sampler.sampler if isinstance(loader, MultiEpochsDataLoader) else sampler


def check_batch(dataset: Any, batch_size: int, ranks: int) -> None:
    """Raise ValueError if the share of a rank does not fill a batch."""
    if len(dataset) < batch_size * ranks:
        raise ValueError(f'batch_size {batch_size} on {ranks} process(es) is more than the data set of '
                         f'{len(dataset)} images: use {len(dataset) // ranks} or less')


def check_group(dataset: Dataset, is_dataloader: bool) -> None:
    """Raise ValueError if the user must decide how several ranks share the data.

    Args:
        is_dataloader: Whether the loader is a torch DataLoader.
    """
    ranks = world_size()
    if ranks == 1:
        return
    if isinstance(dataset, IterableDataset):
        shares = getattr(getattr(dataset, 'reader', None), 'dist_num_replicas', None)
        if shares != ranks:
            raise ValueError(f'the iterable data set is not shared among the {ranks} processes: create it after the '
                             'process group, or share it yourself and give distributed=True')
    elif is_dataloader:
        raise ValueError('use_prefetcher=False gives a DataLoader, which Lightning and accelerate share among '
                         'processes: give distributed=False for them, distributed=True without them')


def follow_group(loader: Any, data_loader: DataLoader) -> None:
    """Make a loader share its samples among the ranks that exist when an epoch begins.

    A DataLoader itself is not changed: Lightning and accelerate shard it.
    """
    if loader is data_loader:
        return
    batches = batch_sampler_of(data_loader)
    # Batches of several sizes are planned for a fixed number of samples.
    can_share = data_loader.batch_size is not None and not isinstance(data_loader.dataset, IterableDataset)
    batches.sampler = RankSampler(
        batches.sampler, data_loader.batch_size, data_loader.dataset if can_share else None)
