"""Runs that are resumed with other options, or after a process was killed."""
import csv
import itertools
import os
import re
from dataclasses import replace

import pytest

from agmax_timm.base import atomic_write
from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.report.run import read_run
from agmax_timm.training import epochs
from agmax_timm.training import run as training
from agmax_timm.training.updates.finite_check import FiniteCheck
from agmax_timm.training.updates.step import Step
from tests.helpers.exact import FLAGS, StopAfter
from tests.helpers.run_files import load


class Killed(BaseException):
    """The end of a process. No further code of it runs."""


@pytest.fixture
def train(photos, tmp_path):
    """Function: the folder of a run, which is interrupted after this many checks."""
    def start(*flags, looks=None):
        args = parse_train_args([
            str(photos), *FLAGS, '-j', '0', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto',
            *map(str, flags)])
        if looks is None:
            training.train(args)
        else:
            with pytest.raises(Interrupted):
                training.train(args, StopAfter(looks))
        return tmp_path / 'run'
    return start


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


def test_without_its_optimizer_a_run_trains_the_epoch_again(train, caplog):
    """6 updates and 6 batches of validation per epoch. The interruption is in the second epoch, the last one."""
    train('--epochs', 2, looks=14)
    folder = train('--epochs', 2, '--no-resume-opt')
    assert 'Training epochs 1 to 1 ' in caplog.text and 'trained again from its start' in caplog.text
    assert [row['epoch'] for row in rows_of(folder)] == ['0', '1']


def test_an_interrupted_second_pass_continues_and_not_the_first_one(train):
    """6 updates and 6 batches of validation per epoch. The interruption is in the second epoch of the second pass."""
    train('--epochs', 2)
    train('--epochs', 2, '--start-epoch', 0, '--lr', 0.01, looks=14)
    folder = train('--epochs', 2, '--lr', 0.01)
    last, best = (load(folder / f'{name}.pth.tar') for name in ('last', 'model_best'))
    assert (last['epoch'], last['args']['lr'], best['args']['lr']) == (1, 0.01, 0.01)
    assert best['metric'] == pytest.approx(max(float(row['eval_top1']) for row in rows_of(folder)))


def test_an_epoch_can_be_completed_with_larger_batches(train):
    """12 images: one batch of 2 is trained. Two batches of 4 remain, and 2 images that fill none."""
    train('--epochs', 1, looks=0)
    assert len(rows_of(train('--epochs', 1, '-b', 4))) == 1


@pytest.mark.parametrize('epochs, looks', [(1, 5), (2, 17)])
def test_the_speed_of_the_epoch_before_stays_if_no_batch_is_left(train, caplog, epochs, looks):
    """The run stops after the last update: 6 looks in training, 6 in evaluation. In the first epoch none is known."""
    train('--epochs', epochs, looks=looks)
    folder = train('--epochs', epochs)
    path, = folder.glob('recovery-*')
    saved, last = (load(file)['agmax_state'] for file in (path, folder / 'last.pth.tar'))
    known = saved['cost']['images_per_second']
    assert (saved['position']['epoch'], saved['position']['batch']) == (epochs - 1, 6) and (known > 0) is (epochs == 2)
    assert last['cost']['images_per_second'] == known
    spent = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Time: ')][-1]
    assert re.fullmatch(r'Time: \d\d:\d\d' + (f', {known:.0f} images/s in the last epoch' if known else ''), spent)
    assert read_run(str(folder), None, None).spent.get('images/s') == (f'{known:.0f}' if known else None)


def test_a_broken_first_update_does_not_prevent_saving(train, monkeypatch):
    """6 updates per epoch. The first one of the second epoch is broken and left out."""
    agree, number = FiniteCheck.agree, itertools.count(1)

    def found(watch):
        checked = agree(watch)
        return replace(checked, broken=['loss']) if next(number) == 7 else checked
    monkeypatch.setattr(FiniteCheck, 'agree', found)
    assert (train('--nan-policy', 'skip', '--val-interval', 3, looks=6) / 'recovery-1-0.pth.tar').exists()


def test_a_plateau_schedule_continues_with_another_number_of_epochs(train):
    plateau = ('--sched', 'plateau', '--patience-epochs', 0, '--decay-rate', 0.1)
    whole = [row['lr'] for row in rows_of(train(*plateau, '--epochs', 4, '--experiment', 'whole').parent / 'whole')]
    train(*plateau, '--epochs', 3, '--stop-epoch', 2)
    assert [row['lr'] for row in rows_of(train(*plateau, '--epochs', 4))] == whole and len(set(whole)) > 1


def test_a_milestone_missing_after_a_kill_is_written_on_resume(train, monkeypatch):
    link = atomic_write.link

    def killed(source, path):
        if 'milestone' in os.path.basename(path):  # the folder is named after the test
            raise Killed
        link(source, path)
    monkeypatch.setattr(atomic_write, 'link', killed)
    with pytest.raises(Killed):
        train('--save-epochs', 2)
    monkeypatch.undo()
    folder = train('--save-epochs', 2)
    assert load(folder / 'milestone-2.pth.tar')['epoch'] == 1 and len(rows_of(folder)) == 3


def test_another_metric_ranks_only_later_checkpoints(train):
    folder = train('--eval-metric', 'top5', '--epochs', 4, '--stop-epoch', 2)
    train('--eval-metric', 'top1', '--epochs', 4)
    best = load(folder / 'model_best.pth.tar')
    later = [float(row['eval_top1']) for row in rows_of(folder)[2:]]
    assert best['epoch'] >= 2 and best['metric'] == pytest.approx(max(later))


def test_validation_can_be_added_on_resume(train, capsys):
    train('--val-split', '', '--epochs', 2, '--stop-epoch', 1)
    capsys.readouterr()
    train('--epochs', 2, '--early-stop', 5)
    assert '"top1"' in capsys.readouterr().out


def test_changed_options_of_the_optimizer_have_an_effect(train, caplog):
    train('--opt', 'adamw', '--epochs', 2, '--stop-epoch', 1)
    folder = train('--opt', 'adamw', '--epochs', 2, '--opt-betas', 0.5, 0.5, '--opt-eps', '1e-2')
    assert 'eps 0.01 in place of 1e-08' in caplog.text
    for group in load(folder / 'last.pth.tar')['optimizer']['param_groups']:
        assert group['eps'] == 0.01 and list(group['betas']) == [0.5, 0.5]


def test_mixup_off_epoch_is_refused_with_batches_made_ahead(photos, capsys):
    words = ['--mixup', '0.2', '--mixup-off-epoch', '1', '--use-multi-epochs-loader']
    with pytest.raises(SystemExit) as end:
        parse_train_args([str(photos), *words, '-j', '2'])
    assert end.value.code == 2 and '--mixup-off-epoch 1 comes too late' in capsys.readouterr().err
    for fine in (['-j', '0'], ['-j', '2', '--mixup', '0']):
        parse_train_args([str(photos), *words, *fine])


def test_the_first_update_after_resuming_counts_its_own_batches(train, monkeypatch):
    """An update is three batches of 2. With batches of 3, two remain: the end of one update, and another one."""
    counts = []

    class Counted(Step):
        def accumulate(self, update, input, target, batches=1, *args):
            counts.append(batches)
            super().accumulate(update, input, target, batches, *args)

    train('--grad-accum-steps', 3, '--epochs', 1, looks=0)
    monkeypatch.setattr(epochs, 'Step', Counted)
    train('--grad-accum-steps', 3, '--epochs', 1, '-b', 3)
    assert counts == [1, 1]
