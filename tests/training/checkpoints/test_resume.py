"""Resuming a run: in its own folder, from a recovery file, with changed options. Files are never missing."""
import csv
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

from agmax_timm.assembly import model as build
from agmax_timm.base.errors import CheckpointError
from agmax_timm.commands import train as train_cli
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import saved_train_options
from agmax_timm.training import epochs
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints.saver import CheckpointSaver
from agmax_timm.weights.metadata import make_metadata
from agmax_timm.weights.resume import resume
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.run_files import epochs_in, load, summary

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--log-interval', '1']


@pytest.fixture
def train(photos, tmp_path):
    """Function: results of a run of train.py with these flags on the photos, in the folder `run`."""
    def run(*argv):
        return training.train(parse_train_args(
            [str(photos), *SMALL, '--output', str(tmp_path), '--experiment', 'run', *argv]))
    return run


def test_resume_auto_starts_continues_or_finds_nothing_to_train(train, tmp_path, caplog):
    folder = tmp_path / 'run'
    flags = ['--agmax', '--epochs', '4', '--resume', 'auto', '--checkpoint-hist', '2']
    assert [result['epoch'] for result in train(*flags, '--stop-epoch', '2')] == [0, 1]
    assert [result['epoch'] for result in train(*flags)] == [0, 1, 2, 3]
    assert epochs_in(folder) == [0, 1, 2, 3]
    assert load(folder / 'last.pth.tar')['epoch'] == 3
    assert len(list(folder.glob('checkpoint-*.pth.tar'))) == 2, 'checkpoints before the interruption count'
    with open(folder / 'summary.csv', newline='') as f:
        top1 = [float(row['eval_top1']) for row in csv.DictReader(f)]
    assert load(folder / 'model_best.pth.tar')['epoch'] == top1.index(max(top1))
    assert yaml.safe_load((folder / 'args.yaml').read_text())['resume'] == 'auto'

    before = {path.name: path.read_bytes() for path in folder.glob('*.csv')}
    assert [result['epoch'] for result in train(*flags)] == [0, 1, 2, 3]
    assert {path.name: path.read_bytes() for path in folder.glob('*.csv')} == before
    assert 'Nothing to train' in caplog.text


def test_a_run_resumed_with_another_seed_records_the_seed_of_its_validation_images(train, tmp_path):
    """So it continues with its own args.yaml, and a repetition holds out the same images."""
    args, flags = tmp_path / 'run' / 'args.yaml', ['--val-split', '0.25', '--resume', 'auto']
    train('--epochs', '1', *flags)
    train('--epochs', '2', *flags, '--seed', '7')
    assert {name: yaml.safe_load(args.read_text())[name] for name in ('seed', 'val_split_seed')} == {
        'seed': 7, 'val_split_seed': 42}
    assert len(training.train(parse_train_args(['-c', str(args)]))) == 2


def test_rows_of_epochs_that_are_trained_again_are_replaced(train, tmp_path):
    train('--epochs', '3')
    train('--epochs', '3', '--resume', str(tmp_path / 'run' / 'checkpoint-0.pth.tar'))
    assert epochs_in(tmp_path / 'run') == [0, 1, 2]


def test_start_epoch_trains_an_epoch_again(train, tmp_path, caplog):
    """With the weights of the checkpoint, which was written after that epoch."""
    train('--epochs', '3')
    before = summary(tmp_path / 'run')
    results = train('--epochs', '3', '--resume', str(tmp_path / 'run' / 'checkpoint-1.pth.tar'), '--start-epoch', '1')
    assert [result['epoch'] for result in results] == [0, 1, 2]
    rows = summary(tmp_path / 'run')
    assert [row['epoch'] for row in rows] == ['0', '1', '2'] and rows[0] == before[0]
    assert [row['lr'] for row in rows] == [row['lr'] for row in before]
    assert rows[1]['train_loss'] != before[1]['train_loss'] and rows[2]['train_loss'] != before[2]['train_loss']
    assert '--start-epoch: the run continues, but differs from an uninterrupted run.' in caplog.messages


