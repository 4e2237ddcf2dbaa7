"""The end of an epoch: what an error waits for, and when a run stops early."""
from argparse import Namespace

import pytest
import torch

from agmax_timm.training.epochs import Epochs
from agmax_timm.training.updates.losses import NonFiniteError, RunningLosses


@pytest.fixture
def epochs():
    """Epochs of a run without validation."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    state = Namespace(history=Namespace(rows=[], results=[]))
    made = Epochs.__new__(Epochs)
    made.options = Namespace(nan_policy='stop', early_stop=0)
    made.run = Namespace(options=made.options, state=state, device=torch.device('cpu'), loader_eval=None,
                         metric_name='loss', scheduler=None, optimizer=optimizer)
    made.trackers = None
    return made


def test_the_epoch_is_on_disk_before_a_metric_that_is_not_finite_ends_the_run(epochs):
    """All ranks raise the error, so that without a wait the launcher would kill the one that writes."""
    calls = []
    epochs.checkpoints = Namespace(save_epoch=lambda *args, **metrics: calls.append('save'),
                                   finish=lambda: calls.append('finish'))
    with pytest.raises(NonFiniteError, match='after epoch 3: loss is nan.*best. With --nan-policy skip, the run'):
        epochs._evaluate(3, {'loss': torch.nan}, RunningLosses(torch.device('cpu')))
    assert calls == ['save', 'finish']


def test_early_stopping_compares_training_losses_only_with_each_other(epochs):
    """The run had validation data before it was resumed."""
    vars(epochs.options).update(early_stop=1, early_stop_metric=None, early_stop_min_delta=0.)
    epochs.checkpoints = Namespace(save_epoch=lambda *args, **metrics: None)
    epochs.results.append({'epoch': 0, 'train': {'loss': 2.}, 'validation': {'loss': 0.1, 'top1': 9.}})
    for epoch, loss, expected in ((1, 1., ''), (2, 1.5, 'no better loss than 1 of epoch 1 in 1 evaluation')):
        epochs._evaluate(epoch, {'loss': loss}, RunningLosses(torch.device('cpu')))
        assert epochs.stopped == expected
    assert [result['epoch'] for result in epochs.comparable] == [1, 2]
    epochs.run.loader_eval = []
    assert [result['epoch'] for result in epochs.comparable] == [0]
