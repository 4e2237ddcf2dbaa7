"""Studies: statistics against numbers by hand, the table of made-up outcomes, a small study that is stopped and
continued, and messages about invalid files.
"""
import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from agmax_timm.base.command_line import flag_of
from agmax_timm.base.errors import OptionError
from agmax_timm.options.declare import values
from agmax_timm.study import command, figure, outcome, plan, results, runner
from agmax_timm.study.definition import read_study
from agmax_timm.study.outcome import Outcome
from agmax_timm.study.plan import make_runs
from agmax_timm.study.published import read_published
from agmax_timm.study.tables import write_tables
from tests.helpers import ranks
from tests.helpers.paths import REPOSITORY

STUDIES = sorted((REPOSITORY / 'hparams' / 'studies').glob('*.yaml'))
SMALL = dict(model='test_resnet', num_classes=3, img_size=32, batch_size=4, epochs=1, workers=0, warmup_epochs=0)
# Of Student's t, two-sided 95 %, as printed in any table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}


def write_study(folder, **keys):
    content = dict(base=SMALL, methods={'baseline': {'smoothing': 0}, 'AgMax': {'agmax': True}}, seeds=[0, 1])
    content.update(keys)
    path = folder / 'study.yaml'
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


# Statistics


@pytest.mark.parametrize('freedom, t', TABLE.items())
def test_quantiles_equal_the_published_table(freedom, t):
    assert results.t_quantile(freedom) == pytest.approx(t, abs=5e-4)


def test_quantiles_and_intervals_equal_those_of_scipy():
    stats = pytest.importorskip('scipy.stats')
    for freedom in range(1, 60):
        for confidence in (0.5, 0.95, 0.999):
            assert results.t_quantile(freedom, confidence) == pytest.approx(
                stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)
    values, baseline = {3: 84.5, 1: 85.3, 2: 85.1, 0: 86.}, {0: 85., 1: 84.2, 2: 83.8, 3: 84.9}
    theirs = stats.ttest_rel([values[seed] for seed in range(4)], [baseline[seed] for seed in range(4)])
    ours = results.paired_difference(values, baseline)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)


def test_an_interval_equals_that_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, half width 4.302653 / sqrt(3) = 2.484138. Seeds of one are left out.
    found = results.paired_difference({0: 11., 7: 22., 2: 43., 5: 0.}, {2: 40., 0: 10., 7: 20., 9: 100.})
    assert (found.n, found.mean) == (3, 2.)
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_intervals_are_paired():
    """Seeds differ by 10 points. Within each, the difference is about 1."""
    baseline = {0: 50., 1: 60., 2: 70.}
    found = results.paired_difference({0: 51., 1: 61.1, 2: 70.9}, baseline)
    assert found.mean == pytest.approx(1.)
    assert found.high - found.mean == pytest.approx(4.302653 * .1 / math.sqrt(3), abs=1e-6)
    unpaired = 2.776445 * math.sqrt(2 * 10 ** 2 / 3)  # of two groups of deviation 10
    assert found.high - found.mean < unpaired / 50


def test_one_pair_has_no_interval():
    assert results.paired_difference({0: 2.}, {0: 1., 1: 5.}) == results.Difference((1.,), 1.)
    assert results.paired_difference({0: 2.}, {1: 5.}) == results.Difference()
    assert results.sample_deviation([3.]) is None


# Tables


@pytest.fixture
def fake(tmp_path):
    """Function: a study without runs, and the outcomes of its runs from a dictionary by method and seed."""
    def make(values, **keys):
        study = read_study(write_study(tmp_path, **keys))
        runs = make_runs(study, 'data', str(tmp_path / 'out'))
        outcomes = [Outcome(run, 'complete', values[run.cell.method, run.seed], 0)
                    if (run.cell.method, run.seed) in values else Outcome(run, 'failed', error='it | broke')
                    for run in runs]
        os.makedirs(tmp_path / 'out', exist_ok=True)
        return study, outcomes, tmp_path / 'out'
    return make


