"""Loaders that stop after any batch and resume, against uninterrupted ones, to the last bit."""
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.utils import random_seed

from agmax_timm import create_two_view_loader
from agmax_timm.base.errors import CheckpointError
from agmax_timm.base.random_state import get_random_state, is_of_device, kept_random_state, set_random_state
from agmax_timm.data.resumption.loader import make_resumable, start_workers

CPU = torch.device('cpu')
IMAGES = 22  # 5 batches of 4, and a remainder that is dropped
EPOCHS, BATCHES = 3, 5


@pytest.fixture
def images(memory_dataset):
    pixels = np.random.RandomState(0).randint(0, 256, (IMAGES, 12, 10, 3), dtype=np.uint8)
    return lambda: memory_dataset([Image.fromarray(image) for image in pixels])


def draws():
    """Random numbers of every generator that a training step might use."""
    return [torch.rand(()).item(), np.random.rand(), random.random(), random.gauss(0, 1)]


def open_loader(dataset, two_views=True, batch_size=4, **kwargs):
    common = dict(device=CPU, mean=(0.5,) * 3, std=(0.5,) * 3, **kwargs)
    if two_views:
        # As train.py does. The sampler of a loader that follows the process group cannot be dealt anew.
        loader = create_two_view_loader(dataset, (3, 8, 8), batch_size, distributed=False, **common)
    else:
        loader = create_loader(dataset, (3, 8, 8), batch_size, is_training=True, **common)
    return make_resumable(loader, CPU)


def train(loader, resumable, epoch, first=0, stop=None):
    """Yield each batch and the random draws after it. Stop after `stop` batches."""
    done = first
    for input, target in loader:
        done += 1
        yield input.clone(), target.clone(), draws()
        if done == stop:
            return


KINDS = {
    'main process': dict(num_workers=0),
    'main process, no prefetcher, mixing': dict(
        num_workers=0, use_prefetcher=False, mixup=dict(mixup_alpha=1., num_classes=IMAGES)),
    'main process, erasing': dict(num_workers=0, re_prob=1., re_mode='pixel'),
    'main process, multi-epochs': dict(num_workers=0, use_multi_epochs_loader=True),
    'main process, scheduled sizes': dict(num_workers=0, input_size_choices=[8, 16], batch_size_choices=[4, 4]),
    'workers': dict(num_workers=2, re_prob=0.5, mixup=dict(mixup_alpha=1., mode='elem', num_classes=IMAGES)),
    'workers of an epoch': dict(num_workers=2, persistent_workers=False, auto_augment='rand-m9-mstd0.5'),
    'workers, multi-epochs': dict(num_workers=2, use_multi_epochs_loader=True, re_prob=0.5),
    'more workers than batches': dict(num_workers=6),
    'one view': dict(num_workers=2, two_views=False, re_prob=0.5),
}


def uninterrupted(images, **kwargs):
    random_seed(3)
    loader, resumable = open_loader(images(), **kwargs)
    return [list(train(loader, resumable, epoch)) for epoch in range(EPOCHS)]


def assert_same(ours, expected):
    assert len(ours) == len(expected)
    for (input, target, drawn), (expected_input, expected_target, expected_drawn) in zip(ours, expected):
        torch.testing.assert_close(input, expected_input, rtol=0, atol=0)
        torch.testing.assert_close(target, expected_target, rtol=0, atol=0)
        assert drawn == expected_drawn


def saved(state, path):
    """The state as read back with weights_only=True."""
    torch.save(state, path)
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_resumed_loader_equals_an_uninterrupted_one(images, tmp_path, kind):
    """Stopped after each number of batches, three times in a row, and between epochs."""
    expected = uninterrupted(images, **KINDS[kind])
    for stops_by_epoch in (((1, 3), (5,), (1, 2)), ((), (0, 2, 4), ())):
        random_seed(3)
        loader, resumable = open_loader(images(), **KINDS[kind])
        for epoch, stops in enumerate(stops_by_epoch):
            seen, done = [], 0
            for stop in stops:
                if stop > done:
                    seen += train(loader, resumable, epoch, done, stop)
                state, done = saved(resumable.state_dict(stop), tmp_path / 'state.pth'), stop
                random_seed(99)
                loader, resumable = open_loader(images(), **KINDS[kind])
                torch.rand(5)
                assert resumable.load_state_dict(state, epoch) == []
                assert resumable.first_batch == stop
            seen += train(loader, resumable, epoch, done)
            assert_same(seen, expected[epoch])