def test_resume_auto_continues_from_the_newest_branch(train, tmp_path):
    """The later epochs of the first branch still exist."""
    again = ['--epochs', '4', '--lr', '0.01', '--resume']
    first = str(tmp_path / 'run' / 'checkpoint-0.pth.tar')
    train('--epochs', '4', '--recovery-interval', '2')
    train(*again, first)
    expected = load(tmp_path / 'run' / 'last.pth.tar')['state_dict']
    train(*again, first, '--stop-epoch', '2')
    assert (tmp_path / 'run' / 'checkpoint-3.pth.tar').exists()
    train(*again, 'auto')
    ours = load(tmp_path / 'run' / 'last.pth.tar')
    assert ours['epoch'] == 3 and epochs_in(tmp_path / 'run') == [0, 1, 2, 3]
    assert all(torch.equal(value, expected[name]) for name, value in ours['state_dict'].items())
    train(*again, 'auto')
    assert load(tmp_path / 'run' / 'last.pth.tar')['agmax_state']['line'] == 2


def test_a_new_run_is_refused_in_the_folder_of_another(train, tmp_path, monkeypatch):
    train('--epochs', '1')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()}
    monkeypatch.setattr(build, 'build_model', None)  # it is refused before
    with pytest.raises(ValueError, match='/run. holds another run ..checkpoint-0.* --resume auto,.* --experiment'):
        train('--epochs', '1')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()} == before


def test_milestones_are_kept_and_evaluated(train, tmp_path):
    train('--epochs', '4', '--stop-epoch', '3', '--save-epochs', '1', '3', '--val-interval', '4')
    assert epochs_in(tmp_path / 'run') == [0, 2]
    assert load(tmp_path / 'run' / 'milestone-1.pth.tar')['epoch'] == 0
    assert load(tmp_path / 'run' / 'milestone-3.pth.tar')['epoch'] == 2


def test_stop_epoch_does_not_change_the_schedule(train, tmp_path):
    train('--epochs', '4', '--stop-epoch', '2')
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        stopped = [row['lr'] for row in csv.DictReader(f)]
    shutil.rmtree(tmp_path / 'run')
    train('--epochs', '4')
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        assert [row['lr'] for row in csv.DictReader(f)][:2] == stopped


def test_a_stop_epoch_after_the_last_epoch_is_refused(train):
    with pytest.raises(ValueError, match='--stop-epoch 3 .*last epoch.* 2'):
        train('--epochs', '2', '--stop-epoch', '3')


def test_a_recovery_file_does_not_skip_the_rest_of_its_epoch(train, tmp_path, caplog):
    """timm's script continues with the next epoch."""
    flags = ['--epochs', '2', '--recovery-interval', '2', '--mixup', '0.2']
    whole = train(*flags)
    path = tmp_path / 'run' / 'recovery-1-1.pth.tar'
    assert train(*flags, '--resume', str(path)) == whole

    checkpoint = load(path)
    del checkpoint['agmax_state']  # as in one of timm's
    torch.save(checkpoint, path)
    results = train(*flags, '--resume', str(path), '--experiment', 'other')
    assert [result['epoch'] for result in results] == [1]
    assert 'written within epoch 1' in caplog.text and 'holds no random state' in caplog.text


def as_of_timm(folder, summary):
    """Turn the folder of a run into one whose checkpoint holds no state. Return its files by name."""
    checkpoint = load(folder / 'last.pth.tar')
    del checkpoint['agmax_state']
    torch.save(checkpoint, folder / 'last.pth.tar')
    (folder / 'summary.csv').write_bytes(summary)
    (folder / 'args.yaml').write_text('model: test_resnet\nfrom_timm: true\n')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_summary_of_timms_script_continues_and_its_files_are_kept(train, tmp_path, caplog):
    """Its runs append to the file when they continue: the header and the second epoch come twice."""
    folder, flags = tmp_path / 'run', ('--epochs', '3', '--resume', str(tmp_path / 'run' / 'last.pth.tar'))
    train('--epochs', '3', '--stop-epoch', '2')
    before = as_of_timm(folder, b'epoch,train_loss,eval_loss,eval_extra,lr\r\n'
                                b'0,1.5,1.25,7.5,0.05\r\n1,9.0,9.0,9.0,0.5\r\n'
                                b'epoch,train_loss,eval_loss,eval_extra,lr\r\n'
                                b'1,1.25,1.0,,0.025\r\n2,0.5,0.5,9.0,0.0\r\n3,0.2')
    train(*flags)
    for name in ('summary.csv', 'args.yaml'):
        assert (folder / f'{name}.1').read_bytes() == before[name]
    assert 'from_timm' not in yaml.safe_load((folder / 'args.yaml').read_text())
    assert "summary.csv': lines that are no row of an epoch are left out: 1" in caplog.text
    with open(folder / 'summary.csv', newline='') as f:
        header, *rows, ours = list(csv.reader(f))
    assert header == ['epoch', 'train_loss', 'eval_loss', 'eval_extra', 'lr', 'eval_top1', 'eval_top5']
    assert rows == [['0', '1.5', '1.25', '7.5', '0.05', '', ''], ['1', '1.25', '1.0', '', '0.025', '', '']]
    assert ours[0] == '2' and ours[3] == '' and all(ours[:3] + ours[4:])

    summary = (folder / 'summary.csv').read_bytes()
    train('--epochs', '3', '--resume', 'auto')  # from our checkpoint
    assert (folder / 'summary.csv').read_bytes() == summary and not (folder / 'args.yaml.2').exists()


