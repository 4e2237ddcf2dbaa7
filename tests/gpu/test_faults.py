"""Losses and gradients that are not finite, and a device that hangs."""
import time

import pytest
import torch

from agmax_timm.commands import train as train_cli
from agmax_timm.training.guards.watchdog import Watchdog
from tests.helpers.poison import poison_gradients, poison_losses
from tests.helpers.ranks import finish_ranks, logs, start_ranks
from tests.helpers.run_files import load

from .updates import keep_busy


def fail(argv, capsys):
    """The last line of a run that ends with status 1."""
    with pytest.raises(SystemExit) as end:
        train_cli.main(argv)
    assert end.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize('flags', [[], ['--amp'], ['--amp', '--amp-dtype', 'bfloat16']], ids=str)
def test_a_loss_that_is_not_finite_ends_the_run_and_is_named(argv, capsys, monkeypatch, flags):
    poison_losses(monkeypatch, {3})
    assert 'update 2 of epoch 0: ce not finite' in fail(argv('run', *flags), capsys)


def test_a_gradient_that_is_not_finite_ends_the_run_and_names_its_update(argv, capsys, monkeypatch):
    """On a GPU, it is read with the next update."""
    poison_gradients(monkeypatch, {3})
    assert 'update 2 of epoch 0: gradient not finite' in fail(argv('run'), capsys)


@pytest.mark.parametrize('poison, flags, words', [
    (poison_losses, [], 'Left out: update 2 of epoch 0: ce not finite'),
    (poison_losses, ['--amp'], 'Left out: update 2 of epoch 0: ce not finite'),
    (poison_gradients, [], 'Left out: update 2 of epoch 0: gradient not finite'),
    (poison_gradients, ['--amp'], 'Skipped update 2 of epoch 0')])
def test_an_update_that_is_not_finite_is_left_out(run, monkeypatch, poison, flags, words):
    poison(monkeypatch, {3})
    folder = run('run', '--epochs', '1', '--nan-policy', 'skip', *flags)
    assert words in (folder / 'train.log').read_text()
    assert all(value.isfinite().all() for value in load(folder / 'last.pth.tar')['state_dict'].values())


def test_gradients_that_are_never_finite_end_a_run_in_float16(argv, capsys, monkeypatch):
    poison_gradients(monkeypatch, range(1, 100))
    assert 'updates in a row' in fail(argv('run', '--amp', '--epochs', '9'), capsys)


def hang(name):
    device = torch.device(name)
    with Watchdog(1) as watchdog:
        torch.zeros(1, device=device)
        watchdog.beat()
        if device.type == 'cpu':
            time.sleep(12)
        keep_busy(device, 12)
        event = torch.cuda.Event()
        event.record()
        event.synchronize()


def test_a_device_that_hangs_ends_the_process(device, tmp_path):
    """The main thread waits for the device, and the watchdog ends the process."""
    assert finish_ranks(start_ranks(1, tmp_path, hang, device.type)) == [75], logs(tmp_path)
    assert 'nothing has happened for 1 s' in logs(tmp_path)
