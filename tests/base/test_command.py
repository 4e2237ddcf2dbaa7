"""Every command ends with the same line and exit status for the same fault."""
import ast
import errno
import os
import signal
import subprocess
import sys
import warnings
from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader

from agmax_timm import convert, export, predict, publish
from agmax_timm.base import command as base_command
from agmax_timm.base.errors import CheckpointError, UserError, as_user_error
from agmax_timm.bench import command as bench
from agmax_timm.commands import train, validate
from agmax_timm.report import command as report
from agmax_timm.study import command as study
from tests.helpers.paths import REPOSITORY

DEMO = ['--dataset', 'demo', '--model', 'test_resnet', '--device', 'cpu']
STUDY = str(REPOSITORY / 'hparams' / 'studies' / 'ablation_pocket.yaml')
# The main function, its arguments, and the function at the heart of the command that meets the fault.
COMMANDS = {
    'train': (train.main, DEMO, 'training.run.train'),
    'train --check-data': (train.main, [*DEMO, '--check-data'], 'commands.check_data.check_data'),
    'validate': (validate.main, DEMO, 'evaluation.validation.validate_model'),
    'predict': (predict.main, ['--pretrained', 'resnet18', __file__], 'evaluation.prediction.Predictor'),
    'report': (report.main, ['run'], 'report.report.make_report'),
    'export': (export.main, ['run', 'folder'], 'weights.saved_model.read_model'),
    'convert': (convert.main, ['file.pth', 'folder', '--model', 'resnet50'], 'convert.read_original'),
    'publish': (publish.main, ['run', 'ann/net'], 'weights.hub.check_destination'),
    'study': (study.main, [STUDY], 'study.command.run_study'),
    'bench': (bench.main, ['collate', '--quick'], 'bench.collate.collate'),
}
FAULTS = {
    'a dead worker': (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 1,
                      'a loader worker died: DataLoader worker (pid 7) is killed by signal: Killed.'),
    'a full disk': (OSError(errno.ENOSPC, 'No space left on device', 'rows.csv'), 2,
                    "'rows.csv': No space left on device"),
    'Ctrl-C': (KeyboardInterrupt(), 130, 'interrupted'),
    'no memory': (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), 1,
                  'out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.'),
    'no pinned memory': (RuntimeError('CUDA error: out of memory'), 1,
                         'out of memory: CUDA error: out of memory. Use a smaller batch, or --no-pin-mem'),
    'no package': (ModuleNotFoundError("No module named 'cv2'", name='cv2'), 2,
                   "the package 'cv2' is not installed: pip install 'agmax_timm[fast]'"),
    'bad input': (CheckpointError('last.pth.tar is\nempty'), 2, 'last.pth.tar is empty'),
}


@pytest.fixture
def ends(tmp_path, monkeypatch, capsys):
    """Function: exit status, stdout and stderr of a command, the main function of which is replaced by this one."""
    monkeypatch.chdir(tmp_path)

    def run(name, fault):
        main, argv, place = COMMANDS[name]
        module, _, heart = place.rpartition('.')
        monkeypatch.setattr(import_module(f'agmax_timm.{module}'), heart, fault)
        with pytest.raises(SystemExit) as end:
            main(argv)
        return (end.value.code, *capsys.readouterr())
    return run


def raising(error):
    def fail(*args, **kwargs):
        raise error
    return fail


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('name', COMMANDS)
def test_a_fault_is_one_line_with_the_same_status_in_every_command(name, fault, ends):
    error, status, line = FAULTS[fault]
    ended, _, told = ends(name, raising(error))
    assert ended == status
    errors = [told_line for told_line in told.splitlines() if 'error: ' in told_line]
    assert len(errors) == 1 and f'error: {line}' in errors[0] and told.splitlines()[-1] == errors[0]
    assert 'Traceback' not in told


