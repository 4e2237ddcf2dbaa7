"""Resume to the last bit in float32, float16 and bfloat16, and on another kind of device."""
import pytest
import torch

from agmax_timm.assembly import model as build
from tests.helpers.exact import assert_equal, outcome
from tests.helpers.scaling import scale_float16

PRECISIONS = {'float32': [], 'float16': ['--amp'], 'bfloat16': ['--amp', '--amp-dtype', 'bfloat16']}
RANDOM = ['--model', 'test_vit', '--model-ema', '--model-ema-decay', '0.9', '--clip-grad', '1', '--opt', 'adamw',
          '--augment-backend', 'fast', '--color-jitter', '0.4', '--reprob', '0.5', '--remode', 'pixel', '--cutout', '8',
          '--epochs', '2']


@pytest.fixture
def deterministic(monkeypatch):
    """Use deterministic kernels as far as torch has them."""
    init_device = build.init_device

    def without_search(*args):
        device = init_device(*args)
        torch.backends.cudnn.benchmark = False  # it may choose another kernel in each run
        return device

    monkeypatch.setattr(build, 'init_device', without_search)
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize('precision', PRECISIONS)
def test_interrupted_runs_equal_uninterrupted_ones(device, run, deterministic, monkeypatch, precision):
    scale = 2. ** (20 if device.type == 'cuda' else 127)  # so large that updates are skipped
    scale_float16(monkeypatch, init_scale=scale, growth_interval=3)
    flags = [*RANDOM, *PRECISIONS[precision]]
    whole = outcome(run('whole', *flags))
    assert_equal(outcome(run('again', *flags)), whole)  # otherwise the next comparison proves nothing
    assert_equal(outcome(run('interrupted', *flags, stops=(2, 15, 1, 1, 1))), whole)
    if precision == 'float16':
        assert whole['amp_scaler']['scale'] < scale
    assert ('device' in whole['random'][0]['loader']['random']) == (device.type == 'cuda')


@pytest.mark.parametrize('flags', [['--device', 'cpu'], ['--model-ema-force-cpu']], ids=str)
def test_a_checkpoint_is_resumed_on_another_kind_of_device(run, tmp_path, flags):
    run('first', *RANDOM, '--recovery-interval', '3')
    folder = run('second', *RANDOM, *flags, '--resume', tmp_path / 'first' / 'recovery-1-2.pth.tar')
    assert (folder / 'last.pth.tar').exists()
