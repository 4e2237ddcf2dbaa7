"""Two ranks read disjoint shares that together are all images, or an error states the remedy."""
import re

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset

from agmax_timm import create_two_view_loader
from agmax_timm.data.sources.dataset_factory import create_dataset
from tests.helpers.ranks import finish_ranks, logs, start_ranks

RANKS, IMAGES, EPOCHS = 2, 12, 3
MIXUP = {'mixup_alpha': 1., 'num_classes': IMAGES}
LATE = {  # loaders that are made after the process group
    'prefetcher': {},
    'workers': {'num_workers': 1},
    'workers that continue': {'num_workers': 1, 'use_multi_epochs_loader': True},
    'mixed': {'mixup': MIXUP},
    'mixed, by torch': {'distributed': True, 'use_prefetcher': False, 'mixup': MIXUP},
    'sizes': {'input_size_choices': [8, 16]},
    'repeats': {'num_aug_repeats': 2},
    'timm': {'distributed': True},
    'whole': {'distributed': False},
    'whole, by torch': {'distributed': False, 'use_prefetcher': False},
    'shared, by torch': {'distributed': True, 'use_prefetcher': False},
}
EARLY = {name: LATE[name] for name in ('prefetcher', 'workers', 'workers that continue', 'mixed')}
REFUSED = {
    'mixed by torch': ({'use_prefetcher': False, 'mixup': MIXUP}, 'distributed=False for them, distributed=True'),
    'by torch': ({'use_prefetcher': False}, 'distributed=False for them, distributed=True without them'),
    'batch': ({'batch_size': 7}, 'batch_size 7 on 2 .* 12 images: use 6'),
    'early batch': ({'batch_size': 7}, 'batch_size 7 on 2 .* 12 images: use 6'),
    'early sizes': ({'input_size_choices': [8, 16]}, 'created for 1 process.*there are 2'),
    'early stream': ({}, 'created for 1 process.*there are 2'),
    'stream': ({}, 'not shared among the 2 processes'),
}


class Numbered(torch.utils.data.Dataset):
    """Images whose class is their index."""
    transform = None

    def __init__(self, folder):
        self.images = create_dataset('', str(folder), 'train')

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        image = self.images[index][0]
        return image if self.transform is None else self.transform(image), index


class Stream(IterableDataset):
    transform = None

    def __len__(self):
        return IMAGES

    def __iter__(self):
        yield from ()


def make(folder, name, batch_size=2, **kwargs):
    dataset = Stream() if 'stream' in name else Numbered(folder)
    return create_two_view_loader(dataset, 8, batch_size, device='cpu', **{'num_workers': 0, **kwargs})


def numbers(loader, set_epoch=lambda epoch: None):
    """Indices of the images, by epoch."""
    epochs = []
    for epoch in range(EPOCHS):
        set_epoch(epoch)
        targets = [target.chunk(2)[0] for _, target in loader]
        epochs.append(torch.cat(targets).tolist() if targets[0].ndim == 1 else torch.cat(targets).argmax(1).tolist())
    return epochs


def complaint(loader, folder, name, **kwargs):
    try:
        next(iter(make(folder, name, **kwargs) if loader is None else loader))
    except ValueError as error:
        return str(error)


def run_rank(rank, folder, photos):
    early = {name: make(photos, name, **kwargs) for name, kwargs in EARLY.items()}
    refused = {name: make(photos, name, **kwargs) for name, (kwargs, _) in REFUSED.items() if 'early' in name}
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=RANKS)
    seen = {('early', name): numbers(loader) for name, loader in early.items()}
    for name, kwargs in LATE.items():
        seen['late', name] = numbers(make(photos, name, **kwargs))
    for name in ('prefetcher', 'workers that continue'):
        loader = make(photos, name, **LATE[name])
        seen['set_epoch', name] = numbers(loader, loader.sampler.set_epoch)
    complaints = {name: complaint(refused.get(name), photos, name, **kwargs) for name, (kwargs, _) in REFUSED.items()}
    torch.save((seen, complaints), folder / f'{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def outcomes(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    ranks = start_ranks(RANKS, folder / 'logs', run_rank, int, folder, photos)
    assert finish_ranks(ranks) == [0] * RANKS, logs(folder / 'logs')
    return [torch.load(folder / f'{rank}.pt') for rank in range(RANKS)]


@pytest.mark.parametrize('moment, name', [
    *[('early', name) for name in EARLY], *[('late', name) for name in LATE if name != 'repeats']])
def test_each_rank_has_its_share(outcomes, moment, name):
    shares = [seen[moment, name] for seen, _ in outcomes]
    for parts in zip(*shares):
        if 'mixed' in name:  # the largest share of a mix may be the partner's
            assert [len(part) for part in parts] == [IMAGES // RANKS] * RANKS
        elif 'whole' in name:
            assert all(sorted(part) == [*range(IMAGES)] for part in parts)
        else:
            assert sorted(parts[0] + parts[1]) == [*range(IMAGES)]
    if name not in ('timm', 'shared, by torch', 'mixed, by torch'):
        assert shares[0][0] != shares[0][1] != shares[0][2]


def test_repeats_of_an_image_are_on_both_ranks(outcomes):
    for first, second in zip(*[seen['late', 'repeats'] for seen, _ in outcomes]):
        assert sorted(first) == sorted(second)


def test_set_epoch_gives_the_order_of_that_epoch(outcomes):
    for seen, _ in outcomes:
        assert seen['late', 'prefetcher'] == seen['early', 'prefetcher']
        assert seen['late', 'timm'] == seen['late', 'prefetcher'][:1] * EPOCHS
        for name in ('prefetcher', 'workers that continue'):
            assert seen['set_epoch', name] == seen['late', 'prefetcher']


@pytest.mark.parametrize('name', REFUSED)
def test_data_that_ranks_cannot_share_is_refused(outcomes, name):
    for _, complaints in outcomes:
        assert re.search(REFUSED[name][1], complaints[name])


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_one_process_ignores_distributed(photos, use_prefetcher):
    def order(**kwargs):
        torch.manual_seed(3)
        return numbers(make(photos, '', use_prefetcher=use_prefetcher, **kwargs))

    assert order() == order(distributed=False)
