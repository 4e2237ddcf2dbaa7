"""TensorBoard gets the values of summary.csv and of the log once, after any number of interruptions."""
import csv
import sys
from argparse import Namespace
from types import ModuleType

import pytest

from agmax_timm.base.errors import OptionError
from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.output.trackers import Trackers
from tests.helpers.exact import FLAGS, StopAfter

UPDATES = 6  # an epoch


@pytest.fixture
def board(monkeypatch):
    """A replacement of the writer. It keeps what a reader of its files would show: values by folder, name and step."""
    module = ModuleType('tensorboard')
    module.shown = {}

    class SummaryWriter:
        def __init__(self, log_dir, purge_step=None):
            self.values = module.shown.setdefault(log_dir, {})
            for key in [key for key in self.values if purge_step is not None and key[1] >= purge_step]:
                del self.values[key]

        def add_scalar(self, name, value, step):
            assert (name, step) not in self.values, 'twice'
            self.values[name, step] = value

        def flush(self):
            pass

        def close(self):
            self.values['closed', -1] = True

    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', module)
    return module


@pytest.fixture
def run(photos, memory_path):
    """Function: the folder of a run that is interrupted after each number of checks."""
    def start(name, *flags, stops=()):
        argv = [str(photos), *FLAGS, '-j', '0', '--agmax', '--output', str(memory_path),
                '--experiment', name, '--epochs', '2', '--log-tensorboard', *flags]
        for looks in stops:
            with pytest.raises(Interrupted):
                training.train(parse_train_args([*argv, '--resume', 'auto']), StopAfter(looks))
        training.train(parse_train_args([*argv, '--resume', 'auto'] if stops else argv))
        return memory_path / name
    return start


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as f:
        return {int(row.pop('epoch')): row for row in csv.DictReader(f)}


def test_it_gets_the_summary_and_the_losses_at_log_intervals(run, board):
    folder = run('run')
    values = board.shown[str(folder / 'tensorboard')]
    rows = rows_of(folder)
    of_rows = {
        (name, (epoch + 1) * UPDATES): float(value) for epoch, row in rows.items() for name, value in row.items()}
    of_updates = {key: value for key, value in values.items() if key[0].startswith('update_')}
    assert {key: value for key, value in values.items() if key not in of_updates} == {**of_rows, ('closed', -1): True}
    assert {name for name, _ in of_updates} == {'update_loss', 'update_ce', 'update_agreement', 'update_divergence'}
    steps = sorted(step for name, step in of_updates if name == 'update_loss')
    assert steps == [epoch * UPDATES + update for epoch in range(2) for update in (0, 2, 4, 5)]
    line = next(line for line in (folder / 'train.log').read_text().splitlines() if 'Train: 1 [   4/6' in line)
    assert f"Loss: {of_updates['update_loss', 10]:#.3g} " in line


# 6 looks in training and 6 in evaluation: within an epoch, within an evaluation, at its last batch, several times.
def test_interrupted_runs_show_the_values_of_an_uninterrupted_one(run, board):
    whole = board.shown[str(run('whole') / 'tensorboard')]
    for number, stops in enumerate([(9,), (12, 3, 4)]):
        assert board.shown[str(run(f'interrupted-{number}', stops=stops) / 'tensorboard')] == whole

    # Values of a killed run after its checkpoint are dropped. A row of the checkpoint that the files lack is written
    # again.
    folder = run('killed')
    values = board.shown[str(folder / 'tensorboard')]
    for key in [key for key in values if key[1] == UPDATES and key[0].startswith('eval_')]:
        del values[key]
    run('killed', '--resume', str(folder / 'checkpoint-0.pth.tar'))
    assert values == whole


def test_a_run_resumed_in_another_folder_writes_all_rows_there(run, board):
    folder = run('run', '--stop-epoch', '1')
    other = run('other', '--resume', str(folder / 'last.pth.tar'))
    assert {step for name, step in board.shown[str(other / 'tensorboard')] if name == 'eval_top1'} == {6, 12}


def test_the_steps_continue_after_a_resume_with_another_number_of_updates_per_epoch(run, board):
    """6 updates in the first epoch, 3 in each of the others, which two processes train."""
    flags = ['--experiment', 'run', '--epochs', '3', '--resume', 'auto']
    folder = run('run', *flags, '--stop-epoch', '1')
    values = board.shown[str(folder / 'tensorboard')]
    before = dict(values)
    run('run', *flags, '-b', '4', '--stop-epoch', '2')
    run('run', *flags, '-b', '4')
    assert {key: values[key] for key in before} == before
    assert sorted(step for name, step in values if name == 'eval_loss') == [6, 9, 12]
    assert sorted(step for name, step in values if name == 'update_loss') == [0, 2, 4, 5, 6, 8, 9, 11]
    rows = rows_of(folder)
    assert [values['eval_loss', step] for step in (6, 9, 12)] == [float(row['eval_loss']) for row in rows.values()]

    other = run('other', '--epochs', '4', '-b', '4', '--resume', str(folder / 'last.pth.tar'))
    shown = board.shown[str(other / 'tensorboard')]
    assert sorted(step for name, step in shown if name == 'eval_loss') == [3, 6, 9, 12]


def test_values_of_a_process_that_was_killed_before_its_first_checkpoint_are_dropped(board, tmp_path):
    options = Namespace(log_tensorboard=True, log_wandb=False)
    values = board.shown.setdefault(str(tmp_path / 'tensorboard'), {})
    for updates in (3, 1):
        trackers = Trackers(options, str(tmp_path), UPDATES, 0, [], same_folder=False)
        for index in range(updates):
            trackers.update(Namespace(last={'loss': 1. / updates}, epoch=0, update_index=index))
    assert values == {('update_loss', 0): 1.}


def test_a_full_disk_does_not_end_the_run(run, board, monkeypatch, caplog):
    def refuse(self):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(board.SummaryWriter, 'flush', refuse)
    assert len(rows_of(run('run'))) == 2
    assert caplog.text.count('No space left on device: training continues') == 1


def test_a_missing_package_is_reported_before_anything_is_built(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(OptionError, match='pip install tensorboard'):
        run('run', '--model', 'no_such_model')


def test_the_reader_of_tensorboard_shows_the_values(run):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = run('run', stops=(3, 12))
    reader = EventAccumulator(str(folder / 'tensorboard'))
    reader.Reload()
    shown = {(event.step, event.value) for event in reader.Scalars('eval_loss')}
    expected = {((epoch + 1) * UPDATES, float(row['eval_loss'])) for epoch, row in rows_of(folder).items()}
    assert sorted(shown) == [(step, pytest.approx(value, rel=1e-6)) for step, value in sorted(expected)]
    steps = [event.step for event in reader.Scalars('update_loss')]
    assert sorted(steps) == [epoch * UPDATES + update for epoch in range(2) for update in (0, 2, 4, 5)]
