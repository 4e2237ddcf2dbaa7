"""Broken updates: many in a row, which end a run with --nan-policy skip, and a full disk that takes no file of one."""
import errno
import os
from argparse import Namespace

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


def test_a_full_disk_is_part_of_the_message(tmp_path, file_size_limit):
    """torch.save raises a RuntimeError then, while the other ranks wait for the description."""
    task = Namespace(get_trainable_module=lambda: torch.nn.Linear(100, 100))
    report = BrokenUpdates(Training(task, None, parse_train_args(['DIR']), torch.device('cpu'), None), Loader())
    report.folder = str(tmp_path)
    losses = BatchLosses(('loss',), torch.tensor([torch.nan]), 2)
    update = Update(0, 4, [losses], torch.zeros(2, 3), torch.zeros(2))
    with file_size_limit(20_000):
        described = report._describe(update, CheckResult(['loss'], ['loss']))
    path = tmp_path / 'broken-0-4-rank0.pth'
    assert described == f"samples 4, kept in nothing, [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{path}'"
    assert not any(tmp_path.iterdir())
