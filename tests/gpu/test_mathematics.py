"""Mathematics against float64 on the CPU: loss, gradients, updates, channels_last, jitter."""
import pytest
import torch
from torchvision import transforms

from agmax_timm.data.arrays.jitter import DeviceJitter, jitter_levels
from agmax_timm.loss import AGREEMENT_KINDS, agreement_terms

from .updates import batches, distance, make_network, make_step, make_task, options, train, weights

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(8, 10), (128, 1000)], ids=str)
@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_terms_and_gradients_under_autocast_equal_those_of_float64(device, record_property, kind, shape, dtype):
    torch.manual_seed(0)
    logits = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    expected = sum(agreement_terms(*logits, kind=kind))
    expected.backward()
    on_device = logits.detach().to(device, dtype).requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):  # which the terms are to leave
        value = sum(agreement_terms(*on_device, kind=kind))
    scale = 2. ** 16 if dtype == torch.float16 else 1.  # as the loss scaler's
    (scale * value).backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(value.cpu().double(), expected.detach(), rtol=tolerance, atol=tolerance)
    error = distance(on_device.grad.cpu().double() / scale, logits.grad)
    record_property('relative error of the gradient', error)
    assert error <= 10 * tolerance


@pytest.mark.parametrize('case', [{}, dict(clip_grad=1.), dict(grad_accum_steps=2), dict(channels_last=True)], ids=str)
def test_updates_in_float64_equal_those_of_the_cpu(device, record_property, case):
    outcomes = []
    for place in (torch.device('cpu'), device):
        task = make_task(place)
        task.get_trainable_module().double()
        if case.get('channels_last'):
            task.get_trainable_module().to(memory_format=torch.channels_last)
        train(make_step(task, place, options(**case)), batches(place, 4, dtype=torch.float64))
        outcomes.append(weights(task))
    error = distance(outcomes[1], outcomes[0])
    record_property('relative error of the weights', error)
    assert error < 1e-8
    assert distance(weights(make_task(torch.device('cpu'))), outcomes[0]) > 1e-3, 'the weights changed'


def test_channels_last_is_kept_and_gives_the_same_updates(device, record_property):
    name = 'resnet18' if device.type == 'cuda' else 'test_resnet'
    outcomes = []
    for case in ({}, dict(channels_last=True)):
        task = make_task(device, name)
        if case:
            task.get_trainable_module().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)
        train(make_step(task, device, options(**case), optimizer), batches(device, 3, size=64))
        outcomes.append(weights(task))
    kernel = next(p for p in task.get_trainable_module().parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    error = distance(outcomes[1], outcomes[0])
    record_property('relative distance of the weights', error)
    assert error < 1e-3


def test_logits_of_a_network_equal_those_of_the_cpu(device, record_property):
    expected = make_network('cpu', dtype=torch.float64).eval()(batches('cpu', 1, dtype=torch.float64)[0][0])
    with torch.inference_mode():
        error = distance(make_network(device).eval()(batches(device, 1, dtype=torch.float64)[0][0].float()).cpu(),
                         expected.detach())
    record_property('relative error of the logits', error)
    assert error < 1e-4


def test_jitter_on_the_device_equals_that_of_the_cpu(device, record_property):
    mean, std = torch.full((1, 3, 1, 1), 120., device=device), torch.full((1, 3, 1, 1), 50., device=device)
    jitter = DeviceJitter(transforms.ColorJitter(0.4, 0.4, 0.4), mean, std)
    levels = torch.randint(0, 256, (32, 3, 64, 64)).float()
    torch.manual_seed(5)
    expected = jitter_levels(levels.clone(), *jitter.draw(32))
    torch.manual_seed(5)
    found = jitter((levels.to(device) - mean) / std).mul(std).add(mean).cpu()
    off = (found - expected).abs()
    record_property('most levels off', float(off.max()))
    assert off.max() <= 2.01
    assert (off > 0.5).float().mean() < 1e-3
