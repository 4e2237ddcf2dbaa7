"""Runs with mixing and with remembered predictions: losses and memory near those of the same run on the CPU."""
import pytest
import torch

from tests.helpers.run_files import load, summary

FLAGS = ['--epochs', '1', '--lr', '0.005', '--drop', '0', '--color-jitter', '0', '--augment-backend', 'timm']
MEMORY = ['--agmax-teacher', 'memory', '--agmax-teacher-ramp', '0']
CASES = [
    ['--mixup', '0.2', '--cutmix', '1'], ['--mixup', '0.2', '--no-prefetcher'], ['--balanced-sampling'], MEMORY,
    [*MEMORY, '--agmax-teacher-topk', '2', '--mixup', '0.2'],
    [*MEMORY, '--mixup', '0.2', '--mixup-mode', 'elem', '--no-prefetcher']]


@pytest.mark.parametrize('flags', CASES, ids=' '.join)
def test_a_run_has_the_losses_of_one_on_the_cpu(run, record_property, flags):
    folders = run('device', *FLAGS, *flags), run('cpu', *FLAGS, *flags, '--device', 'cpu')
    found, expected = ({name: float(value) for name, value in summary(folder)[0].items() if name.startswith('train_')}
                       for folder in folders)
    record_property('largest difference of a mean loss', max(abs(found[name] - expected[name]) for name in expected))
    assert found == pytest.approx(expected, rel=0.02, abs=0.02)
    found, expected = (load(folder / 'last.pth.tar')['task_state'].get('memory', {}) for folder in folders)
    assert found.keys() == expected.keys() and bool(found) == ('--agmax-teacher' in flags)
    for name in {'values', 'seen'} & found.keys():
        torch.testing.assert_close(found[name].float(), expected[name].float(), rtol=0, atol=0.02)
