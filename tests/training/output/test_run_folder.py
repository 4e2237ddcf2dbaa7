"""The folder of a run: which run it belongs to, how it continues after damage, and what happens if the disk is full."""
import contextlib
import io
import logging
import os
import re
import shutil
import subprocess
import time
from argparse import Namespace
from dataclasses import replace
from datetime import datetime

import pytest
import torch

from agmax_timm.assembly import model as build
from agmax_timm.base import atomic_write
from agmax_timm.base.output_files import write_csv
from agmax_timm.base.safe_load import read_file, verify
from agmax_timm.commands import train as train_cli
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import epochs
from agmax_timm.training.checkpoints import manager
from agmax_timm.training.output import run_folder
from agmax_timm.training.output.log_file import LogFile
from tests.helpers.run_files import epochs_in, status_of

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--log-interval', '1', '--experiment', 'run']


@pytest.fixture(scope='module')
def two_epochs(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp('two')
    handlers = list(logging.root.handlers)
    train_cli.main([str(photos), *SMALL, '--epochs', '3', '--stop-epoch', '2', '--output', str(output)])
    logging.root.handlers = handlers
    return output / 'run'


@pytest.fixture
def run(two_epochs, tmp_path):
    """A copy of the folder of a run that was stopped after two of three epochs. Its files are not hard links."""
    return shutil.copytree(two_epochs, tmp_path / 'run')


@pytest.fixture
def disk(tmp_path):
    """Function: the folder of a new file system with these options of mount."""
    path = tmp_path / 'disk'
    path.mkdir()

    def mount(*options):
        made = subprocess.run(['mount', '-t', 'tmpfs', *options, 'tmpfs', path], capture_output=True)
        if made.returncode:
            pytest.skip('no file system can be mounted here')
        return path
    yield mount
    subprocess.run(['umount', '-l', path], capture_output=True)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Continuing after damage

def test_a_damaged_last_checkpoint_is_skipped_and_replaced(run, photos, tmp_path, caplog):
    for name in ('last.pth.tar', 'checkpoint-1.pth.tar', 'model_best.pth.tar'):
        damage(run / name)
    (run / 'last.pth.tar.unfinished').write_bytes(b'PK')
    train_cli.main([str(photos), *SMALL, '--epochs', '3', '--stop-epoch', '2', '--output', str(tmp_path),
                   '--resume', 'auto'])
    warned, = [record.getMessage() for record in caplog.records if 'is damaged' in record.getMessage()]
    assert "run/last.pth.tar' is damaged: " in warned and warned.endswith(
        f"continuing from '{run / 'checkpoint-0.pth.tar'}'")
    assert epochs_in(run) == [0, 1]
    for path in run.glob('*.pth.tar'):
        verify(str(path))
    assert read_file(str(run / 'last.pth.tar'))['epoch'] == 1
    assert not list(run.glob('*.unfinished'))


def test_a_folder_with_only_damaged_checkpoints_is_refused(run, photos, tmp_path, capsys):
    for path in run.glob('*.pth.tar'):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as ended:
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), '--resume', 'auto'])
    assert ended.value.code == 2
    error, = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"--resume auto: no checkpoint in '{run}' is intact" in error and 'another --experiment' in error
    assert all(path.name in error for path in run.glob('*.pth.tar'))