def test_a_summary_in_another_format_is_kept(train, tmp_path):
    train('--epochs', '2', '--stop-epoch', '1')
    before = as_of_timm(tmp_path / 'run', b'\xff\xfe\0;no table\n')
    train('--epochs', '2', '--resume', 'auto')
    assert (tmp_path / 'run' / 'summary.csv.1').read_bytes() == before['summary.csv']
    assert epochs_in(tmp_path / 'run') == [1]


def test_a_new_learning_rate_has_an_effect(train, tmp_path, caplog):
    """timm's script continues with the saved one, without a message."""
    train('--epochs', '2', '--stop-epoch', '1', '--sched', 'none', '--weight-decay', '0.1')
    train('--epochs', '2', '--sched', 'none', '--lr', '0.01', '--weight-decay', '0.2', '--resume', 'auto')
    optimizer = load(tmp_path / 'run' / 'last.pth.tar')['optimizer']
    assert {group['lr'] for group in optimizer['param_groups']} == {0.01}
    assert {group['weight_decay'] for group in optimizer['param_groups']} == {0., 0.2}
    assert 'lr 0.01 in place of 0.05' in caplog.text and 'weight_decay 0.2 in place of 0.1' in caplog.text


def test_the_schedule_follows_a_new_learning_rate(train, tmp_path):
    train('--epochs', '4', '--stop-epoch', '2')
    train('--epochs', '4', '--resume', 'auto', '--lr', '0.01')
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        rates = [float(row['lr']) for row in csv.DictReader(f)]
    cosine = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx([0.05 * cosine[0], 0.05 * cosine[1], 0.01 * cosine[2], 0.01 * cosine[3]])


@pytest.mark.parametrize('opt', ['sgdc', 'adamc', 'lambc', 'lionc', 'lookahead_sgdc'])
def test_a_new_learning_rate_also_scales_the_corrected_weight_decay(tmp_path, caplog, opt):
    """Without a gradient, an update is the decay: lr ** 2 / lr * weight_decay at the largest learning rate."""
    path, model = tmp_path / 'last.pth.tar', torch.nn.Linear(2, 2, bias=False)
    task, weight = ClassificationTask(model, verbose=False), model.weight.detach().clone()
    saved = create_optimizer_v2(model, opt, lr=0.5, weight_decay=0.1)
    torch.save({'epoch': 0, 'metric': 1., 'version': 2, 'state_dict': model.state_dict(),
                'optimizer': saved.state_dict()}, path)
    optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=0.1)
    with caplog.at_level('INFO'):
        resume(str(path), task, optimizer)
    model.weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.05 * 0.1))
    assert 'Not as in the checkpoint: lr 0.05 in place of 0.5' in caplog.messages


def test_only_another_optimizer_is_to_be_left_out(tmp_path):
    path, model = str(tmp_path / 'last.pth.tar'), torch.nn.Linear(2, 2)
    saved = {'epoch': 0, 'state_dict': model.state_dict(),
             'optimizer': torch.optim.SGD([model.weight], lr=0.1).state_dict()}
    for state_dict, remedy in ((saved['state_dict'], True), ({'weight': torch.zeros(3)}, False)):
        torch.save({**saved, 'state_dict': state_dict}, path)
        task = ClassificationTask(torch.nn.Linear(2, 2), verbose=False)
        for parameters in ([*task.parameters()], [{'params': [value]} for value in task.parameters()]):
            with pytest.raises(CheckpointError, match='cannot use checkpoint') as error:
                resume(path, task, torch.optim.SGD(parameters, lr=0.1))
            assert str(error.value).endswith(': resume with --no-resume-opt') is remedy


