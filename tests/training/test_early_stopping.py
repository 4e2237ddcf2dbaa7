"""--early-stop against its rule, and interrupted runs against an uninterrupted one."""
import json
import math
from argparse import Namespace

import pytest
import torch

from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.early_stopping import stop_reason
from tests.helpers.exact import FLAGS, StopAfter, assert_equal, outcome
from tests.helpers.run_files import load

NAN = math.nan
# No top-1 is 101 percent better than another: the run stops as many evaluations after the first one as asked for.
NEVER_BETTER = ['--early-stop-min-delta', '101']


def stops_after(values, patience, metric='top1', delta=0.):
    """Number of evaluations after which a run stops. None if it continues."""
    options = Namespace(early_stop=patience, early_stop_metric=None, early_stop_min_delta=delta)
    results = [{'epoch': epoch, 'train': {}, 'validation': {metric: value}} for epoch, value in enumerate(values)]
    return next((count for count in range(len(results) + 1) if stop_reason(options, metric, results[:count])), None)


@pytest.mark.parametrize('values, patience, metric, delta, expected', [
    ([1, 2, 3, 4], 1, 'top1', 0, None),
    ([1, 2, 2, 3], 1, 'top1', 0, 3),
    ([1, 2, 2, 3], 2, 'top1', 0, None),
    ([5, 4, 3, 6, 5, 5], 2, 'top1', 0, 3),
    ([5, 4, 3, 3, 3], 2, 'loss', 0, 5),
    ([1, 1.5, 2.5, 3, 3.75], 2, 'top1', 1, None),  # than the best so far: small steps add up
    ([1, 1.5, 2, 2, 3], 2, 'top1', 1, 3),  # 2 is better than 1 by no more than 1
    ([3, 2.5, 1.5], 1, 'loss', 1, 2),
    ([NAN, NAN, 1, NAN, 2], 3, 'top1', 0, None),
    ([NAN, NAN, NAN, 1], 3, 'top1', 0, 3),
    ([1, NAN, NAN, 3], 2, 'top1', 0, 3),
    ([math.inf, math.inf, 1], 2, 'loss', 0, 2),
    ([1, 1, 1, 1], 0, 'top1', 0, None),
])
def test_evaluations_without_a_better_metric_are_counted(values, patience, metric, delta, expected):
    assert stops_after(values, patience, metric, delta) == expected


@pytest.fixture
def argv(photos, memory_path):
    return [str(photos), *FLAGS, '-b', '4', '-j', '0', '--epochs', '6', '--output', str(memory_path), '--resume',
            'auto', *NEVER_BETTER]


def train(argv, name, *flags, looks=None):
    stop = {} if looks is None else dict(signals=StopAfter(looks))
    return training.train(parse_train_args([*argv, '--experiment', name, *flags]), **stop)


def test_interrupted_runs_stop_at_the_epoch_of_an_uninterrupted_one(argv, memory_path, caplog, capsys):
    """Interrupted within an epoch, in an evaluation, and in the last epoch before the stop. Then with more patience."""
    two = ['--agmax', '--early-stop', '2']
    assert [result['epoch'] for result in train(argv, 'whole', *two)] == [0, 1, 2]
    said = json.loads(capsys.readouterr().out.split('--result\n')[1])
    assert len(said) == 3 and [index for index, result in enumerate(said) if 'early_stop' in result] == [2]
    assert 'no better top1 than ' in said[-1]['early_stop'] and 'by more than 101 in 2 evaluations' in caplog.text
    expected = outcome(memory_path / 'whole')

    for looks in (1, 4, 7):
        with pytest.raises(Interrupted):
            train(argv, 'interrupted', *two, looks=looks)
    train(argv, 'interrupted', *two)
    assert_equal(outcome(memory_path / 'interrupted'), expected)

    before = {path: path.read_bytes() for path in (memory_path / 'whole').glob('*.[cp]*') if path.suffix != '.png'}
    caplog.clear()
    assert [result['epoch'] for result in train(argv, 'whole', *two)] == [0, 1, 2]
    assert {path: path.read_bytes() for path in before} == before and 'Nothing to train' in caplog.text

    three = [*two[:-1], '3']
    train(argv, 'whole', *three)
    train(argv, 'patient', *three)
    assert load(memory_path / 'whole' / 'last.pth.tar')['epoch'] == 3
    assert_equal(outcome(memory_path / 'whole'), outcome(memory_path / 'patient'))


def test_a_run_that_stops_equals_one_with_this_stop_epoch(argv, memory_path):
    train(argv, 'early', '--early-stop', '1', '--early-stop-metric', 'loss')
    train(argv, 'told', '--stop-epoch', '2')
    ours, told = (load(memory_path / name / 'last.pth.tar') for name in ('early', 'told'))
    for name in ('state_dict', 'optimizer', 'epoch', 'metric'):
        assert_equal(ours[name], told[name], name)


def test_without_validation_the_training_loss_is_used(argv):
    results = train(argv, 'run', '--early-stop', '1', '--val-split', '')
    assert [result['epoch'] for result in results] == [0, 1] and 'validation' not in results[0]


@pytest.mark.parametrize('flags, words', [
    (['--early-stop-metric', 'map'], "--early-stop-metric must be one of loss, top1, top5, got 'map'"),
    (['--early-stop-metric', 'top1', '--val-split', ''], 'must be one of loss without validation'),
    (['--early-stop', '-1'], '--early-stop must be 0 or more, got -1'),
])
def test_unknown_metrics_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit):
        parse_train_args(['data', '--early-stop', '2', *flags])
    assert words in capsys.readouterr().err


def decide(rank, folder):
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    options = Namespace(early_stop=1, early_stop_metric=None, early_stop_min_delta=0.)
    results = [{'epoch': epoch, 'train': {'loss': loss}} for epoch, loss in enumerate((1., 1. + rank * 1e-7 - 5e-8))]
    (folder / f'{rank}').write_text(stop_reason(options, 'loss', results))
    torch.distributed.destroy_process_group()


def test_ranks_decide_equally_if_their_last_bits_differ(tmp_path):
    torch.multiprocessing.start_processes(decide, (tmp_path,), nprocs=2, start_method='fork')
    assert (tmp_path / '0').read_text() == (tmp_path / '1').read_text() == ''
