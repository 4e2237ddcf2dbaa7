"""Tables of made-up outcomes, and the outcomes of runs."""
import csv
import math
import os
from pathlib import Path

import pytest

from agmax_timm.base.errors import OptionError
from agmax_timm.study import command, outcome, tables
from agmax_timm.study.definition import read_study
from agmax_timm.study.outcome import Outcome
from agmax_timm.study.plan import make_runs
from agmax_timm.study.tables import write_tables
from tests.helpers.studies import read_rows, write_study


def test_the_table_of_made_up_outcomes_equals_that_by_hand(fake, tmp_path):
    (tmp_path / 'published.csv').write_text('# a source\nmethod,value\nbaseline,80\nAgMax,81.5\n')
    study, outcomes, folder = fake(
        {('baseline', 0): 10., ('baseline', 1): 20., ('baseline', 2): 60.,
         ('AgMax', 0): 11., ('AgMax', 1): 22., ('AgMax', 2): 63., ('mse', 1): 19.},
        methods={'baseline': {}, 'AgMax': {'agmax': True}, 'mse': {'agmax': True, 'agmax_loss': 'mse'}},
        seeds=[0, 1, 2], published='published.csv')
    text = write_tables(study, outcomes, str(folder))

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


def test_a_loss_has_more_decimals_and_the_table_names_the_pairs_of_fewer_seeds(fake, monkeypatch):
    monkeypatch.setattr(tables, 'draw', lambda *args: None)
    study, outcomes, folder = fake(
        {('baseline', 0): .51, ('baseline', 1): .52, ('AgMax', 0): .5013, ('AgMax', 1): .5133, ('AgMax', 2): .5},
        seeds=[0, 1, 2], metric='loss', comparisons=[['AgMax', 'baseline']])
    text = write_tables(study, outcomes, str(folder))
    # Differences -0.0087 and -0.0067: mean -0.0077, deviation 0.002 / sqrt(2), half width 12.7062 * 0.001.
    assert '| AgMax | 0.5049 ± 0.0073 | 3 | -0.0077 | -0.0204 to +0.0050 (2 pairs) |' in text
    assert '| baseline | 0.5150 ± 0.0071 | 2 |' in text
    assert '|  | AgMax minus baseline | -0.0077 | -0.0204 to +0.0050 | 2 |' in text
    assert text.count('loss (smaller is better) ') == 2


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
    text = write_tables(study, outcomes, str(tmp_path))
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
            write_tables(study, outcomes, str(folder))
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
    text = write_tables(study, outcomes, str(folder))
    assert r'| Ag \| Max | 10.50 ± 0.71 |' in text and (folder / 'figure.png').stat().st_size > 5000


def test_differences_are_within_an_augmentation_and_a_setting(fake):
    study, outcomes, folder = fake(
        {}, augmentations={'none': None, 'flip': {'vflip': 0.5}}, settings={'a': {'lr': 0.1}, 'b': {'lr': 0.2}})
    for number, one in enumerate(outcomes):
        one.value, one.status = float(number ** 2), 'complete'
    write_tables(study, outcomes, str(folder))
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
    assert found.error.endswith(f": remove '{one.run.folder}' to train it again")
    Path(one.run.folder, 'summary.csv').write_text('epoch,eval_top1\n0,nan\n')
    assert outcome.read_outcome(one.run, 'top1', 'last').error == (
        f"eval_top1 is nan in {one.run.folder}/summary.csv: remove '{one.run.folder}' to train it again")


def test_progress_is_read_from_the_log(fake):
    _, (one, *_), _ = fake({})
    assert outcome.epochs_done(one.run) == 0
    os.makedirs(one.run.folder)
    Path(one.run.folder, 'train.log').write_text(
        'Training epochs 0 to 9\n' + 'x' * 9000 + '\nTrain: 2 [  19/20 (100%)]  L\nTrain: 3 [   4/20 ( 25%)]  L\n')
    assert outcome.epochs_done(one.run) == 3.25
