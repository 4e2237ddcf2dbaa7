"""Reused batch memory: batches that a worker sends by the number of a buffer equal batches that are sent completely."""
import pickle
import time
from functools import partial
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils import random_seed

from agmax_timm import create_two_view_loader
from agmax_timm.assembly.loaders import _loader_kwargs
from agmax_timm.assembly.model import Precision
from agmax_timm.data.memory import buffers
from agmax_timm.data.memory.buffers import Buffers, Courier
from agmax_timm.data.resumption.loader import make_resumable
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args, parse_validate_args

CPU = torch.device('cpu')
IMAGES = 40  # 10 batches of 4


@pytest.fixture
def dataset(memory_dataset):
    pixels = np.random.RandomState(0).randint(0, 256, (IMAGES, 12, 10, 3), dtype=np.uint8)
    return lambda: memory_dataset([Image.fromarray(image) for image in pixels])


@pytest.fixture
def worker(monkeypatch):
    """Treat this process as a worker."""
    monkeypatch.setattr(buffers, 'get_worker_info', lambda: True)
    monkeypatch.setattr(buffers, '_numbers', {})


def test_buffers_are_used_in_turn():
    taken = Buffers()
    first = taken.take((2, 4, 4, 3))
    assert taken.take((2, 5, 4, 3)).shape == (2, 5, 4, 3)
    assert taken.take((2, 4, 4, 3)) is first


def carried(batch):
    """The batch as it comes out of the queue."""
    return pickle.loads(ForkingPickler.dumps(batch))


def test_the_memory_of_a_buffer_is_sent_once(worker):
    taken, send = Buffers(), Courier()
    addresses = set()
    for number in range(8):
        images = taken.take((2, 4, 4, 3) if number % 2 else (2, 5, 4, 3)).permute(0, 3, 1, 2)
        images[:] = number
        target = torch.tensor([number, number + 1])
        received, received_target = carried(send((images, target)))
        assert received.shape == images.shape and received.stride() == images.stride()
        assert torch.equal(received, images) and torch.equal(received_target, target)
        addresses.add(received.data_ptr())
    assert len(addresses) == 6  # three of each shape
    send.forget()
    with pytest.raises(KeyError):
        carried(send((images, target)))


def test_workers_have_their_own_buffers(worker, monkeypatch):
    """Both processes call their first buffer 0, and send it twice."""
    send, images, numbers = Courier(), [], []
    sent_by = [set(), set()]
    for _ in range(2):
        monkeypatch.setattr(buffers, '_numbers', {})
        images.append(Buffers().take((1, 2, 2, 3)))
        numbers.append(buffers._numbers)
    for turn in range(2):
        for process in range(2):
            monkeypatch.setattr(buffers, '_numbers', numbers[process])
            monkeypatch.setattr(buffers.os, 'getpid', partial(int, process))
            send._sent = sent_by[process]
            images[process][:] = 10 * turn + process
            received, _ = carried(send((images[process], torch.tensor([0]))))
            assert (received == 10 * turn + process).all()
    assert len(send._received) == 2


def test_batches_outside_of_buffers_are_sent_unchanged(worker):
    send, images = Courier(), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for batch in ((images, torch.zeros(2)), [images, images], {'image': images}, (images, images, images), None):
        assert send(batch) is batch


@pytest.mark.parametrize('target', [
    torch.ones(2, dtype=torch.bfloat16), torch.ones(2, 3), torch.ones(2, dtype=torch.bool), [1, 2]])
def test_every_kind_of_target_is_received(worker, target):
    send = Courier()
    _, received = carried(send((Buffers().take((2, 4, 4, 3)), target)))
    assert type(received) is type(target)
    assert received == target if isinstance(target, list) else torch.equal(received, target)


KINDS = {
    'workers of an epoch': dict(persistent_workers=False),
    'persistent workers': dict(),
    'multi-epochs': dict(use_multi_epochs_loader=True),
    'mixed': dict(mixup=dict(mixup_alpha=1., num_classes=IMAGES)),
    'scheduled sizes': dict(input_size_choices=[8, 16], batch_size_choices=[4, 4]),
    'small images in memory': dict(image_memory='0.1', train_crop_mode='pad', color_jitter=None),
    'by timm': dict(augment_backend='timm'),
    'pinned': dict(pin_memory=True),
}


@pytest.fixture
def pins(monkeypatch):
    """Shapes of the tensors that were pinned. As with an accelerator, the thread of torch copies them, slowly."""
    shapes = []

    def pin_memory(tensor, device=None):
        time.sleep(.002)
        shapes.append(tuple(tensor.shape))
        return tensor.clone()
    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin_memory)
    for name, value in dict(is_available=True, set_device_index=None, current_device_index=0,
                            current_accelerator=torch.device('cuda')).items():
        monkeypatch.setattr(torch.accelerator, name, lambda *args, value=value, **kwargs: value)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_batches_equal_those_of_a_loader_that_sends_them_completely(dataset, kind, request):
    if kind == 'pinned':
        pinned = request.getfixturevalue('pins')

    def epochs(wrapped):
        random_seed(3)
        loader = create_two_view_loader(
            dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3,
            **({} if kind == 'pinned' and not wrapped else KINDS[kind]))
        if wrapped:
            loader, _ = make_resumable(loader, CPU)
        return [(x.clone(), target.clone()) for _ in range(3) for x, target in loader]
    ours, expected = epochs(True), epochs(False)
    assert len(ours) == len(expected) == 3 * IMAGES // 4
    for (x, target), (expected_x, expected_target) in zip(ours, expected):
        assert torch.equal(x, expected_x) and torch.equal(target, expected_target)
        assert target.dtype == expected_target.dtype
    if kind == 'pinned':
        assert sorted(pinned) == sorted([(8, 3, 8, 8), (8,)] * 30)