def test_the_table_of_made_up_outcomes_equals_that_by_hand(fake, tmp_path):
    (tmp_path / 'published.csv').write_text('# a source\nmethod,value\nbaseline,80\nAgMax,81.5\n')
    study, outcomes, folder = fake(
        {('baseline', 0): 10., ('baseline', 1): 20., ('baseline', 2): 60.,
         ('AgMax', 0): 11., ('AgMax', 1): 22., ('AgMax', 2): 63., ('mse', 1): 19.},
        methods={'baseline': {}, 'AgMax': {'agmax': True}, 'mse': {'agmax': True, 'agmax_loss': 'mse'}},
        seeds=[0, 1, 2], published='published.csv')
    text = write_tables(study, outcomes, read_published(study), str(folder))

    rows = read_rows(folder / 'table.csv')
    assert [row['method'] for row in rows] == ['baseline', 'AgMax', 'mse']
    baseline, agmax, mse = rows
    assert [baseline[name] for name in ('n', 'mean', 'difference', 'published')] == ['3', '30.0', '', '80.0']
    assert float(agmax['mean']) == 32.
    assert float(agmax['deviation']) == pytest.approx(math.sqrt((21 ** 2 + 10 ** 2 + 31 ** 2) / 2))
    assert (agmax['pairs'], agmax['difference'], agmax['published_difference']) == ('3', '2.0', '1.5')
    assert float(agmax['low']) == pytest.approx(2 - 2.484138, abs=1e-6)
    assert (mse['n'], mse['pairs'], mse['difference'], mse['deviation'], mse['low'], mse['published']) == (
        '1', '1', '-1.0', '', '', '')

    assert '| AgMax | 32.00 ± 27.40 | 3 | +2.00 | -0.48 to +4.48 | 81.50 | +1.50 |' in text
    assert '| mse | 19.00 | 1 | -1.00 | none for one pair | - |  |' in text
    assert 'One seed has neither' in text and '2 of 9 runs have no result: ' in text and '2 failed.' in text
    assert '- mse, seed 0: it | broke' in text and text == (folder / 'table.md').read_text()

    results = read_rows(folder / 'results.csv')
    assert len(results) == 9 and [row['status'] for row in results].count('failed') == 2
    assert {row['folder'] for row in results} >= {'agmax/seed-0', 'mse/seed-2'}
    assert (folder / 'figure.png').stat().st_size > 5000


def test_comparisons_use_means_over_the_augmentations_of_a_seed(tmp_path):
    """Seed 3 lacks one run and is left out. Means of AgMax 2, 4, 6, of two views 1, 2, 3: differences 1, 2, 3."""
    values = {('plain', 'AgMax'): [1, 3, 5, 90], ('cutmix', 'AgMax'): [3, 5, 7],
              ('plain', 'two views'): [0, 1, 2, 3], ('cutmix', 'two views'): [2, 3, 4, 5]}
    study = read_study(write_study(
        tmp_path, augmentations={'plain': {}, 'cutmix': {'cutmix': 1.}}, seeds=[0, 1, 2, 3],
        methods={'two views': {'agmax': True, 'agmax_weight': 0}, 'AgMax': {'agmax': True}},
        comparisons=[['AgMax', 'two views'], ['two views', 'AgMax']]))
    outcomes = [
        Outcome(run, 'complete', values[run.cell.augmentation, run.cell.method][run.seed], 0)
        if run.seed < len(values[run.cell.augmentation, run.cell.method]) else Outcome(run, 'missing')
        for run in make_runs(study, 'data', str(tmp_path))]
    text = write_tables(study, outcomes, read_published(study), str(tmp_path))
    there, back = read_rows(tmp_path / 'comparisons.csv')
    assert (there['method'], there['minus'], there['pairs'], there['difference']) == ('AgMax', 'two views', '3', '2')
    assert (float(there['low']), float(there['high'])) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert (back['method'], back['difference']) == ('two views', '-2')
    assert '|  | AgMax minus two views | +2.00 | -0.48 to +4.48 | 3 |' in text


@pytest.mark.parametrize('value, words', [
    ('AgMax', ['comparisons: expected a list of pairs']), ([['AgMax']], ['comparisons: expected a list of pairs']),
    ([['AgMx', 'baseline']], ["'AgMx' is not a method", 'did you mean AgMax?', "there are 'baseline', 'AgMax'"])])
