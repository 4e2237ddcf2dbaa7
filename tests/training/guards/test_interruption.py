"""Signals before training: while data is indexed, the model is built, or ranks join."""
import multiprocessing
import os
import signal
from argparse import Namespace

import pytest
import torch

from agmax_timm.assembly import loaders
from agmax_timm.assembly import model as build
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.training import create_run
from tests.helpers.exact import FLAGS
from tests.helpers.ranks import finish_ranks, logs, start_ranks

# What a signal comes in, and what is then no longer done.
STEPS = [('build.init_device', 'build.build_model'), ('build.build_model', 'datasets.build_datasets'),
         ('datasets.build_datasets', 'loaders.build_train_loader'),
         ('build.compile_and_distribute', 'run_folder.open_folder')]


@pytest.fixture
def argv(photos, tmp_path):
    return [str(photos), *FLAGS, '-j', '0', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto']


def patch(monkeypatch, step, function):
    module, name = step.split('.')
    monkeypatch.setattr(getattr(create_run, module), name, function)


@pytest.mark.parametrize('step, after', STEPS)
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT'])
def test_a_signal_before_training_leaves_no_files(argv, tmp_path, monkeypatch, capsys, step, after, name):
    module, function = step.split('.')
    original = getattr(getattr(create_run, module), function)

    def asked(*args):
        os.kill(os.getpid(), getattr(signal, name))
        return original(*args)

    patch(monkeypatch, step, asked)
    patch(monkeypatch, after, None)  # it would fail
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main(argv)
    assert exit_info.value.code == 75
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f'error: {name}: nothing was begun' in line and 'The same command' in line
    assert not (tmp_path / 'run').exists()


def test_a_signal_before_resumed_training_names_the_checkpoint(argv, tmp_path, monkeypatch, capsys):
    train_cli.main([*argv, '--stop-epoch', '1'])
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.pth.tar')}
    init_device = build.init_device
    patch(monkeypatch, 'build.init_device', lambda *args: os.kill(os.getpid(), signal.SIGTERM) or init_device(*args))
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main(argv)
    assert exit_info.value.code == 75
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"SIGTERM: nothing was trained since '{tmp_path / 'run' / 'last.pth.tar'}'" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.pth.tar')} == before


def ask_rank_1(argv):
    """Train. The second rank gets a signal while its model is built."""
    build_model = build.build_model

    def asked(*args):
        if os.environ['RANK'] == '1':
            os.kill(os.getpid(), signal.SIGTERM)
        return build_model(*args)

    build.build_model = asked
    train_cli.main(argv)


def test_all_ranks_end_if_one_gets_a_signal(argv, tmp_path):
    statuses = finish_ranks(start_ranks(2, tmp_path / 'logs', ask_rank_1, argv))
    assert statuses == [75, 75], logs(tmp_path / 'logs')
    first, second = ((tmp_path / 'logs' / f'rank-{rank}.log').read_text() for rank in range(2))
    assert 'a signal to another rank: nothing was begun' in first
    assert 'SIGTERM: nothing was begun' in second


@pytest.mark.parametrize('prefetch', [True, False])
def test_workers_of_an_evaluation_ignore_signals(photos, prefetch):
    args = Namespace(workers=2, pin_mem=False, no_pin_mem=False, naflex_loader=False,
                     no_prefetcher=not prefetch, channels_last=False)
    config = dict(input_size=(3, 32, 32), interpolation='bilinear', crop_pct=1., crop_mode='center', mean=(0.5,) * 3,
                  std=(0.5,) * 3)
    dataset = create_dataset('', str(photos), 'val')
    loader = loaders.build_eval_loader(args, dataset, config, torch.device('cpu'), build.Precision(), 1)
    targets = []
    for _, target in loader:
        targets += target.tolist()
        if len(targets) == 2:  # a batch of each worker: both have begun
            for worker in multiprocessing.active_children():
                for name in ('SIGINT', 'SIGUSR1', 'SIGTERM', 'SIGHUP'):
                    os.kill(worker.pid, getattr(signal, name))
    assert targets == [target for _, target in dataset]
