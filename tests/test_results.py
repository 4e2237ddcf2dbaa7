"""The results page and the studies that build on a result agree with the values of the single runs."""
import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest
import yaml

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