def test_a_resumable_loader_gives_the_batches_of_timm(images):
    """The random draws after each batch are the same, too."""
    for kwargs in (dict(num_workers=0), dict(num_workers=2, re_prob=0.5)):
        random_seed(3)
        loader = create_loader(images(), (3, 8, 8), 4, is_training=True, device=CPU, mean=(0.5,) * 3, std=(0.5,) * 3,
                               **kwargs)
        plain = [list(train(loader, None, epoch)) for epoch in range(2)]
        ours = uninterrupted(images, two_views=False, **kwargs)
        for epoch in range(2):
            assert_same(ours[epoch], plain[epoch])


def test_batches_that_were_trained_are_not_loaded_again(images):
    dataset = images()
    loader, resumable = open_loader(dataset, num_workers=0)
    list(train(loader, resumable, 0, stop=3))
    state = resumable.state_dict(3)
    loaded = []
    dataset = images()
    original = type(dataset).__getitem__
    dataset.__class__ = type('Counted', (type(dataset),), {
        '__getitem__': lambda self, index: loaded.append(index) or original(self, index)})
    loader, resumable = open_loader(dataset, num_workers=0)
    resumable.load_state_dict(state, 0)
    assert len(list(loader)) == 2
    assert len(loaded) == 8


def test_the_indices_of_a_batch_are_known(images):
    loader, resumable = open_loader(images(), num_workers=2)
    for number, (_, target) in enumerate(loader):
        assert resumable.indices(number) == target[:4].tolist()
    assert resumable.indices(5) is None


