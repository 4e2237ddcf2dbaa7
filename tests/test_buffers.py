"""Batches in memory that is used again: what a worker sends by number against the same batches sent whole."""
import pickle
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils import random_seed

from agmax_timm import create_two_view_loader
from agmax_timm.data import buffers
from agmax_timm.data.buffers import Buffers, InBuffer, Receiver, Sender
from agmax_timm.data.resumable import make_resumable

CPU = torch.device('cpu')
IMAGES = 40  # 10 batches of 4


@pytest.fixture
def dataset(memory_dataset):
    pixels = np.random.RandomState(0).randint(0, 256, (IMAGES, 12, 10, 3), dtype=np.uint8)
    return lambda: memory_dataset([Image.fromarray(image) for image in pixels])


@pytest.fixture
def worker(monkeypatch):
    """This process, as if it were a worker."""
    monkeypatch.setattr(buffers, 'get_worker_info', lambda: True)
    monkeypatch.setattr(buffers, '_numbers', {})


def test_buffers_are_used_in_turn():
    taken = Buffers()
    first = taken.take((2, 4, 4, 3))
    assert taken.take((2, 5, 4, 3)).shape == (2, 5, 4, 3)
    assert taken.take((2, 4, 4, 3)) is first


def sent(batch):
    """As it arrives, and the bytes that the queue carries."""
    content = bytes(ForkingPickler.dumps(batch))
    return pickle.loads(content), len(content)


def test_a_buffer_is_sent_once(worker):
    taken, send, receive = Buffers(), Sender(), Receiver()
    addresses = set()
    for number in range(8):
        shape = (2, 4, 4, 3) if number % 2 else (2, 5, 4, 3)
        images = taken.take(shape).permute(0, 3, 1, 2)
        images[:] = number
        target = torch.tensor([number, number + 1])
        arrived, _ = sent(send((images, target)))
        assert isinstance(arrived, InBuffer) and (arrived.images is None) == (number >= 6)
        received, received_target = receive(arrived, 0)
        assert received.shape == images.shape and received.stride() == images.stride()
        assert torch.equal(received, images) and torch.equal(received_target, target)
        addresses.add(received.data_ptr())
    assert len(addresses) == 6  # three of each shape


def test_workers_have_buffers_of_their_own(worker):
    receive, batches = Receiver(), []
    for number in range(2):  # both call their first buffer 0
        buffers._numbers.clear()
        images = Buffers().take((1, 2, 2, 3))
        images[:] = number
        batches.append((Sender(), images))
        receive(sent(batches[-1][0]((images, torch.tensor([number]))))[0], number)
    for number, (send, images) in enumerate(batches):
        received, _ = receive(sent(send((images, torch.tensor([number]))))[0], number)
        assert (received == number).all()


def test_what_is_in_no_buffer_goes_as_it_is(worker):
    send, receive = Sender(), Receiver()
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for batch in ((images, torch.zeros(2)), [images, images], {'image': images}, (images, images, images), None):
        assert send(batch) is batch and receive(batch, 0) is batch


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


@pytest.mark.filterwarnings('ignore:.*pin_memory')
@pytest.mark.parametrize('kind', KINDS)
def test_batches_are_those_of_a_loader_that_sends_them_whole(dataset, kind):
    def epochs(wrapped):
        random_seed(3)
        loader = create_two_view_loader(
            dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3, **KINDS[kind])
        if wrapped:
            loader, _ = make_resumable(loader, CPU)
        return [(x.clone(), target.clone()) for _ in range(3) for x, target in loader]
    ours, expected = epochs(True), epochs(False)
    assert len(ours) == len(expected) == 3 * IMAGES // 4
    for (x, target), (expected_x, expected_target) in zip(ours, expected):
        assert torch.equal(x, expected_x) and torch.equal(target, expected_target)
        assert target.dtype == expected_target.dtype


def test_memory_of_workers_that_have_ended_is_freed(dataset):
    for persistent in (False, True):
        loader = create_two_view_loader(
            dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3,
            augment_backend='fast', persistent_workers=persistent)
        loader, resumable = make_resumable(loader, CPU)
        held = [len(resumable._receive._buffers) for _ in loader]
        assert max(held) == 2 * 3
        assert len(resumable._receive._buffers) == (2 * 3 if persistent else 0)


def test_no_socket_is_opened_but_for_what_is_new(dataset, monkeypatch):
    opened, connect = [], resource_sharer._ResourceSharer.get_connection
    monkeypatch.setattr(resource_sharer._ResourceSharer, 'get_connection',
                        staticmethod(lambda ident: opened.append(ident) or connect(ident)))
    loader = create_two_view_loader(
        dataset(), (3, 8, 8), 4, num_workers=2, device=CPU, mean=(.5,) * 3, std=(.5,) * 3, augment_backend='fast')
    loader, _ = make_resumable(loader, CPU)
    assert sum(1 for _ in range(3) for _ in loader) == 3 * IMAGES // 4
    assert len(opened) == 2 * 3
