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

# Studies with all runs in docs/results, and the heading of their results
STUDIES = {
    'memory_ablation_pocket': 'The options of remembered predictions',
    'init_std_pocket': 'Initial weights from N(0, 0.2)',
    'objective_pocket': 'The objective with 100 classes',
}


def rows_of(name):
    with open(HOME / f'docs/results/{name}.csv', newline='') as file:
        return list(csv.DictReader(file))


def section(title):
    """Return the part of the results page below a heading, up to the next heading of any level."""
    return re.split(r'^#+ ', (HOME / 'docs/results.md').read_text().split(f'# {title}\n')[1], flags=re.M)[0]


def spread(values):
    return f'{mean(values.values()):.1f} ± {stdev(values.values()):.1f}'


def shown(difference, digits=2):
    return f'{difference.mean:+.{digits}f} ({difference.low:.{digits}f} to {difference.high:.{digits}f})'


@pytest.fixture(scope='module')
def tuning():
    """Return the mean top-1 of each (method, batch size) by learning rate."""
    top1 = defaultdict(list)
    for row in rows_of('demo_tuning'):
        batch, rate = re.fullmatch(r'batch (\d+), rate ([\d.]+)', row['setting']).groups()
        top1[row['method'], int(batch), float(rate)].append(float(row['top1']))
    assert len(top1) == 24 and all(len(values) == 4 for values in top1.values())
    rates = defaultdict(dict)
    for (method, batch, rate), values in top1.items():
        rates[method, batch][rate] = mean(values)
    return rates


@pytest.mark.parametrize('study', ['demo_fair', 'demo_fair_40', 'demo_converged'])
def test_the_comparison_uses_the_best_learning_rates_of_the_tuning(tuning, study):
    definition = yaml.safe_load((HOME / f'hparams/studies/{study}.yaml').read_text())
    for name, parts in definition['methods'].items():
        options = {key: value for part in [*definition['base'], *parts] if isinstance(part, dict)
                   for key, value in part.items()}
        if name == 'two views alone at 0.2':  # the rate of AgMax, on purpose
            assert options['lr'] == max(tuning['AgMax', 40], key=tuning['AgMax', 40].get)
            continue
        rates = tuning[name if (name, 20) in tuning else 'twice the epochs', options['batch_size']]
        assert options['lr'] == max(rates, key=rates.get), name


def test_the_page_contains_the_means_of_the_tuning(tuning):
    page = (HOME / 'docs/results.md').read_text()
    for (method, batch), rates in tuning.items():
        cells = [f'{rates[rate]:.1f}' for rate in (0.05, 0.1, 0.2)]
        best = max(range(3), key=[rates[rate] for rate in (0.05, 0.1, 0.2)].__getitem__)
        cells[best] = f'**{cells[best]}**'
        assert f"| {method} | {batch} | {' | '.join(cells)} |" in page


def columns_of(study, name=None, metric='top1'):
    """Return a metric of each method of a study by seed, in columns: each augmentation, then their mean."""
    definition = yaml.safe_load((HOME / f'hparams/studies/{study}.yaml').read_text())
    found = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(name or study):
        assert row.get('status', 'complete') == 'complete'
        found[row['method']][row['augmentation']][int(row['seed'])] = float(row[metric])
    assert list(found) == list(definition['methods'])
    for columns in found.values():
        assert list(columns) == list(definition['augmentations'])
        assert all(list(values) == definition['seeds'] for values in columns.values())
        columns['mean'] = {seed: mean(columns[name][seed] for name in definition['augmentations'])
                           for seed in definition['seeds']}
    return {method: list(columns.values()) for method, columns in found.items()}


@pytest.fixture(scope='module')
def fair():
    return columns_of('demo_fair')


