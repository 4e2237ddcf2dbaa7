"""What a state restores on another number of ranks or with another batch size: random states and mean losses."""
from argparse import Namespace

import pytest
import torch
from timm.task import ClassificationTask
from timm.utils import random_seed
from torch.utils.data import DataLoader, TensorDataset

from agmax_timm.assembly.model import Precision
from agmax_timm.base.random_state import get_random_state
from agmax_timm.data.resumption.loader import ResumableLoader
from agmax_timm.training.checkpoints import state as states
from agmax_timm.training.checkpoints.state import Position, RunState
from agmax_timm.training.updates.losses import BatchLosses, RunningLosses
from agmax_timm.training.updates.step import Training

CPU = torch.device('cpu')


@pytest.fixture
def create(monkeypatch):
    """Function: the state of a run on one of `ranks` processes. There are 8 samples."""
    def create(ranks=1, rank=0, batch_size=2, seed=0):
        monkeypatch.setattr(states, 'world_size', lambda: ranks)
        monkeypatch.setattr(states, 'rank', lambda: rank)
        model = torch.nn.Linear(1, 2)
        training = Training(ClassificationTask(model, verbose=False), torch.optim.SGD(model.parameters(), lr=0.1),
                            Namespace(seed=seed, resume='last.pth.tar'), CPU, Precision())
        loader = DataLoader(TensorDataset(torch.arange(8)), batch_size, shuffle=True)
        return RunState(training, ResumableLoader(loader, CPU, ranks, rank), None)
    return create


def mean_losses(losses, images=0):
    found = RunningLosses(CPU)
    for loss in losses:
        found.update(BatchLosses(('loss',), torch.tensor([loss]), images))
    return found


@pytest.mark.parametrize('seed', [0, 2 ** 32 - 3])
@pytest.mark.parametrize('position', [Position(1, 4, trained=True), Position(2)])
def test_each_rank_draws_its_own_numbers_after_a_change_of_their_number(create, position, seed):
    saved = create().state_dict(position, mean_losses([1.], 8), get_random_state(CPU))
    draws = []
    for rank in range(3):
        create(3, rank, seed=seed).load_state_dict(saved)
        draws.append(torch.rand(()).item())
    assert len(set(draws)) == 3


def test_the_random_state_before_an_evaluation_is_restored_on_the_same_number_of_ranks(create):
    random = get_random_state(CPU)
    expected = torch.rand(3)
    create_state = create()
    saved = create_state.state_dict(Position(1, 4, trained=True), mean_losses([1.], 8), random)
    create().load_state_dict(saved)
    assert torch.equal(torch.rand(3), expected)


def test_the_first_order_does_not_come_again_after_a_change_of_the_batch_size(create):
    saved = create().state_dict(Position(2))
    orders = []
    for resumed in (False, True):
        state = create(batch_size=4)
        random_seed(0, 0)
        if resumed:
            state.load_state_dict(saved)
        orders.append(torch.cat([batch for batch, in state.loader]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(8)] and orders[0] != orders[1]


@pytest.mark.parametrize('before, now', [(1, 2), (2, 1), (2, 4), (3, 2)])
def test_mean_losses_count_every_image_once_after_a_change_of_ranks(create, before, now):
    """1000 images of loss 4, then 1000 images of loss 2."""
    saved = create().state_dict(Position(1, 4, trained=True), mean_losses([4.], 1000 / before), get_random_state(CPU))
    saved['ranks'] *= before
    _, losses = create(now, 0).load_state_dict(saved)
    losses.update(BatchLosses(('loss',), torch.tensor([2.]), 1000 / now))
    assert losses.read('')[1]['loss'] == pytest.approx(3., rel=1e-12)


def test_the_end_of_an_epoch_is_a_position_of_the_present_loader(create):
    """4 batches of 2, then 2 batches of 4."""
    saved = create().state_dict(Position(1, 4, trained=True), mean_losses([1.], 8), get_random_state(CPU))
    position, _ = create(batch_size=4).load_state_dict(saved)
    assert position == Position(1, 2, trained=True) and position.updates(2, 1) == 4


@pytest.mark.parametrize('position, updates', [
    (Position(3), 12), (Position(3, 4), 14), (Position(3, 7), 16), (Position(3, 14, trained=True), 16)])
def test_updates_before_a_position(position, updates):
    """An epoch of 7 batches has 4 updates of 2 batches, the last one of one batch."""
    assert position.updates(4, 2) == updates