def test_invalid_comparisons_are_refused(value, words, tmp_path):
    with pytest.raises(OptionError) as error:
        read_study(write_study(tmp_path, comparisons=value))
    for word in words:
        assert word in str(error.value)


def test_two_processes_may_write_the_table(fake, monkeypatch, capsys):
    """The other process is writing one of its CSV files while this one writes them all."""
    study, outcomes, folder = fake({('baseline', 0): 10., ('AgMax', 0): 11.}, seeds=[0])
    (begun, begin), (allowed, allow) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write = csv.DictWriter.writerows
            monkeypatch.setattr(csv.DictWriter, 'writerows', lambda *args: (
                os.write(begin, b'.'), os.read(allowed, 1), write(*args)))
            write_tables(study, outcomes, {}, str(folder))
            os._exit(0)
        finally:
            os._exit(1)
    for _ in range(2):
        os.read(begun, 1)
        command.main([study.path, '--table', '--data', 'data', '--output', str(folder)])
        assert [row['status'] for row in read_rows(folder / 'results.csv')] == ['missing', 'missing']
        os.write(allow, b'.')
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [row['mean'] for row in read_rows(folder / 'table.csv')] == ['10.0', '11.0']  # it was the last to write
    assert sorted(os.listdir(folder)) == ['figure.png', 'results.csv', 'table.csv', 'table.md']


def test_names_may_contain_characters_of_tables_and_formulas(fake):
    names = ['baseline', r'lr $\foo$ x', 'Ag | Max']
    study, outcomes, folder = fake(
        {(name, seed): 10. + seed for name in names for seed in (0, 1)}, title=r'cost $\5 and $6',
        methods={name: {'agmax': number > 0, 'smoothing': number / 10} for number, name in enumerate(names)},
        seeds=[0, 1])
    text = write_tables(study, outcomes, {}, str(folder))
    assert r'| Ag \| Max | 10.50 ± 0.71 |' in text and (folder / 'figure.png').stat().st_size > 5000


def test_differences_are_within_an_augmentation_and_a_setting(fake):
    study, outcomes, folder = fake(
        {}, augmentations={'none': None, 'flip': {'vflip': 0.5}}, settings={'a': {'lr': 0.1}, 'b': {'lr': 0.2}})
    for number, one in enumerate(outcomes):
        one.value, one.status = float(number ** 2), 'complete'
    write_tables(study, outcomes, {}, str(folder))
    rows = read_rows(folder / 'table.csv')
    by_run = {tuple(row[axis] for axis in ('augmentation', 'setting', 'method', 'seed')): float(row['top1'])
              for row in read_rows(folder / 'results.csv')}
    assert [tuple(row[axis] for axis in ('augmentation', 'setting')) for row in rows[::2]] == [
        ('none', 'a'), ('none', 'b'), ('flip', 'a'), ('flip', 'b')]
    for row in rows[1::2]:
        place = row['augmentation'], row['setting']
        differences = [by_run[(*place, 'AgMax', seed)] - by_run[(*place, 'baseline', seed)] for seed in '01']
        assert float(row['difference']) == sum(differences) / 2


def test_outcomes_are_those_of_the_last_or_the_best_epoch(fake):
    _, (one, *_), _ = fake({})
    os.makedirs(one.run.folder)
    Path(one.run.folder, 'summary.csv').write_text(
        'epoch,eval_loss,eval_top1\n0,2,30\n1,1,50\n2,3,\n3,4,40\n')
    assert outcome.read_outcome(one.run, 'top1', 'last').status == 'missing'
    outcome.mark_complete(one.run)
    for metric, epoch, value, of_epoch in (
            ('top1', 'last', 40., 3), ('top1', 'best', 50., 1), ('loss', 'last', 4., 3), ('loss', 'best', 1., 1)):
        found = outcome.read_outcome(one.run, metric, epoch)
        assert (found.status, found.value, found.epoch) == ('complete', value, of_epoch)
    found = outcome.read_outcome(one.run, 'top5', 'last')
    assert found.status == 'failed' and 'eval_top5' in found.error