@pytest.mark.parametrize('before, after, batch_size', [(1, 2, 2), (1, 2, 4), (2, 1, 8), (2, 3, 2), (2, 4, 1)])
def test_another_number_of_ranks_shares_the_remaining_samples(images, monkeypatch, before, after, batch_size):
    """No sample of the epoch occurs twice. Only those that do not fill a last batch are missing."""
    def open_rank(rank, ranks, size):
        monkeypatch.setattr('torch.distributed.is_available', lambda: True)
        monkeypatch.setattr('torch.distributed.get_world_size', lambda group=None: ranks)
        monkeypatch.setattr('torch.distributed.get_rank', lambda group=None: rank)
        loader = create_two_view_loader(images(), (3, 8, 8), size, device=CPU, distributed=ranks > 1, num_workers=0)
        return make_resumable(loader, CPU, ranks, rank)

    trained, states = [], []
    for rank in range(before):
        random_seed(1, rank)
        loader, resumable = open_rank(rank, before, 4)
        if before > 1:
            loader.sampler.set_epoch(6)
        for done, (_, target) in enumerate(loader, 1):
            trained += target[:len(target) // 2].tolist()
            if done == 2:
                break
        states.append(resumable.state_dict(2))
    counts = []
    for rank in range(after):
        loader, resumable = open_rank(rank, after, batch_size)
        changed = resumable.load_state_dict(states[0], 6)
        assert f'{after} ranks in place of {before}' in changed
        first = resumable.first_batch
        batches = [target[:batch_size].tolist() for _, target in loader]
        assert len(loader) == len(create_two_view_loader(
            images(), (3, 8, 8), batch_size, device=CPU, distributed=after > 1)), 'the next epoch is complete'
        trained += sum(batches, [])
        counts.append((first, len(batches)))
    assert len(set(counts)) == 1, 'all ranks have the same number of batches'
    assert len(set(trained)) == len(trained)
    assert IMAGES - len(trained) < batch_size * after


def test_a_remainder_in_other_batches_can_be_interrupted_again(images, tmp_path):
    """22 samples: two batches of 4, then batches of 2, interrupted twice more."""
    trained, state, done = [], None, 0
    for size, stop in ((4, 2), (2, 6), (2, 7), (2, 11)):
        random_seed(8)
        loader, resumable = open_loader(images(), batch_size=size, num_workers=0)
        if state is not None:
            resumable.load_state_dict(state, 0)
            done = resumable.first_batch
        assert len(loader) == (22 // size if size == 4 else 11)
        for number, (_, target) in enumerate(loader, done + 1):
            trained += target[:size].tolist()
            if number == stop:
                break
        state = saved(resumable.state_dict(stop), tmp_path / 'state.pth')
    assert sorted(trained) == list(range(22))
    with pytest.raises(CheckpointError, match='distributed again before'):
        open_loader(images(), batch_size=4, num_workers=0)[1].load_state_dict(state, 0)


def test_a_position_that_does_not_fit_is_refused_with_the_reason(images, memory_dataset):
    loader, resumable = open_loader(images(), num_workers=0, input_size_choices=[8, 16], batch_size_choices=[4, 4])
    next(iter(loader))
    state = resumable.state_dict(1)
    scheduled = create_two_view_loader(images(), (3, 8, 8), 4, device=CPU, input_size_choices=[8, 16])
    with pytest.raises(CheckpointError, match='2 ranks in place of 1'):
        make_resumable(scheduled, CPU, ranks=2)[1].load_state_dict(state, 0)
    fewer = images()
    fewer.images = fewer.images[:20]
    with pytest.raises(CheckpointError, match='20 samples, and had 22'):
        open_loader(fewer)[1].load_state_dict(state, 0)


def test_another_number_of_workers_keeps_the_order(images):
    loader, resumable = open_loader(images(), num_workers=0)
    batches = iter(loader)
    first = [next(batches)[1][:4].tolist() for _ in range(2)]
    state = resumable.state_dict(2)
    expected = first + [target[:4].tolist() for _, target in batches]
    loader, resumable = open_loader(images(), num_workers=2)
    assert resumable.load_state_dict(state, 0) == ['2 workers in place of 0']
    assert first + [target[:4].tolist() for _, target in loader] == expected


def test_workers_that_are_already_started_draw_no_seed(photos):
    def evaluate(loader):
        return [target.tolist() for _, target in loader]

    loader = create_loader(create_dataset('', str(photos), split='val'), (3, 8, 8), 4, num_workers=2, device=CPU)
    random_seed(0)
    first = evaluate(loader)
    state = get_random_state()
    second, after = evaluate(loader), draws()
    again = create_loader(create_dataset('', str(photos), split='val'), (3, 8, 8), 4, num_workers=2, device=CPU)
    set_random_state(state)
    start_workers(again)
    assert evaluate(again) == first == second
    assert draws() == after


def test_the_random_state_covers_all_generators():
    random_seed(5)
    random.gauss(0, 1), np.random.randn()  # each puts a second number aside
    state = get_random_state()
    expected = [draws(), np.random.randn(), torch.randn(3).tolist()]
    random_seed(6)
    set_random_state(state)
    with kept_random_state():
        draws()
    assert [draws(), np.random.randn(), torch.randn(3).tolist()] == expected


class Priorities(torch.utils.data.Dataset):
    """The niceness of the process that makes a sample, as its label."""
    transform = None

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return self.transform(Image.new('RGB', (8, 8))), os.nice(0)


def test_workers_have_a_lower_priority_only_if_the_step_runs_on_the_cpu():
    def resumable(device):
        loader = create_loader(Priorities(), (3, 8, 8), 4, is_training=True, device=CPU, num_workers=2)
        return make_resumable(loader, torch.device(device))
    loader, _ = resumable('cpu')
    assert {label for _, target in loader for label in target.tolist()} == {min(19, os.nice(0) + 2)}
    assert resumable('cuda')[1]._init.nice == 0


class Module:
    """torch's module of an accelerator, whose generator has a state of `size` bytes."""

    def __init__(self, size):
        self.state = torch.zeros(size, dtype=torch.uint8)

    def get_rng_state(self, device):
        return self.state.clone()

    def set_rng_state(self, state, device):
        self.state = state


@pytest.mark.parametrize('noted', [True, False], ids=['type noted', 'former'])
@pytest.mark.parametrize('device, size, taken', [('cuda', 16, True), ('xpu', 16, False), ('mps', 44, False)])
def test_the_random_state_of_a_device_is_restored_only_on_its_kind(monkeypatch, noted, device, size, taken):
    monkeypatch.setattr(torch, 'get_device_module', lambda device: Module(16))
    saved = get_random_state(torch.device('cuda', 1))
    assert saved['device_type'] == 'cuda' and saved['device'].shape == (16,)
    saved['device'] += 7
    if not noted:
        del saved['device_type']
        taken = size == 16  # nothing else about it is known
    module, device = Module(size), torch.device(device)
    monkeypatch.setattr(torch, 'get_device_module', lambda device: module)
    draws()
    set_random_state(saved, device)
    assert get_random_state()['process'] == saved['process']
    assert is_of_device(saved, device) is taken
    assert module.state.tolist() == ([7] * 16 if taken else [0] * size)
    assert not is_of_device(saved, CPU) and not is_of_device({'process': b''}, device)