def test_memory_of_ended_workers_is_freed(dataset):
    for persistent in (False, True):
        loader = create_two_view_loader(
            dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3,
            augment_backend='fast', persistent_workers=persistent)
        loader, resumable = make_resumable(loader, CPU)
        held = [len(resumable._courier._received) for _ in loader]
        assert max(held) == 2 * 3
        assert len(resumable._courier._received) == (2 * 3 if persistent else 0)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['workers of an epoch', 'persistent workers'])
@pytest.mark.parametrize('left_after', [1, 2, 4, 7])
def test_a_pass_after_an_incomplete_one_has_every_sample(dataset, kind, left_after):
    """Batches made ahead are discarded, also those with new buffers."""
    loader = create_two_view_loader(
        dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(0.,) * 3, std=(1 / 255,) * 3, augment_backend='fast',
        color_jitter=None, **KINDS[kind])
    loader, _ = make_resumable(loader, CPU)
    for _ in range(2):
        for done, _ in enumerate(loader, 1):
            if done == left_after:
                break
    targets = torch.cat([target for _, target in loader])
    assert sorted(targets.tolist()) == sorted(2 * list(range(IMAGES)))


def test_a_socket_is_opened_only_for_new_buffers(dataset, monkeypatch):
    opened, connect = [], resource_sharer._ResourceSharer.get_connection
    monkeypatch.setattr(resource_sharer._ResourceSharer, 'get_connection',
                        staticmethod(lambda ident: opened.append(ident) or connect(ident)))
    loader = create_two_view_loader(
        dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3, augment_backend='fast')
    loader, _ = make_resumable(loader, CPU)
    assert sum(1 for _ in range(3) for _ in loader) == 3 * IMAGES // 4
    assert len(opened) == 2 * 3


# Copies to a device that read late

SOURCES = {
    'files': dict(),
    'small images in memory': dict(image_memory='1M', train_crop_mode='pad'),
    'mixed': dict(mixup=dict(mixup_alpha=1., num_classes=IMAGES)),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for number, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)):
        (root / 'train' / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / 'train' / str(number % 2) / f'{number}.png')
    return root


def loader_for(device, dataset, workers=2, **kwargs):
    """The torch loader of a training loader for a device that this machine need not have."""
    with pytest.MonkeyPatch.context() as patch:
        tensor = torch.tensor
        patch.setattr(torch, 'tensor', lambda *args, device=None, **kwargs: tensor(*args, **kwargs))  # mean and std
        loader = create_two_view_loader(
            dataset, (3, 8, 8), 4, num_workers=workers, device=torch.device(device), mean=(.5,) * 3, std=(.5,) * 3,
            augment_backend='fast', color_jitter=None, **kwargs)
    return loader.loader


@pytest.mark.slow
@pytest.mark.parametrize('source, workers', [
    ('files', 0), ('files', 2), ('small images in memory', 2), ('small images in memory', 0), ('mixed', 2)])
@pytest.mark.parametrize('device, pin_memory, reused', [
    ('cpu', None, True), ('cuda', None, True), ('cuda', False, False), ('xpu', None, False), ('mps', None, False)])
def test_no_batch_is_overwritten_before_a_device_reads_it(
        folder, pins, source, workers, device, pin_memory, reused):
    """Here the device reads nothing before the end of the epoch."""
    loader = loader_for(
        device, create_dataset('', str(folder), 'train'), workers, pin_memory=pin_memory, **SOURCES[source])
    assert (loader.dataset.batches is not None) == source.startswith('small')
    batches = [(images, images.clone()) for images, _ in loader]
    overwritten = [not torch.equal(late, at_once) for late, at_once in batches]
    assert len(batches) == IMAGES // 4
    assert any(overwritten) is (device == 'cpu')  # which has read a batch when it asks for the next
    assert len(pins) == (2 * len(batches) if device == 'cuda' and reused else 0)
    assert loader.collate_fn._buffers.reused is reused


@pytest.mark.parametrize('device, default', [('cpu', False), ('cuda', True), ('xpu', False)])
def test_memory_is_pinned_by_default_for_cuda_only(dataset, device, default):
    for asked, expected in ((None, default), (True, True), (False, False)):
        assert loader_for(device, dataset(), pin_memory=asked).pin_memory is expected
    assert loader_for(device, dataset()).pin_memory is default
    config = dict(mean=(.5,) * 3, std=(.5,) * 3, interpolation='bilinear')
    for parse in (parse_train_args, parse_validate_args):
        for flags, expected in (([], default), (['--pin-mem'], True), (['--no-pin-mem'], False)):
            args = parse(['data', *flags])
            assert _loader_kwargs(args, config, torch.device(device), Precision())['pin_memory'] is expected