def test_the_same_options_do_not_change_the_optimizer(train, tmp_path, caplog):
    train('--epochs', '2', '--stop-epoch', '1', '--layer-decay', '0.7')
    path = str(tmp_path / 'run' / 'last.pth.tar')
    model = create_model('test_resnet', num_classes=3)
    task = ClassificationTask(model, verbose=False)
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.05, weight_decay=2e-5, momentum=0.9, layer_decay=0.7)
    resume(path, task, optimizer)
    saved = load(path)['optimizer']
    for group, expected in zip(optimizer.param_groups, saved['param_groups']):
        assert group['lr'] == expected['initial_lr'] and group['weight_decay'] == expected['weight_decay']
    torch.testing.assert_close(optimizer.state_dict()['state'], saved['state'], rtol=0, atol=0)
    assert 'Not as in the checkpoint' not in caplog.text


@pytest.mark.parametrize('broken', ['', 'os.link'])
def test_the_last_and_the_best_checkpoint_exist_at_every_moment(tmp_path, monkeypatch, broken):
    """timm's saver removes a file before the new one has its name."""
    model = create_model('test_resnet', num_classes=3)
    task = ClassificationTask(model, verbose=False)
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.1)
    record = make_metadata(model, 'test_resnet', {})
    options = saved_train_options(dict(checkpoint_hist=3, model='test_resnet'))
    saver = CheckpointSaver(str(tmp_path), task, optimizer, options, record)
    saver.save_checkpoint(0, 1.)
    saver.close()

    files = [tmp_path / name for name in ('last.pth.tar', 'model_best.pth.tar')]
    states = []

    def observe(name, function):
        def observed(*args):
            states.extend(path.exists() for path in files)
            if name == broken == 'os.link':
                raise OSError('no hard links here')
            return function(*args)
        monkeypatch.setattr(name, observed)

    for name in ('os.replace', 'os.link', 'os.unlink', 'os.remove', 'shutil.copy2'):
        observe(name, getattr(shutil if name.startswith('shutil') else os, name.split('.')[1]))
    saver.save_checkpoint(1, 2.)
    saver.close()
    monkeypatch.undo()
    assert states and all(states)
    assert [load(path)['epoch'] for path in files] == [1, 1]
    assert not list(Path(tmp_path).glob('*.unfinished'))


def test_an_interrupted_run_has_exit_status_130(photos, tmp_path, monkeypatch):
    """timm's script has exit status 0."""
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(epochs, 'train_one_epoch', interrupted)
    with pytest.raises(SystemExit) as status:
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), '--experiment', 'run'])
    assert status.value.code == 130


@pytest.mark.parametrize('argv, words', [
    (['--opt', 'adamw'], '--opt adamw in place of sgd'),
    (['--agmax'], '--agmax True in place of False'),
    (['--gp', 'max'], '--gp max in place of None'),
])
def test_options_that_cannot_change_are_refused(train, tmp_path, argv, words):
    train('--epochs', '2', '--stop-epoch', '1')
    with pytest.raises(ValueError, match=words):
        train('--epochs', '2', '--resume', 'auto', *argv)


RESUME_IN_PLAIN_TIMM = """
import sys, timm, torch
model = timm.create_model('test_resnet', num_classes=3)
epoch = timm.models.resume_checkpoint(model, sys.argv[1])
torch.save((epoch, model.state_dict()), sys.argv[2])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
try:
    timm.models.resume_checkpoint(model, sys.argv[1], optimizer)
except ValueError as error:
    print(error)
"""


def test_plain_timm_resumes_a_checkpoint_of_agmax_without_its_optimizer(ema_run, tmp_path):
    """As timm's train.py does with --no-resume-opt. With the optimizer, it refuses."""
    path = ema_run / 'last.pth.tar'
    printed = run_in_plain_timm(RESUME_IN_PLAIN_TIMM, path, tmp_path / 'resumed.pth', cwd=tmp_path)
    epoch, found = torch.load(tmp_path / 'resumed.pth', weights_only=True)
    expected = load(path)
    assert epoch == expected['epoch'] + 1
    assert all(torch.equal(found[name], value) for name, value in expected['state_dict'].items())
    assert 'parameter group' in printed