def test_progress_is_read_from_the_log(fake):
    _, (one, *_), _ = fake({})
    assert outcome.epochs_done(one.run) == 0
    os.makedirs(one.run.folder)
    Path(one.run.folder, 'train.log').write_text(
        'Training epochs 0 to 9\n' + 'x' * 9000 + '\nTrain: 2 [  19/20 (100%)]  L\nTrain: 3 [   4/20 ( 25%)]  L\n')
    assert outcome.epochs_done(one.run) == 3.25


# Runs


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
print('threads', os.environ['OMP_NUM_THREADS'])
'''


def run_study(*argv):
    try:
        command.main([*map(str, argv)])
    except SystemExit as exit_info:
        return exit_info.code
    return 0


def test_a_failed_run_is_a_row_and_the_others_are_trained(tmp_path, photos, commands, monkeypatch, capsys):
    monkeypatch.setattr(runner, 'cores', lambda: 6)
    monkeypatch.delenv('OMP_NUM_THREADS')
    commands(baseline='print("an error: of old"); print("train.py: error: no good"); print("bye"); sys.exit(2)',
             AgMax=GOOD)
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    assert run_study(path, '--output', folder, '--jobs', 2) == 1
    assert [(row['method'], row['status'], row['top1'], row['error']) for row in read_rows(folder / 'results.csv')] == [
        ('baseline', 'failed', '', 'exit status 2: train.py: error: no good'), ('AgMax', 'complete', '50.0', '')] * 2
    assert (folder / 'agmax' / 'seed-0.log').read_text() == 'threads 3\n'
    told = capsys.readouterr()
    assert 'AgMax, seed 1: complete' in told.err and '2 of 4 runs have no result' in told.out

    commands(baseline=GOOD, AgMax='raise RuntimeError("it was complete")')  # only what failed is tried again
    assert run_study(path, '--output', folder) == 0
    assert {row['status'] for row in read_rows(folder / 'results.csv')} == {'complete'}
    assert 'AgMax' not in capsys.readouterr().err


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
    assert (folder / 'table.csv').read_text() == written['table.csv']
    assert '2 of 4 runs have no result: ' in told and ' 2 to train' in told
    assert [row['status'] for row in read_rows(folder / 'results.csv')] == ['missing', 'complete'] * 2


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_signals_are_passed_on_to_the_runs(tmp_path, photos, commands, monkeypatch, name):
    asked = '''
import signal, time
assert os.getsid(0) == os.getpid(), 'Ctrl-C would come twice'
def leave(*_):
    open(sys.argv[1] + '.told', 'w').close()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open(sys.argv[1] + '.ready', 'w').close()
