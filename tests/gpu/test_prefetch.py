"""Prefetch: batches of reused memory, pinned or not, under a device that lags; what a copy costs the host."""
import time
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils import random_seed

from agmax_timm import create_two_view_loader
from agmax_timm.data.resumption.loader import make_resumable

from .updates import keep_busy, synchronize

CPU = torch.device('cpu')


class Pictures(torch.utils.data.Dataset):
    """Images of noise with their index as target."""

    def __init__(self, count, side):
        self.pixels = np.random.RandomState(0).randint(0, 256, (count, side, side, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index]), index


@cache
def sums(device, workers, side, pinned=False, by_number=False):
    """A number for each batch that depends on its pixels and their order."""
    random_seed(1)
    loader = create_two_view_loader(
        Pictures(128, side), side - 32, 16, num_workers=workers, device=device, mean=(0.,) * 3, std=(1 / 255,) * 3,
        augment_backend='fast', color_jitter=None, pin_memory=pinned)
    if by_number:  # as train.py: a worker sends its memory once, then numbers
        loader, _ = make_resumable(loader, device)
    weights, found = torch.arange(1., side - 31, device=device, dtype=torch.float64), []
    for images, _ in loader:
        keep_busy(device, 0.02)  # the host runs ahead
        found.append((images.double() * weights).sum())
    return torch.stack(found).cpu()


@pytest.mark.parametrize('by_number', [False, True])
@pytest.mark.parametrize('pinned', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_batches_equal_those_of_the_cpu(device, workers, pinned, by_number):
    side = 224 if device.type == 'cuda' else 64
    found = sums(device, workers, side, pinned and device.type == 'cuda', by_number)
    assert len(found) == 8
    torch.testing.assert_close(found, sums(CPU, workers, side), rtol=1e-12, atol=0)


@pytest.mark.timing
@pytest.mark.parametrize('pinned', [True, False], ids=['pinned', 'pageable'])
def test_a_pinned_copy_does_not_wait_for_queued_work(device, record_property, pinned):
    """timm's PrefetchLoader copies in the same way: on its own stream, which waits for the consumer."""
    views = torch.randint(0, 256, (256 if device.type == 'cuda' else 2, 3, 224, 224), dtype=torch.uint8)
    if pinned and device.type == 'cuda':
        views = views.pin_memory()
    side, took = torch.cuda.Stream() if device.type == 'cuda' else None, []
    keep_busy(device, 1)
    for _ in range(4):
        synchronize(device)
        keep_busy(device, 0.05)
        start = time.perf_counter()
        if side is not None:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            views.to(device, non_blocking=True)
        took.append(time.perf_counter() - start)
    synchronize(device)
    record_property('ms of the host behind 50 ms of work', 1000 * min(took))
    assert min(took) < 5e-3 or not pinned or device.type == 'cpu'
