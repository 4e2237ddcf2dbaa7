"""Runs of a study: failures, signals, and a study that is stopped and continued."""
import os
import signal
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import yaml

from agmax_timm.base.command_line import flag_of
from agmax_timm.base.errors import OptionError
from agmax_timm.options.declare import declared, values
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import TrainOptions
from agmax_timm.study import plan, runner, tables
from agmax_timm.study.definition import read_study
from agmax_timm.study.plan import make_runs
from tests.helpers import ranks
from tests.helpers.studies import SMALL, read_rows, run_study, write_study


@pytest.fixture
def commands(monkeypatch):
    """Function: replace the runs of each method by a small script that finds its folder in sys.argv[1]."""
    def use(**scripts):
        monkeypatch.setattr(plan.Run, 'command', lambda run, device='': [
            sys.executable, '-S', '-c', 'import os, sys\n' + scripts[run.cell.method], run.folder])
    return use


GOOD = '''
os.makedirs(sys.argv[1])
open(sys.argv[1] + '/summary.csv', 'w').write('epoch,eval_top1\\n0,50\\n')
print('threads', os.environ['OMP_NUM_THREADS'], 'of', os.environ['WANDB_NAME'])
'''
ASKED = '''
import signal, time
assert os.getsid(0) == os.getpid(), 'Ctrl-C would come twice'
def leave(*_):
    open(sys.argv[1] + '.told', 'w').close()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open(sys.argv[1] + '.ready', 'w').close()
time.sleep(30)
'''


@pytest.mark.slow
def test_a_failed_run_is_a_row_and_the_others_are_trained(tmp_path, photos, commands, monkeypatch, capsys):
    monkeypatch.setattr(runner, 'cores', lambda: 6)
    monkeypatch.delenv('OMP_NUM_THREADS')
    commands(baseline='print("an error: of old"); print("train.py: error: no good"); print("bye"); sys.exit(2)',
             AgMax=GOOD)
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    assert run_study(path, '--output', folder, '--jobs', 2) == 1
    assert [(row['method'], row['status'], row['top1'], row['error']) for row in read_rows(folder / 'results.csv')] == [
        ('baseline', 'failed', '', 'exit status 2: train.py: error: no good'), ('AgMax', 'complete', '50.0', '')] * 2
    assert (folder / 'agmax' / 'seed-0.log').read_text() == 'threads 3 of AgMax, seed 0\n'
    told = capsys.readouterr()
    assert 'AgMax, seed 1: complete' in told.err and '2 of 4 runs have no result' in told.out

    commands(baseline=GOOD, AgMax='raise RuntimeError("it was complete")')  # only what failed is tried again
    assert run_study(path, '--output', folder) == 0
    assert {row['status'] for row in read_rows(folder / 'results.csv')} == {'complete'}
    assert 'AgMax' not in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_ends_itself_has_failed(tmp_path, photos, commands):
    """With the exit status of a run that was asked to save: --hang-timeout, or a signal that is not the study's."""
    commands(baseline='print("error: hung: no update"); sys.exit(75)')
    path, folder = write_study(tmp_path, data=str(photos), methods={'baseline': None}, seeds=[0]), tmp_path / 'out'
    assert run_study(path, '--output', folder) == 1
    row, = read_rows(folder / 'results.csv')
    assert (row['status'], row['error']) == ('failed', 'exit status 75: error: hung: no update')


@pytest.mark.parametrize('jobs, threads', [(1, '6'), (2, '3'), (8, '3'), (20, '3')])
def test_the_cores_are_shared_by_the_runs_that_train_at_once(jobs, threads, monkeypatch):
    monkeypatch.setattr(runner, 'cores', lambda: 6)
    monkeypatch.delenv('OMP_NUM_THREADS')
    runs = [None, None]  # not read
    assert runner.Runner(runs, jobs, []).environment['OMP_NUM_THREADS'] == threads


