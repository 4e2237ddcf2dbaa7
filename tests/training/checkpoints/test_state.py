"""What a state restores after a change of ranks, batch size or schedule: random states, mean losses, learning rates."""
from argparse import Namespace

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from timm.utils import random_seed
from torch.utils.data import DataLoader, TensorDataset

from agmax_timm.assembly.model import Precision
from agmax_timm.assembly.optimizer import build_scheduler
from agmax_timm.base.random_state import get_random_state
from agmax_timm.data.resumption.loader import ResumableLoader
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training.checkpoints import state as states
from agmax_timm.training.checkpoints.state import History, Position, RunState
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


@pytest.mark.parametrize('opt', ['adahessian', 'lookahead_adahessian'])
def test_the_random_state_of_an_optimizer_is_restored(create, opt):
    """Also inside Lookahead. A new optimizer always begins with the same state."""
    states = [create() for _ in range(2)]
    for state in states:
        state.training.optimizer = create_optimizer_v2(torch.nn.Linear(1, 2), opt, lr=0.1)
    generators = [getattr(state.training.optimizer, '_base_optimizer', state.training.optimizer).generator
                  for state in states]
    torch.rand(5, generator=generators[0])
    states[1].load_state_dict(states[0].state_dict(Position(2)))
    assert torch.equal(*(torch.rand(5, generator=generator) for generator in generators))


@pytest.mark.parametrize('position, updates', [
    (Position(3), 12), (Position(3, 4), 14), (Position(3, 7), 16), (Position(3, 14, trained=True), 16)])
def test_updates_before_a_position(position, updates):
    """An epoch of 7 batches has 4 updates of 2 batches, the last one of one batch."""
    assert position.updates(4, 2) == updates


# Top-1 gets better only in the third epoch, the loss until the fifth. The second epoch is not evaluated.
METRICS = {1: dict(top1=50., loss=3.), 3: dict(top1=60., loss=2.), 4: dict(top1=60., loss=1.),
           5: dict(top1=55., loss=0.5), 6: dict(top1=40., loss=0.6), 7: dict(top1=30., loss=0.7)}
PLATEAU = 'DIR --sched plateau --lr 0.1 --warmup-epochs 2 --patience-epochs 0 --epochs 9'.split()


def two_groups():
    """An optimizer with the groups of --layer-decay 0.5."""
    return torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr_scale=s) for s in (1., 0.5)], lr=0.1)


def rates_of(optimizer):
    return [group['lr'] for group in optimizer.param_groups]


def resumed_rates(options, epoch, results, saved=None):
    """The learning rates with which a run continues before an epoch."""
    optimizer = two_groups()
    training = Training(ClassificationTask(torch.nn.Linear(1, 2), verbose=False), optimizer, options, CPU, Precision())
    scheduler, _ = build_scheduler(options, optimizer, 4)
    RunState(training, None, None, scheduler, History(results=results)).start_schedule(epoch, 4 * epoch, saved)
    return rates_of(optimizer)


@pytest.mark.parametrize('flags, split, metric', [
    ([], 'validation', 'top1'), (['--lr-noise', '0.3', '--decay-rate', '0.5'], 'validation', 'top1'),
    (['--eval-metric', 'loss'], 'validation', 'loss'), (['--val-split', ''], 'train', 'loss')])
def test_a_plateau_schedule_continues_as_if_its_options_were_those_of_all_epochs(flags, split, metric):
    """The oracle is timm's scheduler in an uninterrupted run. The checkpoint is of a run with other options."""
    options = parse_train_args([*PLATEAU, *flags])
    results = [{'epoch': done - 1, split: metrics} for done, metrics in METRICS.items()]
    optimizer = two_groups()
    scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(options, decreasing_metric=metric == 'loss'))
    for epoch in range(8):
        if epoch:
            scheduler.step(epoch, METRICS.get(epoch, {}).get(metric))
        for saved in (None, [7., 7.]):
            earlier = [result for result in results if result['epoch'] < epoch]
            assert resumed_rates(options, epoch, earlier, saved) == rates_of(optimizer)
    assert max(rates_of(optimizer)) < 0.1


@pytest.mark.parametrize('epoch', [2, 3, 20])
def test_a_plateau_schedule_without_earlier_metrics_starts_with_the_learning_rate(epoch):
    """As after a checkpoint of timm's script. With timm's scheduler alone, --warmup-lr would stay."""
    assert resumed_rates(parse_train_args(PLATEAU), epoch, []) == pytest.approx([0.1, 0.05])