def test_the_page_has_the_results_at_equal_cost(fair):
    page, overview = section('The same cost with and without AgMax'), section('AgMax at equal compute')
    card = ' '.join((HOME / 'docs/agmax.md').read_text().split())
    for method, columns in fair.items():
        assert f"| {method} | {' | '.join(map(spread, columns))} |" in page
    remembered = ' '.join((HOME / 'docs/remembered.md').read_text().split())
    for one, other in (('AgMax', 'twice the epochs'), ('AgMax', 'two views alone'),
                       ('two views alone', 'twice the epochs'), ('remembered predictions', 'twice the epochs'),
                       ('remembered predictions', 'two views alone'), ('remembered predictions', 'AgMax'),
                       ('remembered predictions', 'twice the epochs, float32'),
                       ('twice the epochs, float32', 'twice the epochs')):
        differences = [shown(paired_difference(*pair)) for pair in zip(fair[one], fair[other])]
        assert f"| {one} minus {other} | {' | '.join(differences)} |" in page
        if one == 'AgMax' or (one, other) == ('remembered predictions', 'twice the epochs'):
            assert f'**{one} minus {other}: {differences[-1]}.**' in page
        if one == 'AgMax':
            assert differences[-1] in card and differences[-1] in overview
        elif one == 'remembered predictions' and other != 'two views alone':
            assert differences[-1].lstrip('+') in remembered
    base, *others = (fair[name][-1] for name in ('twice the epochs', 'AgMax', 'remembered predictions'))
    row = f"| {spread(base)} | {' | '.join(shown(paired_difference(values, base)) for values in others)} |"
    assert row in (HOME / 'README.md').read_text()


def test_the_page_has_the_results_in_batches_of_40(fair):
    page, larger = section('Batches of 40, and equal epochs'), columns_of('demo_fair_40')
    for method, columns in larger.items():
        assert f"| {method} | {' | '.join(map(spread, columns))} |" in page
    pairs = {f'{one} minus {other}': (larger[one], larger[other]) for one, other in (
        ('AgMax', 'twice the epochs'), ('AgMax', 'two views alone'), ('two views alone', 'twice the epochs'),
        ('AgMax', 'two views alone at 0.2'), ('AgMax', 'baseline'), ('twice the epochs', 'baseline'))}
    pairs.update(
        (f'{one} in batches of 20 minus {other} in batches of 40', (fair[one], larger[other])) for one, other in (
            ('AgMax', 'twice the epochs'), ('two views alone', 'twice the epochs'), ('AgMax', 'AgMax'),
            ('twice the epochs', 'twice the epochs')))
    for name, pair in pairs.items():
        differences = [shown(paired_difference(*columns)) for columns in zip(*pair)]
        assert f"| {name} | {' | '.join(differences)} |" in page, name
        if name == 'AgMax minus baseline':
            assert differences[-1] in (HOME / 'docs/agmax.md').read_text()


def test_the_page_has_the_agreement_of_two_views():
    columns = columns_of('demo_fair_40', 'demo_fair_40_agreement', 'agreement')
    page, card = section('Do two augmented views get the same label?'), (HOME / 'docs/agmax.md').read_text()
    for method, values in columns.items():
        assert f"| {method} | {' | '.join(map(spread, values))} |" in page
    for one, other in (('AgMax', 'twice the epochs'), ('AgMax', 'two views alone'),
                       ('AgMax', 'two views alone at 0.2'), ('two views alone', 'twice the epochs'),
                       ('AgMax', 'baseline')):
        differences = [paired_difference(*pair) for pair in zip(columns[one], columns[other])]
        assert f"| {one} minus {other} | {' | '.join(map(shown, differences))} |" in page
        if one == 'AgMax' and other in ('twice the epochs', 'two views alone at 0.2'):
            assert shown(differences[-1], digits=1).lstrip('+') in ' '.join(card.split())


