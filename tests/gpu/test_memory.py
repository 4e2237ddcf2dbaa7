"""Memory: constant over epochs, and the peak of AgMax against cross-entropy on as many views."""
import gc

import pytest
import torch
from timm.task import ClassificationTask
from torchvision import transforms

from agmax_timm import AgMaxTask
from agmax_timm.data.arrays.jitter import DTYPES, DeviceJitter

from .updates import BFLOAT16, batches, make_network, make_step, make_task, options, synchronize, train


def allocated(device, most=False):
    """Bytes of tensors on a GPU. Those of a CPU are not counted."""
    if device.type == 'cpu':
        return 0
    synchronize(device)
    return torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()


def test_memory_is_constant_over_epochs(device, record_property):
    gc.collect()  # tensors of earlier tests
    task = make_task(device, 'resnet18' if device.type == 'cuda' else 'test_resnet')
    task.setup_ema()
    step, data, seen = make_step(task, device, options(**BFLOAT16)), batches(device, 4, images=8, size=64), []
    for _ in range(12 if device.type == 'cuda' else 3):
        train(step, data)
        seen.append(allocated(device))
    record_property('MiB after an epoch', seen[-1] / 2 ** 20)
    assert max(seen[2:]) <= seen[2], seen


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_jitter_needs_less_memory_than_a_batch(device, record_property, dtype):
    images = torch.rand((256, 3, 224, 224) if device.type == 'cuda' else (2, 3, 32, 32), device=device, dtype=dtype)
    mean, std = torch.zeros(1, 3, 1, 1, device=device), torch.ones(1, 3, 1, 1, device=device)
    jitter = DeviceJitter(transforms.ColorJitter(0.4, 0.4, 0.4), mean, std)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    before = allocated(device)
    jitter(images)
    peak = (allocated(device, most=True) - before) / 2 ** 20
    record_property('MiB beyond the batch', peak)
    assert peak < 80


def test_the_peak_exceeds_that_of_cross_entropy_by_the_q_network(device, record_property):
    """The 12.3 M parameters for ResNet-50 take 141 MiB as weights, gradients and momentum."""
    name, images, size = ('resnet50', 128, 224) if device.type == 'cuda' else ('test_resnet', 2, 32)
    data, peaks = batches(device, 3, images=images, size=size, classes=1000), []
    for agmax in (False, True):
        gc.collect()
        network = make_network(device, name, classes=1000).to(memory_format=torch.channels_last)
        task = AgMaxTask(network, verbose=False) if agmax else ClassificationTask(
            network, torch.nn.CrossEntropyLoss(), verbose=False)
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        train(make_step(task, device, options(agmax=agmax, channels_last=True, **BFLOAT16)), data)
        peaks.append(allocated(device, most=True) / 2 ** 20)
        del network, task
    record_property('MiB, cross-entropy', peaks[0])
    record_property('MiB, AgMax', peaks[1])
    assert peaks[1] - peaks[0] < 300