def test_a_damaged_file_to_resume_is_refused_before_data_is_opened(run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('agmax_timm.training.create_run.datasets.build_datasets', pytest.fail)
    path = run / 'checkpoint-1.pth.tar'
    damage(path)
    with pytest.raises(SystemExit) as ended:
        train_cli.main([str(photos), *SMALL, '--epochs', '3', '--output', str(tmp_path), '--resume', str(path)])
    assert ended.value.code == 2 and f"'{path}' is damaged" in capsys.readouterr().err


def test_a_run_continues_without_the_weights_that_it_started_from(run, photos, tmp_path, capsys):
    argv, gone = [str(photos), *SMALL, '--output', str(tmp_path), '--resume', 'auto'], str(tmp_path / 'gone.pth')
    pretrained, initial = ['--pretrained', '--pretrained-path', gone], ['--initial-checkpoint', gone]
    train_cli.main([*argv, '--epochs', '3', '--stop-epoch', '2', *pretrained, *initial])
    for flags in (pretrained, initial):
        assert status_of(train_cli.main, [*argv, *flags, '--experiment', 'new']) == 2
        assert capsys.readouterr().err.endswith(f"error: {flags[-2]} '{gone}': no such file\n")
    assert not (tmp_path / 'new').exists()
    assert epochs_in(run) == [0, 1]


# Whose folder it is

def test_a_folder_without_a_checkpoint_needs_resume_auto(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'summary.csv').write_text('epoch\n0\n')
    args = Namespace(output=str(tmp_path), experiment='run', resume='')
    run_folder.check_folder(args, auto=True)
    with pytest.raises(ValueError, match='holds another run ..summary.csv'):
        run_folder.check_folder(args)


def test_a_second_process_is_refused_in_the_folder(tmp_path):
    args = Namespace(output=str(tmp_path), experiment='run', resume='')
    (tmp_path / 'run').mkdir()
    run_folder.check_folder(args)
    run_folder.check_folder(args)  # this process has it
    child = os.fork()
    if child == 0:
        try:
            run_folder._locks.clear()
            run_folder.check_folder(args)
        except ValueError as error:
            os._exit(3 if 'another process trains in' in str(error) else 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_runs_without_a_name_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, 'datetime', Namespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5)))
    options = Namespace(output=str(tmp_path), experiment='', resume='', model='test_resnet')
    folders = [run_folder.open_folder(options, 32, {})[0] for _ in range(3)]
    assert folders == [f'{tmp_path}/20260102-030405-test_resnet-32{end}' for end in ('', '-1', '-2')]


@pytest.mark.parametrize('state, words', [
    ({'position': {'epoch': 3, 'batch': 4, 'trained': False}}, 'continues with batch 4 of epoch 3'),
    ({'position': {'epoch': 3, 'batch': 6, 'trained': True}}, 'continues with the evaluation of epoch 3'),
    ({'position': {'epoch': 3, 'batch': 0, 'trained': False}, 'line': 2}, 'continues with epoch 3 of branch 2'),
])
def test_ranks_with_other_checkpoints_of_an_epoch_are_refused(monkeypatch, state, words):
    options, starts = Namespace(output='out'), []
    monkeypatch.setattr(run_folder, 'gather_objects', lambda start: starts.append(start) or starts)
    run_folder.check_same_start(options, 3, {'position': {'epoch': 3, 'batch': 0, 'trained': False}, 'line': 0})
    with pytest.raises(ValueError, match=f'rank 0 continues with epoch 3, but rank 1 {words}: give every machine'):
        run_folder.check_same_start(options, 3, state)
    del starts[0]
    run_folder.check_same_start(options, 3, state)


@pytest.mark.parametrize('resume, flags, branch', [
    ('auto', '', 2), ('auto', '--start-epoch 1', 4), ('auto', '--no-resume-opt', 4), ('FILE', '', 4),
    ('FILE', '--experiment other', 0), ('', '--start-epoch 1', 0)])
