"""Commands whose reader ends before they do, as in `command | head`."""
import os
import subprocess
import sys

import pytest
import torch
from timm.models import create_model

from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import run_command

TRAIN = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '1',
         '--warmup-epochs', '0', '--lr', '0.05', '--experiment', 'run', '--device', 'cpu']
SIGPIPE = 128 + 13


def unread(words):
    """The stderr and exit status of a command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    completed = run_command(words, stdout=writer)
    os.close(writer)
    return completed.stderr, completed.returncode


@pytest.mark.parametrize('words', [
    ['train.py', '--help'], ['validate.py', '--help'], ['-m', 'agmax_timm.bench', '--help'],
    ['-m', 'agmax_timm.export', '--help']])
def test_help_ends_without_a_message(words):
    error, status = unread(words)
    assert error == '' and status in (0, SIGPIPE)  # argparse hides that nobody reads


def test_a_command_that_only_prints_ends_without_a_message():
    error, status = unread(['-m', 'agmax_timm.study', 'hparams/studies/ablation_pocket.yaml', '--dry-run'])
    assert (error, status) == ('', SIGPIPE)


def test_export_and_predict_complete_their_work_and_end_without_a_message(photos, tmp_path):
    torch.save(create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'weights.pth')
    error, status = unread(['-m', 'agmax_timm.export', tmp_path / 'weights.pth', tmp_path / 'out', '--model',
                            'test_resnet', '--license', 'mit'])
    assert (error, status) == ('', SIGPIPE) and (tmp_path / 'out' / 'model.safetensors').exists()
    error, status = unread(['-m', 'agmax_timm.predict', f'local-dir:{tmp_path}/out', photos / 'val', '-j', '0'])
    assert status == SIGPIPE and 'rror' not in error, error


def test_a_run_whose_output_nobody_reads_is_complete(photos, tmp_path):
    """The report and the exit status come after the results that cannot be printed."""
    error, status = unread(['train.py', photos, *TRAIN, '--output', tmp_path, '--report'])
    assert status == 0 and 'BrokenPipe' not in error and 'Traceback' not in error
    assert (tmp_path / 'run' / 'report.html').exists()
    error, status = unread(['validate.py', photos, '--checkpoint', tmp_path / 'run' / 'last.pth.tar', '-j', '0',
                            '--results-file', tmp_path / 'results.csv'])
    assert status == 0 and 'BrokenPipe' not in error and (tmp_path / 'results.csv').exists()


def test_an_error_that_nobody_reads_keeps_its_exit_status():
    """As with `... 2>&1 | tee log` if tee ended first."""
    code = ('from agmax_timm.base import command, errors\n'
            '@command.command()\n'
            'def fail():\n    raise errors.DataError("no data")\nfail()')
    reader, writer = os.pipe()
    os.close(reader)
    completed = subprocess.run([sys.executable, '-c', code], stdout=writer, stderr=writer, cwd=REPOSITORY)
    os.close(writer)
    assert completed.returncode == 2


def test_another_broken_pipe_is_an_error():
    code = ('from agmax_timm.base.command import command\n'
            'def fail():\n    raise BrokenPipeError("of a worker")\ncommand()(fail)()')
    completed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY)
    assert completed.returncode == 1 and 'of a worker' in completed.stderr