@pytest.mark.slow
def test_table_writes_the_results_so_far(tmp_path, photos, commands, capsys):
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    assert run_study(path, '--output', folder, '--table') == 2
    assert f"--table: no folder '{folder}': train the study first" in capsys.readouterr().err
    commands(baseline='sys.exit(3)', AgMax=GOOD)
    assert run_study(path, '--output', folder) == 1
    written = {name: (folder / name).read_text() for name in ('results.csv', 'table.csv', 'table.md')}
    for name in written:
        (folder / name).unlink()
    commands(baseline='raise RuntimeError', AgMax='raise RuntimeError')  # nothing is trained
    assert run_study(path, '--output', folder, '--table') == 0
    told = capsys.readouterr().out
    assert {name: (folder / name).read_text() for name in written} == written
    assert '2 of 4 runs have no result: ' in told and ' 2 failed' in told
    assert [row['status'] for row in read_rows(folder / 'results.csv')] == ['failed', 'complete'] * 2


@pytest.fixture
def asked(tmp_path, photos, commands, monkeypatch):
    """Function: start a study of two runs, call `event` when both train, and return the exit status of the study."""
    def run(event):
        commands(baseline=ASKED, AgMax=ASKED)
        path, reap, events = write_study(tmp_path, data=str(photos)), runner.Runner._reap, [event]

        def reap_after_event(self, interrupted):
            if events and len(list(tmp_path.glob('out/*/*.ready'))) == 2:
                events.pop()()
            reap(self, interrupted)

        monkeypatch.setattr(runner.Runner, '_reap', reap_after_event)
        try:
            return run_study(path, '--output', tmp_path / 'out', '--jobs', 2)
        finally:
            assert len(list(tmp_path.glob('out/*/seed-0.told'))) == 2, 'killed'
            assert not list(tmp_path.glob('out/*/seed-1*'))
    return run


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGHUP'])
def test_signals_are_passed_on_to_the_runs(asked, hangup, name):
    assert asked(lambda: os.kill(os.getpid(), getattr(signal, name))) == 75


@pytest.mark.slow
def test_runs_save_if_the_reader_of_the_output_ended_first(asked, tmp_path, monkeypatch):
    """As Ctrl-C does with `... 2>&1 | tee log`."""
    reader, writer = os.pipe()
    with closing(os.fdopen(writer, 'w', buffering=1)) as unread:
        def end_reader():
            monkeypatch.setattr(sys, 'stderr', unread)
            monkeypatch.setattr(sys, 'stdout', unread)
            os.close(reader)
            os.kill(os.getpid(), signal.SIGINT)

        assert asked(end_reader) == 75
    assert [row['status'] for row in read_rows(tmp_path / 'out' / 'results.csv')] == ['missing'] * 4


@pytest.mark.slow
def test_runs_save_after_an_error_in_the_study(asked, capsys):
    with pytest.raises(ZeroDivisionError):
        asked(lambda: 1 / 0)
    told = capsys.readouterr()
    assert 'ZeroDivisionError: 2 run(s) save and end' in told.err and '4 of 4 runs have no result' in told.out


@pytest.mark.slow
def test_an_error_about_the_files_of_a_run_does_not_stop_the_others(tmp_path, photos, commands, monkeypatch):
    monkeypatch.setattr(tables, 'draw', lambda *args: None)
    methods = dict.fromkeys(('start', 'log', 'mark', 'good'))
    commands(log='os.remove(sys.argv[1] + ".log"); sys.exit(3)', good=GOOD,
             mark=GOOD + 'os.symlink(sys.argv[1] + "/no/folder", sys.argv[1] + "/complete")')
    path, folder = write_study(tmp_path, data=str(photos), methods=methods, seeds=[0]), tmp_path / 'out'
    (folder / 'start' / 'seed-0.log').mkdir(parents=True)  # a folder in the place of a file
    assert run_study(path, '--output', folder, '--jobs', 4) == 1
    errors = {row['method']: row['error'] for row in read_rows(folder / 'results.csv')}
    assert errors['start'].startswith('not started: ') and 'seed-0.log' in errors['start']
    assert errors['log'].startswith('exit status 3: ') and 'seed-0.log' in errors['log']
    assert errors['mark'].startswith('not marked as complete: ') and errors['good'] == ''


@pytest.mark.slow
def test_a_run_that_trains_nothing_is_not_complete(tmp_path, photos, commands):
    commands(baseline='print("told only")', AgMax=GOOD)
    path, folder = write_study(tmp_path, data=str(photos), seeds=[0]), tmp_path / 'out'
    assert run_study(path, '--output', folder) == 1
    assert read_rows(folder / 'results.csv')[0]['error'] == 'exit status 0: told only'


