"""Each rank its own share of the samples, also where the process group is made after the loader.

Lightning makes it when training begins, and calls set_epoch; accelerate makes it before. Both leave a loader alone that
is no torch DataLoader, and shard one that is.
"""
from typing import Any, Iterator, Optional

from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, Sampler

from ..distributed import world_size


class RankSampler(Sampler):
    """The sampler of a loader, replaced when the number of ranks changes. Every pass over it is an epoch of its own.

    Args:
        sampler: The sampler, for the ranks that there are now.
        batch_size: Images of a rank in a batch.
        dataset: Data set to share among other ranks; None if that cannot be done any more.
    """

    def __init__(self, sampler: Sampler, batch_size: Optional[int], dataset: Optional[Dataset] = None):
        self.sampler = sampler
        self.batch_size = batch_size
        self.dataset = dataset
        self.ranks = world_size()

    def __iter__(self) -> Iterator[int]:
        self._follow_group()
        indices = iter(self.sampler)
        if hasattr(self.sampler, 'epoch'):
            self.sampler.epoch += 1  # set_epoch(0), set_epoch(1) and so on, by whoever calls it, change nothing then
        return indices

    def __len__(self) -> int:
        self._follow_group()
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self._follow_group()
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _follow_group(self) -> None:
        ranks = world_size()
        if ranks == self.ranks:
            return
        if self.dataset is None:
            raise ValueError(f'the loader was made for {self.ranks} process(es), now there are {ranks}, which would '
                             'train on the same images: make data set and loader after the process group')
        check_batch(self.dataset, self.batch_size, ranks)
        self.sampler = DistributedSampler(self.dataset) if ranks > 1 else RandomSampler(self.dataset)
        self.ranks = ranks


def check_batch(dataset: Dataset, batch_size: int, ranks: int) -> None:
    """Raise ValueError if the share of a rank does not fill a batch."""
    if len(dataset) < batch_size * ranks:
        raise ValueError(f'batch_size {batch_size} on {ranks} process(es) is more than the data set of '
                         f'{len(dataset)} images: use {len(dataset) // ranks} or less')


def check_group(dataset: Dataset, is_dataloader: bool) -> None:
    """Raise ValueError if the ranks that there are now cannot share the data unless the user says how.

    Args:
        dataset: Data set of the loader.
        is_dataloader: Whether the loader is a torch DataLoader.
    """
    ranks = world_size()
    if ranks == 1:
        return
    if isinstance(dataset, IterableDataset):
        shares = getattr(getattr(dataset, 'reader', None), 'dist_num_replicas', None)
        if shares != ranks:
            raise ValueError(f'the data set is read in sequence, and not shared among the {ranks} processes: make it '
                             'after the process group, or share it yourself and give distributed=True')
    elif is_dataloader:
        raise ValueError('use_prefetcher=False gives a DataLoader, which Lightning and accelerate share among '
                         'processes: give distributed=False for them, distributed=True without them')


def follow_group(loader: Any, data_loader: DataLoader) -> None:
    """Let a loader share its samples among the ranks that there are when an epoch begins.

    Args:
        loader: Training loader, changed in place. A DataLoader is left alone: Lightning and accelerate shard it.
        data_loader: The DataLoader in it.
    """
    if loader is data_loader:
        return
    batches = data_loader.batch_sampler
    if isinstance(data_loader, MultiEpochsDataLoader):
        batches = batches.sampler
    # Batches of several sizes were planned for a number of samples.
    can_share = data_loader.batch_size is not None and not isinstance(data_loader.dataset, IterableDataset)
    batches.sampler = RankSampler(
        batches.sampler, data_loader.batch_size, data_loader.dataset if can_share else None)