@pytest.mark.parametrize('name', [name for name in COMMANDS if name != 'train'])  # train saves first: 75
def test_sigterm_ends_every_command_as_ctrl_c_does(name, ends):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    status, _, told = ends(name, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    assert status == 143 and 'error: terminated' in told.splitlines()[-1] and 'Traceback' not in told
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize('name', COMMANDS)
def test_an_output_that_nobody_reads_ends_every_command_without_a_message(name, ends, monkeypatch):
    monkeypatch.setattr(base_command, 'drop_unread_output', lambda: True)
    status, _, told = ends(name, raising(BrokenPipeError()))
    assert status == 141 and 'rror' not in told


@pytest.mark.parametrize('error', [KeyError('bug'), RuntimeError('CUDA error'), ConnectionResetError(104, 'reset'),
                                   OSError('cannot identify'), ModuleNotFoundError('No module named x', name='x')])
@pytest.mark.parametrize('name', COMMANDS)
def test_a_bug_has_a_traceback(name, error, tmp_path, monkeypatch):
    main, argv, place = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    module, _, heart = place.rpartition('.')
    monkeypatch.setattr(import_module(f'agmax_timm.{module}'), heart, raising(error))
    with pytest.raises(type(error)) as raised:
        main(argv)
    assert raised.value is error and as_user_error(error) is None


# Exceptions that are caught within the package: the reason why one image is left out, and the end of a loop.
INTERNAL = {'UndecodableError', 'RankError', 'EvaluationStopped', '_Enough', 'Terminated'}


def test_every_exception_class_of_the_package_is_an_error_of_users_or_internal():
    bases = {}
    for path in (REPOSITORY / 'agmax_timm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base) for base in node.bases]
    errors = {'UserError'}
    while more := {name for name, of in bases.items() if errors & set(of)} - errors:
        errors |= more
    others = {name for name, of in bases.items()
              if any(base.endswith(('Error', 'Exception', 'Interrupt', 'Exit')) for base in of)} - errors
    assert others == INTERNAL and len(errors) > 14


def test_errors_of_users_have_an_exit_status():
    found = list(UserError.__subclasses__())
    for error in found:
        found += error.__subclasses__()
    statuses = {error.__name__: error.exit_status for error in found}
    assert set(statuses.values()) == {1, 2, 69, 74, 75}
    assert statuses['SaveError'] == 74 and statuses['Interrupted'] == 75 and statuses['NotPublishedError'] == 69
    for name in ('OptionError', 'DataError', 'CheckpointError', 'HubError', 'UnsupportedModelError'):
        error, = (error for error in found if error.__name__ == name)
        assert issubclass(error, ValueError) and error.exit_status == 2


# In processes of their own

PROCESS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from agmax_timm.base.command import command
@command('tool')
def main():
    print('ready', flush=True)
    {body}
main()
"""


def start(body, **kwargs):
    return subprocess.Popen([sys.executable, '-c', PROCESS.format(body=body)], stderr=subprocess.PIPE, text=True,
                            cwd=REPOSITORY, **kwargs)


@pytest.mark.parametrize('name, status, line', [('SIGINT', 130, 'interrupted'), ('SIGTERM', 143, 'terminated')])
def test_signals_to_a_process_are_one_line(name, status, line):
    process = start('time.sleep(60)', stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (status, f'tool: error: {line}\n')


def test_a_full_disk_behind_stdout_is_one_line():
    with open('/dev/full', 'w') as full:
        process = start('print("more", end="")', stdout=full)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (2, 'tool: error: No space left on device\n')


def test_sigterm_ends_a_process_of_several_at_once():
    """A process that waits for the others in a collective cannot handle signals."""
    process = start('time.sleep(60)', stdout=subprocess.PIPE, env={**os.environ, 'WORLD_SIZE': '2', 'RANK': '1'})
    process.stdout.readline()
    process.terminate()
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (-signal.SIGTERM, '')


def test_the_warning_of_torch_about_many_workers_is_suppressed():
    @base_command.command('program')
    def main():
        DataLoader([0], num_workers=10_000)
        warnings.warn('another')

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('default')
        main()
    assert [str(one.message) for one in shown] == ['another']
