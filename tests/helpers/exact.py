"""Interrupted runs, and everything in which they must equal uninterrupted ones."""
import torch

from agmax_timm.base.signals import StopSignals
from tests.helpers.run_files import load

# 6 updates of training and 6 batches of validation an epoch.
FLAGS = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '2', '--warmup-epochs', '0',
         '--lr', '0.05', '--log-interval', '2', '--epochs', '3', '--drop', '0.1', '--checkpoint-hist', '2']


class StopAfter(StopSignals):
    """Signals that ask a run to end after a number of checks. A run checks after each update and evaluated batch."""

    def __init__(self, looks):
        self.looks = looks

    def check_start(self, args, device):
        """Receive no signal before training."""

    @property
    def received(self):
        self.looks -= 1
        return 'SIGTERM' if self.looks < 0 else None


def outcome(folder):
    """Return everything that a run writes, except times."""
    last = load(folder / 'last.pth.tar')
    kept = {name: last.get(name) for name in ('state_dict', 'state_dict_ema', 'task_state', 'task_state_ema',
                                              'optimizer', 'amp_scaler', 'epoch', 'metric')}
    state = last['agmax_state']
    lines = [line.split(' ', 2)[2] for line in (folder / 'train.log').read_text().splitlines() if 'Train: ' in line]
    return dict(
        kept, summary=(folder / 'summary.csv').read_text(), random=state['ranks'], results=state['results'],
        best=load(folder / 'model_best.pth.tar')['state_dict'], saver=last['saver'],
        losses=[line.split('  Time')[0] for line in lines],
        files=sorted(path.name for path in folder.iterdir() if 'recovery' not in path.name))


def assert_equal(ours, expected, where=''):
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for name in expected:
            assert_equal(ours[name], expected[name], f'{where}.{name}')
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected), where
        for number, values in enumerate(zip(ours, expected)):
            assert_equal(*values, f'{where}[{number}]')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(ours, expected), where
    else:
        assert ours == expected, where


def equal(a, b):
    """Whether values, types and the order of keys are equal."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b
