"""The start of a job: SLURM's variables without srun, commands of one process, ranks that wait for others."""
import os
import signal
import time

import pytest
import torch.distributed as dist

from agmax_timm import export, predict
from agmax_timm.assembly import job_start
from agmax_timm.assembly.job_start import LAUNCHER
from agmax_timm.bench import command as bench
from agmax_timm.commands import train as train_cli
from agmax_timm.report import command as report
from tests.helpers.ranks import start_ranks, torchrun_environment

SMALL = ['--num-classes', '3', '-b', '4', '-j', '0', '--model', 'test_resnet', '--img-size', '32', '--device', 'cpu']
TORCHRUN = dict(RANK='1', LOCAL_RANK='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
SRUN = dict(SLURM_PROCID='1', SLURM_LOCALID='1', SLURM_NTASKS='2', SLURM_STEP_NUM_TASKS='2')
ALLOCATIONS = {
    'batch script': dict(SLURM_NTASKS='8', SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_JOB_ID='7'),
    'salloc': dict(SLURM_NTASKS='8', SLURM_JOB_ID='7'),
    'interactive step': dict(SLURM_NTASKS='8', SLURM_PROCID='0', SLURM_STEP_NUM_TASKS='1', SLURM_STEP_ID='4294967290'),
}


@pytest.fixture
def no_group(monkeypatch):
    """Make the start of a process group an error. It would wait without end."""
    def refuse(*args, **kwargs):
        raise AssertionError('a process group was started')
    monkeypatch.setattr(dist, 'init_process_group', refuse)
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('variables', ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_an_allocation_without_srun_runs_one_process_and_warns_once(
        variables, no_group, photos, ema_run, tmp_path, monkeypatch, caplog, results_of):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    train_cli.main([str(photos), *SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run'])
    assert (tmp_path / 'run' / 'last.pth.tar').is_file()
    warned = [record.getMessage() for record in caplog.records if 'srun' in record.getMessage()]
    warning, = warned
    assert '8 tasks' in warning and 'use srun' in warning
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert results_of(photos, '--checkpoint', ema_run / 'last.pth.tar')['top1'] >= 0


@pytest.mark.parametrize('variables, warns', [
    (SRUN, False), (TORCHRUN, False), ({**ALLOCATIONS['salloc'], **TORCHRUN}, False), ({}, False),
    (dict(SLURM_NTASKS='1', SLURM_PROCID='0'), False), *((variables, True) for variables in ALLOCATIONS.values())])
def test_only_variables_of_an_allocation_without_srun_are_removed(variables, warns, no_group, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert bool(job_start.leave_allocation()) == warns
    assert [name for name in variables if name in LAUNCHER and name not in os.environ] == (
        [name for name in variables if name in LAUNCHER] if warns else [])
    assert not job_start.leave_allocation()


@pytest.mark.parametrize('variables', [TORCHRUN, SRUN, ALLOCATIONS['batch script']])
@pytest.mark.parametrize('name', ['predict', 'report', 'export', 'bench step'])
def test_commands_of_one_process_start_no_process_group(
        name, variables, no_group, photos, ema_run, tmp_path, monkeypatch, capsys):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    run, words = {
        'predict': (predict.main, [ema_run, photos / 'val', '-j', 0, '--device', 'cpu']),
        'report': (report.main, [ema_run, '-j', 0, '--device', 'cpu']),
        'export': (export.main, [ema_run, tmp_path / 'out']),
        'bench step': (bench.main, ['step', '--quick', '--device', 'cpu']),
    }[name]
    run([str(word) for word in words])
    assert capsys.readouterr().out
    assert {variable: os.environ[variable] for variable in variables} == variables
    if name == 'report':
        (ema_run / 'report.html').unlink()


def train_with_patience(seconds, argv):
    job_start.PATIENCE, job_start._INTERVAL = seconds, .5
    train_cli.main(argv)


@pytest.mark.parametrize('started, says', [
    ([0, 1], 'Rank 0 waits for rank 2 of 3'),
    ([1], 'Rank 1 waits for rank 0 of 3'),
])
def test_a_waiting_rank_names_the_missing_rank_and_ends_on_sigterm(started, says, photos, tmp_path):
    argv = [str(photos), *SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run']
    ranks = start_ranks(len(started), tmp_path, train_with_patience, 3., argv,
                        environment=lambda number, _: torchrun_environment(started[number], 3))
    log = tmp_path / 'rank-0.log'
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and says in log.read_text()) and time.monotonic() < deadline:
            time.sleep(.2)
        asked = time.monotonic()
        for process in ranks:
            os.kill(process.pid, signal.SIGTERM)
        for process in ranks:
            process.join(10)
        assert time.monotonic() - asked < 10
        assert [process.exitcode for process in ranks] == [75] * len(ranks), log.read_text()
    finally:
        for process in ranks:
            process.kill()
    warned, last = [line for line in log.read_text().splitlines() if says in line]
    assert 'error' not in warned and f'error: SIGTERM: nothing was begun. {says}' in last
    assert not (tmp_path / 'run' / 'args.yaml').exists()