def test_the_page_has_the_gain_of_another_doubling_of_the_epochs(fair):
    text = ' '.join(section('The same cost with and without AgMax').split('**Longer schedules.**')[1].split())
    for column, name in enumerate(('standard', 'cutmix')):
        longer = {int(row['seed']): float(row['top1']) for row in rows_of('demo_converged')
                  if row['augmentation'] == name}
        assert list(longer) == [0, 1]
        before = fair['twice the epochs, float32']
        gains = [longer[seed] - before[column][seed] for seed in longer]
        for value in (mean(longer.values()), mean(before[column][seed] for seed in longer)):
            assert f'{value:.1f}' in text
        for value in (mean(gains), *gains):
            assert f'{value:+.2f}' in text


def test_the_first_table_repeats_the_numbers_of_the_sections():
    page = (HOME / 'docs/results.md').read_text()
    anchors = {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-'): title
               for title in re.findall(r'^#+ (.*)', page, flags=re.M)}
    rows, source = section('AgMax at equal compute').split('|---|')[-1].splitlines()[1:], None
    for row in (row for row in rows if row.startswith('|')):
        setting, *_, minus_twice, minus_views, _ = row.split('|')[1:]
        source = anchors[re.findall(r'\(#([^)]*)\)', setting)[0]] if '(#' in setting else source
        if '40 epochs' not in source:  # these differences follow from the means there
            for number in re.findall(r'[+-]\d+\.\d+', minus_twice + minus_views):
                assert number in section(source), (source, number)


@pytest.mark.parametrize('metric, name', [
    ('balanced_top1', 'mean over classes'), ('prior_top1', 'at training frequencies'),
    ('largest_top1', 'three largest classes'), ('smallest_top1', 'three smallest classes')])
@pytest.mark.parametrize('sizes', ['100 to 10', '100 to 3'])
def test_the_page_has_the_numbers_of_the_class_prior(sizes, metric, name):
    top1 = defaultdict(dict)
    for row in rows_of('class_prior_pilot'):
        if row['sizes'] == sizes:
            top1[row['method']][int(row['seed'])] = float(row[metric])
    twice, views, agmax, prior = (top1[method] for method in (
        'twice the epochs', 'two views alone', 'AgMax', 'AgMax, class prior'))
    assert all(sorted(values) == list(range(8)) for values in (twice, views, agmax, prior))
    accuracy = map(spread, (twice, views, agmax, prior))
    pairs = (prior, agmax), (agmax, twice), (agmax, views), (prior, views)
    differences = [shown(paired_difference(*pair)) for pair in pairs]
    for cells in (accuracy, differences):
        assert f"| {sizes} | {name} | {' | '.join(cells)} |" in section('Classes of unequal size')


@pytest.mark.parametrize('data, arms', [('demo', 7), ('cifar10_2k', 3)])
def test_the_page_has_the_results_of_cheaper_forms_of_agreement(data, arms):
    top1, loss = defaultdict(dict), defaultdict(dict)
    for row in rows_of('agreement_pilots'):
        if (row['data'], row['split']) == (data, 'val'):
            top1[row['arm']][int(row['seed'])] = float(row['top1'])
            loss[row['arm']][int(row['seed'])] = float(row['loss'])
    assert len(top1) == arms and all(sorted(values) == list(range(8)) for values in top1.values())
    plain = sorted((arm for arm in top1 if arm.startswith('plain')), reverse=True)  # batch 25, then batch 12
    for arm, values in top1.items():
        form, batch, rate = re.match(r'(\w+) batch=(\d+) rate=([\d.]+)', arm).groups()
        cells = [f'{form} | batch {batch}, rate {rate}', spread(values)]
        cells += [shown(paired_difference(values, top1[base])) for base in plain if base != arm]
        if arm != plain[0]:
            cells.append(shown(paired_difference(loss[arm], loss[plain[0]]), digits=3))
        row = r'\| ' + r'.*\| '.join(map(re.escape, cells)) + r' \|'
        assert re.search(row, section('Cheaper forms of agreement')), cells


@pytest.mark.parametrize('name, form, title', [
    ('tokens_pilot', 'tokens', 'Cheaper forms of agreement'),
    ('small_batches_pilot', 'agmax', 'Batches of 10, a rate for each method')])
