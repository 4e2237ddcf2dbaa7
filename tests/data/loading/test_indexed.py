"""The loader that says which images a batch has and how they are mixed, against the images themselves and timm."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import FastCollateMixup, Mixup
from timm.utils import random_seed
from torch.utils.data import IterableDataset

from agmax_timm import create_dataset, create_indexed_loader
from agmax_timm.data.augmentation.mixup import LambdaCollate, LambdaMixup
from agmax_timm.data.loading.indexed import IndexedLoader

LEVELS = {'mean': (0., 0., 0.), 'std': (1., 1., 1.), 'device': 'cpu', 'color_jitter': None}


@pytest.fixture
def as_rank(monkeypatch):
    """Make this process one of several ranks, as far as loaders see it."""
    def become(rank, ranks):
        monkeypatch.setattr('torch.distributed.is_available', lambda: True)
        monkeypatch.setattr('torch.distributed.is_initialized', lambda: ranks > 1)
        monkeypatch.setattr('torch.distributed.get_world_size', lambda group=None: ranks)
        monkeypatch.setattr('torch.distributed.get_rank', lambda group=None: rank)
    return become


@pytest.mark.parametrize('settings', [
    dict(num_workers=0), dict(num_workers=0, use_prefetcher=False), dict(num_workers=0, image_memory='1G'),
    dict(num_workers=2, use_multi_epochs_loader=True), dict(num_workers=2, persistent_workers=True)])
def test_indices_are_those_of_the_images(photos, photo_numbers, settings):
    dataset = create_dataset('', str(photos), split='train')
    loader = create_indexed_loader(dataset, 32, 5, **LEVELS, **settings)
    assert len(loader) == 2
    for _ in range(2):
        found = []
        for input, target, indices, lam in loader:
            assert torch.equal(photo_numbers(input), indices) and torch.equal(target, indices // 4) and lam is None
            found += indices.tolist()
        assert len(set(found)) == 10


@pytest.mark.parametrize('workers', [0, 2])
def test_the_index_of_a_damaged_image_comes_with_the_image_in_its_place(photos, photo_numbers, tmp_path, workers):
    shutil.copytree(photos / 'train', tmp_path / 'train')
    for name in sorted((tmp_path / 'train').glob('*/*.jpg'))[5:7]:
        name.write_bytes(b'damaged')
    dataset = create_dataset('', str(tmp_path), split='train', max_damaged=0.5)
    loader = create_indexed_loader(dataset, 32, 4, num_workers=workers, **LEVELS)
    replaced = torch.arange(12)
    replaced[5:7] = 7
    for _ in range(2):
        found = []
        for input, target, indices, _ in loader:
            assert torch.equal(photo_numbers(input), replaced[indices]) and torch.equal(target, replaced[indices] // 4)
            found += indices.tolist()
        assert sorted(found) == [*range(12)]


@pytest.mark.parametrize('before, after, size', [(2, 1, 4), (1, 2, 2), (1, 1, 2)])
def test_indices_are_those_of_the_images_of_an_epoch_that_other_ranks_began(
        photos, photo_numbers, as_rank, before, after, size):
    def open_rank(rank, ranks, size):
        as_rank(rank, ranks)
        dataset = create_dataset('', str(photos), split='train')
        return create_indexed_loader(dataset, 32, size, num_workers=0, **LEVELS)

    trained, state = [], None
    for rank in range(before):
        random_seed(1)
        loader = open_rank(rank, before, 2)
        trained += next(iter(loader))[2].tolist()
        state = state or loader.recorder.state_dict(1)
    for rank in range(after):
        loader = open_rank(rank, after, size)
        loader.recorder.load_state_dict(state, 0)
        for input, target, indices, _ in loader:
            assert torch.equal(photo_numbers(input), indices) and torch.equal(target, indices // 4)
            trained += indices.tolist()
    assert len(set(trained)) == len(trained) > 12 - size * after


def test_every_epoch_of_several_ranks_has_another_order(photos, photo_numbers, as_rank):
    as_rank(0, 2)
    dataset = create_dataset('', str(photos), split='train')
    loader = create_indexed_loader(dataset, 32, 3, num_workers=0, **LEVELS)
    orders = []
    for _ in range(3):
        orders.append([])
        for input, _, indices, _ in loader:
            assert torch.equal(photo_numbers(input), indices)
            orders[-1] += indices.tolist()
    assert len(orders[0]) == 6 and orders[0] != orders[1] != orders[2]


def test_indices_are_those_of_images_that_are_made_by_batches(tmp_path):
    """Each image is a class of its own."""
    for number in range(12):
        (tmp_path / f'{number:02d}').mkdir()
        Image.new('RGB', (32, 32)).save(tmp_path / f'{number:02d}' / 'image.png')
    loader = create_indexed_loader(
        create_dataset('', str(tmp_path)), 32, 4, num_workers=2, augment_backend='fast', image_memory='1G',
        train_crop_mode='pad', **LEVELS)
    assert loader.dataset.batches is not None
    found = [indices for _, target, indices, _ in loader if torch.equal(target, indices)]
    assert sorted(torch.cat(found).tolist()) == [*range(12)]


def test_lambdas_come_with_mixed_batches(photos):
    dataset = create_dataset('', str(photos), split='train')
    loader = create_indexed_loader(
        dataset, 32, 6, num_workers=0, mixup=dict(mixup_alpha=1., mode='elem', num_classes=3), **LEVELS)
    for _, target, indices, lam in loader:
        classes = F.one_hot(indices // 4, 3)  # without label smoothing, as create_two_view_loader
        expected = lam[:, None] * classes + (1 - lam[:, None]) * classes.flip(0)
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-6)
        assert len(lam.unique()) > 2
    loader.mixup_enabled = False
    assert all((lam == 1).all() for *_, lam in loader)
    for mixup in (dict(mixup_alpha=1.), dict(mixup_alpha=1., num_classes=3, mode='half')):
        with pytest.raises(ValueError, match='mixup needs num_classes|mixup mode must be one of'):
            create_indexed_loader(dataset, 32, 6, mixup=mixup)


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('in_collate', [True, False])
def test_mixed_batches_equal_those_of_timm(mode, in_collate):
    settings = dict(mixup_alpha=0.4, cutmix_alpha=1., prob=0.8, mode=mode, num_classes=5, label_smoothing=0.1)
    pixels, target = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 3, 4, 1, 1, 2])

    def mix(kinds, seed):
        np.random.seed(seed)
        if in_collate:
            return kinds[0](**settings)(list(zip(pixels.clone(), target.tolist())))
        return kinds[1](**settings)(pixels.float(), target)

    for seed in range(8):
        images, soft = mix((FastCollateMixup, Mixup), seed)
        recorder = SimpleNamespace(first_batch=3, indices=lambda number: [(number, 24)] * 6)
        (ours, our_target, indices, lam), = IndexedLoader([mix((LambdaCollate, LambdaMixup), seed)], recorder, settings)
        assert torch.equal(ours, images) and indices.tolist() == [3] * 6
        torch.testing.assert_close(our_target, soft, rtol=0, atol=1e-6)
        assert lam.min() >= 0 and lam.max() <= 1


def test_data_in_sequence_is_refused():
    class InSequence(IterableDataset):
        def __iter__(self):
            yield

    with pytest.raises(ValueError, match='need a data set with an index'):
        create_indexed_loader(InSequence(), 32, 4)
