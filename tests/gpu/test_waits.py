"""Host waits: besides the reading of its losses, an update waits for the device only where it says so."""
import pytest
from timm.loss import SoftTargetCrossEntropy

from agmax_timm.distillation import AgMaxDistillationTask

from .updates import BFLOAT16, FLOAT16, batches, host_waits, make_network, make_step, make_task, options, train

BATCHES = 6
# Options, and waits in an update: --nan-policy skip reads the gradients before the step, and the loss scaler whether it
# may step, once itself and once in torch.
CASES = [
    ({}, 0), (dict(clip_grad=1.), 0), (dict(clip_grad=0.1, clip_mode='value'), 0),
    (dict(clip_grad=0.1, clip_mode='agc'), 0), (dict(grad_accum_steps=2), 0), (dict(channels_last=True), 0),
    (BFLOAT16, 0), (FLOAT16, 2), (dict(nan_policy='skip'), 1), (dict(nan_policy='skip', **BFLOAT16), 1)]


def count_waits(task, device, args):
    task.setup_ema()
    step, data = make_step(task, device, args, on_broken=lambda *_: None), batches(device, BATCHES, soft=True)
    train(step, data)  # what is made once: momentum, workspaces, the scale
    with host_waits(device) as waits:
        train(step, data)
    return len(waits)


def test_a_wait_is_detected(cuda):
    with host_waits(cuda) as waits:
        batches(cuda, 1)[0][0].sum().item()
    assert waits


@pytest.mark.parametrize('case, most', CASES, ids=str)
def test_updates_wait_only_for_documented_reasons(device, record_property, case, most):
    args = options(**case)
    found = count_waits(make_task(device, criterion=SoftTargetCrossEntropy()), device, args)
    record_property('waits in an update, besides its losses', found * args.grad_accum_steps / BATCHES)
    assert found <= most * BATCHES


@pytest.mark.parametrize('kind', ['mse', 'kl', 'ce'])
def test_no_kind_of_agreement_waits(device, kind):
    assert count_waits(make_task(device, kind=kind), device, options()) == 0


def test_distillation_does_not_wait(device):
    task = AgMaxDistillationTask(make_network(device), make_network(device), verbose=False)
    assert count_waits(task, device, options()) == 0
