"""Saving behind queued work: a snapshot is the state when it was asked for."""
import time

import pytest
import torch

from agmax_timm.base.background import snapshot
from agmax_timm.training.checkpoints.manager import check_weights

from .updates import keep_busy, make_task, synchronize


def test_a_snapshot_contains_the_result_of_queued_work(device):
    weights = torch.zeros(2 ** 20, device=device)
    keep_busy(device, 0.1)
    weights.fill_(3.)
    copied = snapshot({'weights': weights, 'list': [weights[:8].view(2, 4).t()]})
    weights.fill_(5.)
    assert copied['weights'].device.type == 'cpu' and bool((copied['weights'] == 3.).all())
    assert copied['list'][0].stride() == (1, 4)


def test_a_snapshot_of_an_optimizer_contains_the_result_of_queued_work(device):
    weight = torch.zeros(2 ** 16, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    for factor in (1., 2.):
        keep_busy(device, 0.1)
        weight.grad = torch.full_like(weight, factor)
        optimizer.step()
        if factor == 1.:
            copied = snapshot(optimizer.state_dict())
    torch.testing.assert_close(copied['state'][0]['exp_avg'], torch.full((2 ** 16,), 0.1))


@pytest.mark.timing
def test_the_time_of_a_snapshot_is_recorded(device, record_property):
    task = make_task(device, 'resnet50' if device.type == 'cuda' else 'test_resnet')
    task.setup_ema()
    check_weights(task, device)
    synchronize(device)
    start = time.perf_counter()
    snapshot([task.get_checkpoint_state(), task.get_checkpoint_state(ema=True)])
    record_property('ms to copy weights and EMA to the host', 1000 * (time.perf_counter() - start))
