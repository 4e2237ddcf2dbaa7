"""AMP in float16 and bfloat16: losses near those of float32, and updates that overflow."""
import pytest
import torch
from timm.utils import ModelEmaV3

from agmax_timm.assembly import model
from tests.helpers.scaling import scale_float16

from .updates import BFLOAT16, FLOAT16, batches, distance, make_step, make_task, options, train, train_and_read, weights


def test_only_float16_has_a_scaler(device):
    assert model.build_precision(options(**FLOAT16), device).scaler is not None
    assert model.build_precision(options(**BFLOAT16), device).scaler is None


@pytest.mark.parametrize('clip', [{}, dict(clip_grad=0.5)], ids=str)
@pytest.mark.parametrize('case', [BFLOAT16, FLOAT16], ids=['bfloat16', 'float16'])
def test_losses_of_twelve_updates_are_near_those_of_float32(device, record_property, monkeypatch, case, clip):
    scale_float16(monkeypatch, init_scale=2. ** 10)  # that of runs is larger, and the first updates overflow
    steps = [make_step(make_task(device, 'test_vit'), device, options(**clip, **precision)) for precision in ({}, case)]
    means = [train_and_read(step, batches(device, 12))['loss'] for step in steps]
    record_property('mean loss, float32', means[0])
    record_property('mean loss', means[1])
    assert means[1] == pytest.approx(means[0], rel=0.02, abs=0.02)
    scaler = steps[1].training.precision.scaler
    assert scaler is None or scaler.scale == 2. ** 10, 'an update was skipped'


def test_an_update_that_overflows_is_skipped(device):
    task = make_task(device, 'test_vit')
    task.setup_ema(decay=0.5)
    assert isinstance(task.trainable_module_ema, ModelEmaV3)
    step, data = make_step(task, device, options(**FLOAT16)), batches(device, 3)
    train(step, data)
    before, scale = weights(task), step.training.precision.scaler.scale
    average = [value.clone() for value in task.get_trainable_module(ema=True).state_dict().values()]
    overflow = next(task.get_trainable_module().parameters()).register_hook(lambda gradient: gradient * float('inf'))
    train(step, data[:1])
    assert torch.equal(weights(task), before)
    after = task.get_trainable_module(ema=True).state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(after, average))
    assert step.training.precision.scaler.scale == scale / 2
    overflow.remove()
    train(step, data[:1])
    assert distance(weights(task), before) > 0