time.sleep(30)
'''
    commands(baseline=asked, AgMax=asked)
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    reap, signalled = runner.Runner._reap, []

    def signal_when_ready(self, interrupted):
        if not signalled and len(list(folder.glob('*/*.ready'))) == 2:
            signalled.append(name)
            os.kill(os.getpid(), getattr(signal, name))
        reap(self, interrupted)

    monkeypatch.setattr(runner.Runner, '_reap', signal_when_ready)
    assert run_study(path, '--output', folder, '--jobs', 2) == 75
    assert len(list(folder.glob('*/seed-0.told'))) == 2 and not list(folder.glob('*/seed-1*'))


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


# Files


def test_dry_run_prints_the_cost_and_trains_nothing(tmp_path, photos, capsys):
    path = write_study(tmp_path, base={**SMALL, 'epochs': 3}, seeds=[0, 5, 9])
    assert run_study(path, '--output', tmp_path / 'out', '--data', photos, '--dry-run') == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if ' -m agmax_timm.study.train ' in line]
    assert len(commands) == 6 and all('--resume auto' in line and str(photos) in line for line in commands)
    # 12 images in batches of 4; half of the runs have two views.
    assert lines[-1].startswith('6 runs, 18 epochs, 54 updates, 324 views; 0 ')
    assert not (tmp_path / 'out').exists()


def test_later_options_override_earlier_ones(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('lr: 0.3\nsmoothing: 0.3\nmixup: 0.3\n')
    study = read_study(write_study(
        tmp_path, base=[{**SMALL, 'lr': 0.1}, 'recipe.yaml'], augmentations={'a': {'smoothing': 0.2, 'mixup': 0.2}},
        methods={'m': ['recipe.yaml', {'mixup': 0.1, 'agmax': True}], 'n': None}))
    m, n = (run.options for run in make_runs(study, 'data', str(tmp_path))[:2])
    assert (m.lr, m.smoothing, m.mixup, m.agmax) == (0.3, 0.3, 0.1, True)
    assert (n.lr, n.smoothing, n.mixup, n.agmax) == (0.3, 0.2, 0.2, False)


BAD = [
    (dict(augmentation={'a': None}), 'unknown key', 'did you mean augmentations?'),
    (dict(base={'modle': 'x'}), "base: unknown option 'modle'", 'did you mean model?'),
    (dict(base='absent.yaml'), 'base: ', 'absent.yaml', 'No such file'),
    (dict(base=7), 'base: expected the path of a recipe', 'got 7'),
    (dict(methods={'a': {'agmax_loss': 'mi2'}}), "methods: 'a': 'agmax_loss': expected one of mi", "'mi2'"),
    (dict(methods={'a': {'seed': 3}}), "seed' is set by the study", 'use seeds'),
    (dict(methods={}), 'methods: expected lines', 'got {}'),
    (dict(methods=None), 'no methods', 'at least one'),
    (dict(methods={'A b': None, 'a-b': None}), 'a-b', 'rename one'),
    (dict(methods={'+': None}), 'cannot be the name of a folder', 'letters'),
    (dict(methods={'a': {'mixup': -1.0}}), "'a': --mixup", '-1'),
    (dict(seeds=[]), 'seeds: expected a list', 'got []'),
    (dict(seeds=[1, 1]), 'seeds: 1 occurs twice', 'drop one'),
    (dict(seeds=['x']), 'seeds: expected whole numbers', "'x'"),
    (dict(baseline='agmax'), "baseline: 'agmax' is not a method", 'did you mean AgMax?'),
    (dict(metric='top2'), 'metric: must be one of loss, top1, top5', "'top2'"),
    (dict(epoch='first'), 'epoch: must be last or best', "'first'"),
    (dict(data='absent'), 'data: no folder', '--data DIR'),
    (dict(data=None), 'no data', '--data DIR'),
    (dict(published='absent.csv'), 'published: ', 'absent.csv'),
]


@pytest.mark.parametrize('keys, words', [(keys, words) for keys, *words in BAD], ids=[str(case[0]) for case in BAD])
def test_invalid_studies_are_refused_in_one_line(keys, words, tmp_path, photos, capsys):
    path = write_study(tmp_path, **{'data': str(photos), **keys})
    assert run_study(path, '--output', tmp_path / 'out') == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m agmax_timm.study: error: '{path}': ")
    for word in words:
        assert word in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, words', [
    (None, ['No such file']), ('- a\n', ['found a list']), ('a: 1\na: 2\n', ["'a' occurs twice"]),
    ('a: [', ['expected'])])
def test_files_that_are_not_studies_are_refused(content, words, tmp_path, capsys):
    path = tmp_path / 'study.yaml'
    if content is not None:
        path.write_text(content)
    assert run_study(path) == 2
    line, = capsys.readouterr().err.splitlines()
    assert str(path) in line and all(word in line for word in words)


@pytest.mark.parametrize('text, words', [
    ('method,value\nAgMx,1\n', ["method 'AgMx' is not in", 'did you mean AgMax?']),
    ('method,percent\nAgMax,1\n', ['must have the columns method, value', "got 'method', 'percent'"]),
    ('method,value\nAgMax,one\n', ["value must be a number, got 'one'"]),
    ('method,value\nAgMax,1\nAgMax,2\n', ["AgMax' occurs twice"]),
    ('# nothing\n', ['must have the columns', 'got none'])])
def test_published_numbers_that_do_not_fit_are_refused(text, words, tmp_path):
    (tmp_path / 'published.csv').write_text(text)
    with pytest.raises(OptionError) as error:
        read_published(read_study(write_study(tmp_path, published='published.csv')))
    for word in [str(tmp_path / 'published.csv'), *words]:
        assert word in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_studies_of_this_package_are_valid(path, tmp_path):
    study = read_study(str(path))
    runs = make_runs(study, 'data', str(tmp_path))
    cells = len(study.augmentations) * len(study.settings) * len(study.methods)
    assert len(runs) == cells * len(study.seeds) and len({run.folder for run in runs}) == len(runs)
    unpublished = 8 if path.stem == 'imagenet' else 0  # the baseline with AgMax's initial weights
    assert len(read_published(study)) in (0, cells - unpublished)
    header = ' '.join(line for line in path.read_text().splitlines() if line.startswith('#'))
    assert f'python -m agmax_timm.study hparams/studies/{path.name}' in header and 'Cost: ' in header


def test_the_studies_of_this_package_are_listed():
    assert {path.stem for path in STUDIES} == {
        'backends_pocket', 'marginals_pocket', 'small_batches_pocket', 'objective_pocket', 'demo_tuning', 'demo_fair',
        'demo_converged', 'finetune_pocket'} | {
        f'{name}{form}' for name in ('imagenet', 'cifar10', 'cifar100', 'batch_size', 'learning_rate', 'ablation')
        for form in ('', '_pocket')}


def test_the_figure_has_the_seeds_the_means_and_the_intervals(fake, monkeypatch):
    """Values by hand: AgMax minus baseline is 1, 2, 3. The mean is 2 and the interval 2 ± 2.484."""
    pyplot = pytest.importorskip('matplotlib.figure')
    study, outcomes, _ = fake(
        {('baseline', 0): 10., ('baseline', 1): 20., ('baseline', 2): 60.,
         ('AgMax', 0): 11., ('AgMax', 1): 22., ('AgMax', 2): 63., ('mse', 1): 19.},
        methods={'baseline': {}, 'AgMax': {'agmax': True}, 'mse': {'agmax': True, 'agmax_loss': 'mse'}},
        seeds=[0, 1, 2], comparisons=[['AgMax', 'baseline']])
    rows, shown = results.aggregate(study, outcomes, {('', '', 'baseline'): 80., ('', '', 'AgMax'): 81.5}), []
    monkeypatch.setattr(figure, 'save_figure', lambda path, draw, **size: draw(shown[0]))
    shown.append(pyplot.Figure())
    figure.draw(study, rows, results.compare(study, rows), 'figure.png')
    values, differences = shown[0].axes
    assert [line.get_xdata().tolist() for line in values.lines] == [
        [10, 20, 60], [30], [11, 22, 63], [32], [19], [19]]
    assert [label.get_text() for label in values.get_yticklabels()] == [
        'baseline', 'AgMax', 'mse', 'comparisons', 'AgMax minus baseline']
    drawn = [line.get_xdata() for line in differences.lines]
    assert [1, 2, 3] in [[*found] for found in drawn]
    intervals = [[*found] for found in drawn[1:] if len(found) == 2 and found[0] != found[1]]
    assert intervals == [pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)] * 2
    assert [1.5] in [[*found] for found in drawn] and [-1.] in [[*found] for found in drawn]
    texts = [label.get_text() for axes in differences.child_axes for label in axes.get_yticklabels()]
    assert texts == ['', '+2.00 (-0.48 to +4.48)', '-1.00', '+2.00 (-0.48 to +4.48)']


def test_the_figure_of_one_method_has_only_its_values(fake, monkeypatch):
    pyplot = pytest.importorskip('matplotlib.figure')
    study, outcomes, _ = fake({('baseline', 0): 10., ('baseline', 1): 20.}, methods={'baseline': {}}, seeds=[0, 1])
    shown = pyplot.Figure()
    monkeypatch.setattr(figure, 'save_figure', lambda path, draw, **size: draw(shown))
    figure.draw(study, results.aggregate(study, outcomes, {}), [], 'figure.png')
    (values,) = shown.axes
    assert [line.get_xdata().tolist() for line in values.lines] == [[10, 20], [15]]


def test_a_study_in_any_folder_may_use_recipes_of_the_package(tmp_path):
    path = write_study(tmp_path, base='demo', methods={'AgMax': 'method/agmax', 'baseline': 'method/baseline'})
    read = read_study(path)
    assert read.base.options['dataset'] == 'demo' and read.base.options['model'] == 'test_resnet'
    assert [method.options['agmax'] for method in read.methods] == [True, False]