@pytest.mark.slow
def test_a_stopped_study_continues_and_repeats_no_run(tmp_path, photos, monkeypatch):
    """With real runs. It is stopped when the second begins. At the end all are complete and the first is unchanged."""
    monkeypatch.setattr(runner, 'subprocess', SimpleNamespace(**{**vars(subprocess), 'Popen': ranks.Popen}))
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    start = runner.Runner._start

    def stop_after_second(self, run, device):
        process = start(self, run, device)
        if run.cell.method == 'AgMax':
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(runner.Runner, '_start', stop_after_second)
    assert run_study(path, '--output', folder, '--devices', 'cpu') == 75
    rows = read_rows(folder / 'results.csv')
    assert rows[0]['status'] == 'complete' and not any(row['top1'] for row in rows[1:])
    first = {file: file.stat().st_mtime_ns for file in (folder / 'baseline' / 'seed-0').iterdir()}

    started = []
    monkeypatch.setattr(runner.Runner, '_start', lambda self, run, device: started.append(run.name) or start(
        self, run, device))
    assert run_study(path, '--output', folder, '--jobs', 2) == 0
    assert started == ['AgMax, seed 0', 'baseline, seed 1', 'AgMax, seed 1']
    assert {file: file.stat().st_mtime_ns for file in (folder / 'baseline' / 'seed-0').iterdir()} == first
    for row in read_rows(folder / 'results.csv'):
        args = yaml.safe_load((folder / row['folder'] / 'args.yaml').read_text())
        assert (args['seed'], args['agmax'], args['epochs']) == (int(row['seed']), row['method'] == 'AgMax', 1)
        last = read_rows(folder / row['folder'] / 'summary.csv')[-1]
        assert row['status'] == 'complete' and float(row['top1']) == float(last['eval_top1'])

    monkeypatch.setattr(runner.Runner, '_start', None)  # it would fail
    assert run_study(path, '--output', folder) == 0
    changed = write_study(tmp_path, data=str(photos), base={**SMALL, 'lr': 0.01})
    assert run_study(changed, '--output', folder) == 2


@pytest.mark.parametrize('split', [
    {'val_split': 0.1}, {'val_split': 0.1, 'val_split_seed': None}, {'val_split': 0.1, 'val_split_seed': 7}])
def test_the_study_knows_the_options_that_its_runs_will_have(tmp_path, split):
    study = read_study(write_study(tmp_path, base={**SMALL, **split}, seeds=[0, 5, 2]))
    for run in make_runs(study, 'data', str(tmp_path / 'out')):
        os.makedirs(run.cell.folder, exist_ok=True)
        with open(run.cell.options_path, 'w') as file:
            file.write(run.cell.recipe)
        own = parse_train_args(run.command()[3:])
        differing = [name for name in declared(TrainOptions) if getattr(own, name) != getattr(run.options, name)]
        assert set(differing) <= {'resume'} and own.seed == run.seed, differing


@pytest.mark.slow
@pytest.mark.parametrize('option, allowed', [
    (dict(report=True), True), (dict(log_tensorboard=True), True), (dict(log_wandb=True), True),
    (dict(nan_policy='skip'), True), (dict(max_damaged=0.5), True), (dict(workers=1), True), (dict(pin_mem=True), True),
    (dict(lr=0.01), False), (dict(val_interval=2), False), (dict(early_stop=3), False),
])
def test_existing_runs_may_differ_only_in_options_without_effect_on_the_result(tmp_path, option, allowed):
    study = read_study(write_study(tmp_path))
    for run in make_runs(study, 'data', str(tmp_path / 'out')):
        os.makedirs(run.folder)
        with open(os.path.join(run.folder, 'args.yaml'), 'w') as file:
            yaml.safe_dump(values(run.options), file)
    now = read_study(write_study(tmp_path, base={**SMALL, **option}))
    runs = make_runs(now, 'data', str(tmp_path / 'out'))
    if allowed:
        plan.check_unchanged(now, runs)
    else:
        (name, value), = option.items()
        with pytest.raises(OptionError, match=f'was trained with {flag_of(name)} .*now has {value!r}'):
            plan.check_unchanged(now, runs)