def test_the_page_compares_a_form_with_plain_each_at_its_best_rate(name, form, title):
    tuning, top1, loss = defaultdict(list), defaultdict(dict), defaultdict(dict)
    for row in rows_of(name):
        if row['split'] == 'tune':
            tuning[row['arm']].append(float(row['top1']))
        else:
            for values, column in ((top1, 'top1'), (loss, 'loss')):
                values[row['arm']][int(row['seed'])] = float(row[column])
    plain, other = (max((arm for arm in tuning if arm.startswith(start)), key=lambda arm: mean(tuning[arm]))
                    for start in ('plain', form))
    assert set(top1) == {plain, other} and all(sorted(values) == list(range(8)) for values in top1.values())
    cells = (spread(top1[other]), shown(paired_difference(top1[other], top1[plain])),
             shown(paired_difference(loss[other], loss[plain]), digits=3))
    page = section(title)
    assert f"| {' | '.join(cells)} |" in page and f'| {spread(top1[plain])} | | |' in page


def test_the_page_has_the_rates_of_batches_of_10():
    top1 = defaultdict(list)
    for row in rows_of('small_batches_pilot'):
        if row['split'] == 'tune':
            top1[row['arm']].append(float(row['top1']))
    page, rates = section('Batches of 10, a rate for each method'), ('0.02', '0.05', '0.1')
    for form, name in (('plain', 'one view'), ('agmax', 'AgMax')):
        means = [mean(top1[f'{form} batch=10 rate={rate}']) for rate in rates]
        cells = [f'**{value:.1f}**' if value == max(means) else f'{value:.1f}' for value in means]
        assert f"| {name} | {' | '.join(cells)} |" in page
    arms = ('late batch=10 rate=0.05 start=0.5', 'late batch=10 rate=0.05 start=0.75', 'plain batch=10 rate=0.05',
            'late batch=25 rate=0.1 start=0.5')
    text = section('Cheaper forms of agreement').split('*late* is')[1]
    assert re.findall(r'\b8\d\.\d', text)[:4] == [f'{mean(top1[arm]):.1f}' for arm in arms]


def test_the_page_has_the_results_of_remembered_predictions_in_the_package():
    top1 = defaultdict(lambda: defaultdict(dict))
    for row in rows_of('memory_pocket'):
        assert row['status'] == 'complete'
        top1[row['method']][row['augmentation']][int(row['seed'])] = float(row['top1'])
    page, readme = section('In the package, also with CutMix'), (HOME / 'README.md').read_text()
    remembered = ' '.join((HOME / 'docs/remembered.md').read_text().split())
    assert set(top1) == {'baseline', 'memory', 'label smoothing', 'AgMax'}
    for columns in top1.values():
        assert list(columns) == ['standard', 'cutmix'] and all(sorted(v) == [*range(8)] for v in columns.values())
        columns['mean'] = {seed: mean(columns[name][seed] for name in ('standard', 'cutmix')) for seed in range(8)}
    for method, columns in top1.items():
        assert re.search(fr"\| {method}[ 0.1]* \| {re.escape(' | '.join(map(spread, columns.values())))} \|", page)

    def minus(first, second):
        return [shown(paired_difference(top1[first][name], top1[second][name])) for name in top1[first]]

    for pair in (('memory', 'baseline'), ('memory', 'label smoothing'), ('label smoothing', 'baseline'),
                 ('memory', 'AgMax'), ('AgMax', 'baseline')):
        assert f"| {' minus '.join(pair)} | {' | '.join(minus(*pair))} |" in page
    differences = minus('memory', 'baseline')
    assert f'**memory minus baseline: {differences[-1]}.**' in page
    assert all(difference in remembered for difference in differences + minus('memory', 'label smoothing'))
    assert minus('memory', 'AgMax')[-1] in remembered
    assert differences[-1] in readme and minus('AgMax', 'baseline')[-1] in readme