def test_a_run_that_trains_epochs_again_writes_a_new_branch(tmp_path, resume, flags, branch):
    """The files of the run are of branches 2 and 3. Those of a branch of its own count as newer than all others."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for line in (2, 3):
        torch.save({'epoch': 3, 'agmax_state': {'line': line}}, folder / f'checkpoint-{line}.pth.tar')
    options = replace(
        parse_train_args(['DIR', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto', *flags.split()]),
        resume=str(folder / 'checkpoint-2.pth.tar') if resume else '')
    assert run_folder.branch_to_write(options, resume != 'FILE', {'line': 2} if resume else {}) == branch


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(photos, tmp_path, disk, monkeypatch, capsys):
    monkeypatch.setattr(build, 'build_model', None)  # it is refused before
    (tmp_path / 'file').write_text('')
    for output in (tmp_path / 'file', disk('-o', 'ro')):
        with pytest.raises(SystemExit) as ended:
            train_cli.main([str(photos), *SMALL, '--output', str(output)])
        assert ended.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert str(output) in message and '--output' in message
        assert 'name another one' in message or 'give a folder that can be written' in message


# A disk that refuses

def test_a_run_on_a_full_disk_ends_in_status_74(photos, disk, capsys, caplog):
    output = disk('-o', 'size=3m')
    with open(output / 'other', 'wb') as f:  # leaves room for logs, and none for a checkpoint
        f.write(bytes(2_600_000))
    with pytest.raises(SystemExit) as ended:
        train_cli.main([str(photos), *SMALL, '--epochs', '2', '--output', str(output)])
    assert ended.value.code == 74
    assert re.search('last.pth.tar.*: No space left on device; .*no checkpoint', capsys.readouterr().err)
    told = 'Training continues; the next save tries again. Free disk space, or make the folder writable'
    assert caplog.text.count(told) == 2
    assert epochs_in(output / 'run') == [0, 1]
    assert not list((output / 'run').glob('*.unfinished'))


def test_a_run_continues_when_the_disk_has_space_again(photos, tmp_path, caplog, monkeypatch, file_size_limit):
    full = contextlib.ExitStack()
    begin, distribute = manager.CheckpointSaver, epochs.distribute_batch_norm

    def fill(*args):
        full.enter_context(file_size_limit(100))
        return begin(*args)

    def free(*args):
        if 'Train: 1' in caplog.text:
            end = time.monotonic() + 60
            while "last.pth.tar': File too large" not in caplog.text:  # a thread writes it
                assert time.monotonic() < end
                time.sleep(.01)
            full.close()
        distribute(*args)
    monkeypatch.setattr(manager, 'CheckpointSaver', fill)
    monkeypatch.setattr(epochs, 'distribute_batch_norm', free)
    with full:
        train_cli.main([str(photos), *SMALL, '--epochs', '2', '--output', str(tmp_path)])
    told = [record.getMessage() for record in caplog.records if 'cannot write' in record.getMessage()]
    for name in ('train.log', 'summary.csv', 'last.pth.tar'):
        assert len([line for line in told if f"cannot write '{tmp_path}/run/{name}': File too large" in line]) == 1
    assert epochs_in(tmp_path / 'run') == [0, 1]
    verify(str(tmp_path / 'run' / 'last.pth.tar'))
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'are missing here' in log and log.endswith('\n')


def test_a_log_line_is_written_completely_or_not_at_all(tmp_path, monkeypatch, file_size_limit):
    path, console = tmp_path / 'train.log', io.StringIO()
    handler = LogFile(str(path))
    handler.setFormatter(logging.Formatter('%(message)s'))
    logger = logging.getLogger('train')
    monkeypatch.setattr(logger, 'handlers', [handler, logging.StreamHandler(console)])
    monkeypatch.setattr(logger, 'propagate', False)  # pytest's own files are limited too
    monkeypatch.setattr(logging, 'raiseExceptions', True)
    try:
        logger.warning('a' * 50)
        position = handler.position()
        assert position == path.stat().st_size == 51
        with file_size_limit(80):
            for _ in range(3):
                logger.warning('b' * 50)
            assert path.read_text() == 'a' * 50 + '\n'
        logger.warning('c' * 50)
        before, mark, after = path.read_text().splitlines()
        assert (before, after) == ('a' * 50, 'c' * 50) and 'lines that could not be written' in mark
        atomic_write.truncate(str(path), position)
        logger.warning('d')
        assert path.read_text() == 'a' * 50 + '\nd\n'
    finally:
        handler.close()
    lines = set(console.getvalue().splitlines())
    told, = lines - {'a' * 50, 'b' * 50, 'c' * 50, 'd'}
    assert len(lines) == 5 and re.search(f'cannot write .*{path}.*: File too large: .* console', told)
    assert console.getvalue().count('cannot write') == 1


def test_a_summary_has_the_columns_of_all_rows(tmp_path):
    path = str(tmp_path / 'summary.csv')
    rows = [{'epoch': 0, 'train_loss': 2.5}, {'epoch': 1, 'train_loss': 0.1 + 0.2, 'ema_top1': 5.}]
    write_csv(path, rows)
    assert open(path, newline='').read() == (
        'epoch,train_loss,ema_top1\r\n0,2.5,\r\n1,0.30000000000000004,5.0\r\n')
