"""The results page and the studies that build on a result agree with the values of the single runs."""
import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from agmax_timm.study.results import paired_difference

HOME = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def tuning():
    """Return the mean top-1 of each (method, batch size) by learning rate."""
    top1 = defaultdict(list)
    with open(HOME / 'docs/results/demo_tuning.csv', newline='') as file:
        for row in csv.DictReader(file):
            batch, rate = re.fullmatch(r'batch (\d+), rate ([\d.]+)', row['setting']).groups()
            top1[row['method'], int(batch), float(rate)].append(float(row['top1']))
    assert len(top1) == 18 and all(len(values) == 4 for values in top1.values())
    rates = defaultdict(dict)
    for (method, batch, rate), values in top1.items():
        rates[method, batch][rate] = mean(values)
    return rates


@pytest.mark.parametrize('study', ['demo_fair', 'demo_converged'])
def test_the_comparison_uses_the_best_learning_rates_of_the_tuning(tuning, study):
    for name, parts in yaml.safe_load((HOME / f'hparams/studies/{study}.yaml').read_text())['methods'].items():
        options = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
        method = name.split(',')[0] if name.startswith(('AgMax', 'two views alone')) else 'twice the epochs'
        rates = tuning[method, options['batch_size']]
        assert options['lr'] == max(rates, key=rates.get), name


def test_the_page_contains_the_means_of_the_tuning(tuning):
    page = (HOME / 'docs/results.md').read_text()
    for (method, batch), rates in tuning.items():
        cells = [f'{rates[rate]:.1f}' for rate in (0.05, 0.1, 0.2)]
        best = max(range(3), key=[rates[rate] for rate in (0.05, 0.1, 0.2)].__getitem__)
        cells[best] = f'**{cells[best]}**'
        assert f"| {method} | {batch} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize('metric, name', [
    ('balanced_top1', 'mean over classes'), ('prior_top1', 'at training frequencies'),
    ('largest_top1', 'three largest classes'), ('smallest_top1', 'three smallest classes')])
@pytest.mark.parametrize('sizes', ['100 to 10', '100 to 3'])
def test_the_page_has_the_numbers_of_the_class_prior(sizes, metric, name):
    top1 = defaultdict(dict)
    with open(HOME / 'docs/results/class_prior_pilot.csv', newline='') as file:
        for row in csv.DictReader(file):
            if row['sizes'] == sizes:
                top1[row['method']][int(row['seed'])] = float(row[metric])
    twice, views, agmax, prior = (top1[method] for method in (
        'twice the epochs', 'two views alone', 'AgMax', 'AgMax, class prior'))
    assert all(sorted(values) == list(range(8)) for values in (twice, views, agmax, prior))
    accuracy = [f'{mean(v.values()):.1f} ± {stdev(v.values()):.1f}' for v in (twice, views, agmax, prior)]
    found = [paired_difference(*pair) for pair in ((prior, agmax), (agmax, views), (prior, views))]
    differences = [f'{d.mean:+.2f} ({d.low:.2f} to {d.high:.2f})' for d in found]
    page = (HOME / 'docs/results.md').read_text()
    for cells in (accuracy, differences):
        assert f"| {sizes} | {name} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize('data, forms', [('demo', 4), ('cifar10_2k', 2)])
def test_the_page_has_the_results_of_cheaper_forms_of_agreement(data, forms):
    top1, loss = defaultdict(dict), defaultdict(dict)
    with open(HOME / 'docs/results/agreement_pilots.csv', newline='') as file:
        for row in csv.DictReader(file):
            if (row['data'], row['split']) == (data, 'val'):
                top1[row['arm']][int(row['seed'])] = float(row['top1'])
                loss[row['arm']][int(row['seed'])] = float(row['loss'])
    page = (HOME / 'docs/results.md').read_text()
    plain, = (arm for arm in top1 if arm.startswith('plain'))
    assert len(top1) == forms and all(sorted(values) == list(range(8)) for values in top1.values())
    for arm, values in top1.items():
        cells = [arm.split()[0], f'{mean(values.values()):.1f} ± {stdev(values.values()):.1f}']
        if arm != plain:
            difference, of_loss = paired_difference(values, top1[plain]), paired_difference(loss[arm], loss[plain])
            cells += [f'{difference.mean:+.2f} ({difference.low:.2f} to {difference.high:.2f})',
                      f'{of_loss.mean:+.3f} ({of_loss.low:.3f} to {of_loss.high:.3f})']
        assert re.search(r'\| ' + r' \|.*'.join(map(re.escape, cells)) + r' \|', page), cells


def test_the_page_has_the_results_of_fine_tuning():
    top1 = defaultdict(dict)
    with open(HOME / 'docs/results/finetune_pocket.csv', newline='') as file:
        for row in csv.DictReader(file):
            top1[row['method']][int(row['seed'])] = float(row['top1'])
    page = (HOME / 'docs/results.md').read_text().split('## Fine-tuning on 100 images')[1].split('\n## ')[0]
    for method, values in top1.items():
        assert sorted(values) == list(range(5))
        assert f'| {mean(values.values()):.1f} ± {stdev(values.values()):.1f} |' in page
        if method != 'fine-tuning':
            found = paired_difference(values, top1['fine-tuning'])
            assert f'| {found.mean:+.1f} ({found.low:.1f} to {found.high:.1f}) |' in page, method
    found = paired_difference(top1['AgMax'], top1['twice the epochs'])
    assert f'{found.mean:+.1f} ({found.low:.1f} to {found.high:.1f})' in page