@pytest.mark.parametrize('data, name', [('demo', 'demo: 1,000'), ('cifar10_2k', 'CIFAR-10')])
def test_the_readme_compares_the_combinations_that_were_chosen_on_other_images(data, name):
    top1 = {'tune': defaultdict(dict), 'val': defaultdict(dict)}
    for row in rows_of('agreement_pilots'):
        if row['data'] == data:
            top1[row['split']][row['arm']][int(row['seed'])] = float(row['top1'])

    def chosen(form):
        arms = [arm for arm in top1['tune'] if arm.startswith(form)]
        return top1['val'][max(arms, key=lambda arm: mean(top1['tune'][arm].values()))]

    baseline = chosen('plain')
    cells = [spread(baseline), *(shown(paired_difference(chosen(form), baseline)) for form in ('agmax', 'memory'))]
    row, = re.findall(fr'^\| {name}.*', (HOME / 'README.md').read_text(), flags=re.M)
    assert row.endswith(f"| {' | '.join(cells)} |")


def test_the_readme_has_the_tuning_of_small_batches_on_cifar10():
    top1 = defaultdict(list)
    for row in rows_of('agreement_pilots'):
        if (row['data'], row['split']) == ('cifar10_2k', 'tune'):
            top1[row['arm'].split(' ramp')[0]].append(float(row['top1']))
    pairs = [[f"{mean(top1[f'{form} batch={batch}{weight}']):.1f}" for batch in ('12 rate=0.05', '25 rate=0.1')]
             for form, weight in (('plain', ''), ('memory', ' weight=1'))]
    readme, page = (' '.join(text.split()) for text in (
        (HOME / 'README.md').read_text(), section('Cheaper forms of agreement')))
    (baseline, chosen), (memory, chosen_memory) = pairs
    assert f'({baseline} against {chosen} for the baseline, {memory} against {chosen_memory} for remembered' in readme
    assert f'*plain* has {baseline} with them and {chosen} with the chosen combination, *memory* {memory} and ' \
        f'{chosen_memory}.' in page
    assert f"has {mean(top1['plain batch=12 rate=0.1']):.1f}." in page


def test_the_page_has_the_results_of_fine_tuning():
    top1 = defaultdict(dict)
    for row in rows_of('finetune_pocket'):
        top1[row['method']][int(row['seed'])] = float(row['top1'])
    page = section('Fine-tuning on 100 images')
    for method, values in top1.items():
        assert sorted(values) == list(range(5)) and f'| {spread(values)} |' in page
        if method != 'fine-tuning':
            assert f"| {shown(paired_difference(values, top1['fine-tuning']), digits=1)} |" in page, method
    assert shown(paired_difference(top1['AgMax'], top1['twice the epochs']), digits=1) in page


def seeds_of(study):
    """Return the top-1 of each method of a study by seed: the mean over its augmentations."""
    top1 = defaultdict(lambda: defaultdict(list))
    for row in rows_of(study):
        assert row['status'] == 'complete'
        top1[row['method']][int(row['seed'])].append(float(row['top1']))
    definition = yaml.safe_load((HOME / f'hparams/studies/{study}.yaml').read_text())
    augmentations = len(definition.get('augmentations', ['one']))
    assert all(len(values) == augmentations for seeds in top1.values() for values in seeds.values())
    assert all(sorted(seeds) == definition['seeds'] for seeds in top1.values())
    return definition, {method: {seed: mean(v) for seed, v in top1[method].items()} for method in definition['methods']}


@pytest.mark.parametrize('study, title', STUDIES.items())
def test_the_page_has_the_results_of_a_study(study, title):
    definition, top1 = seeds_of(study)
    page, baseline = section(title), definition['baseline']
    for method, values in top1.items():
        cells = [method, spread(values)]
        if method != baseline:
            cells.append(shown(paired_difference(values, top1[baseline])))
        assert f"| {' | '.join(cells)} |" in page
    for method, other in definition.get('comparisons', ()):
        assert shown(paired_difference(top1[method], top1[other])) in page, (method, other)
