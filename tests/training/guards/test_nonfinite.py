"""Broken updates in a row, which end a run with --nan-policy skip."""
import pytest
import torch

from agmax_timm.options.parse import parse_train_args
from agmax_timm.training.guards.nonfinite import BrokenUpdates
from agmax_timm.training.updates.finite_check import CheckResult
from agmax_timm.training.updates.losses import BatchLosses, NonFiniteError, Update
from agmax_timm.training.updates.step import Training

BATCHES = 60  # of an epoch


class Loader:
    loader = range(BATCHES)

    def indices(self, batch):
        return [batch]


@pytest.fixture
def broken():
    """Function: report that the update of two batches with this number, counted over all epochs, is broken."""
    options = parse_train_args(['DIR', '--nan-policy', 'skip', '--grad-accum-steps', '2'])
    report = BrokenUpdates(Training(None, None, options, torch.device('cpu'), None), Loader())
    losses = [BatchLosses(('loss',), torch.tensor([torch.nan]), 1)] * 2

    def call(number):
        epoch, index = divmod(number, BATCHES // 2)
        report(Update(epoch, 2 * index, losses), CheckResult(['loss'], ['loss']))
    return call


def test_50_broken_updates_in_a_row_end_the_run(broken):
    """Also over the end of an epoch. An update that is made begins a new row."""
    for number in range(49):
        broken(number)
    for number in range(50, 99):
        broken(number)
    with pytest.raises(NonFiniteError, match='^update 9 of epoch 3: loss not finite, samples 18, 19: the last of 50 '):
        broken(99)
