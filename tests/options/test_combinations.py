"""The table of docs/timm.md, row by row: a feature that works with --agmax runs, others are refused by name."""
import csv
import math
import re

import pytest
import torch
from timm.models import create_model, save_for_hf

from agmax_timm.options import parsers
from agmax_timm.options.combinations import NOT_WITH, NOT_WITH_AGMAX, check_combinations
from agmax_timm.options.declare import declared
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.without_effect import flag_with_values
from agmax_timm.training import run as training
from tests.helpers.paths import REPOSITORY

TABLE = REPOSITORY / 'docs' / 'timm.md'
ROWS = re.findall(r'^\| ([^|]+?) \| `([^`]+)` \| (works|refused)', TABLE.read_text(), flags=re.MULTILINE)
SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-vb', '6', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.001', '--epochs', '1', '--agmax', '--train-interpolation', 'bilinear']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    save_for_hf(create_model('test_resnet', num_classes=3), str(folder))
    return f'local-dir:{folder}'


@pytest.mark.parametrize('feature, flags', [row[:2] for row in ROWS if row[2] == 'works'], ids=lambda text: text[:30])
def test_features_that_work_train(photos, tmp_path, teacher, feature, flags):
    argv = [teacher if flag == 'TEACHER' else flag for flag in flags.split()]
    results = training.train(parse_train_args(
        [str(photos), *SMALL, *argv, '--output', str(tmp_path), '--experiment', 'run']))
    parts = results[-1]['train']
    assert all(math.isfinite(value) for value in parts.values())
    assert -math.log(3) - 1e-3 <= parts['agreement'] < 0. < parts['divergence'], 'the marginals of 3 classes'
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)
    assert set(checkpoint['task_state']) == {'qnet'}
    args = parsers.saved_train_options(checkpoint['args'])
    model = create_model(args.model, num_classes=3, in_chans=args.in_chans or 3, **args.model_kwargs)
    model.load_state_dict(checkpoint['state_dict'])
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        assert len(list(csv.DictReader(f))) == 1


@pytest.mark.parametrize('feature, flags', [row[:2] for row in ROWS if row[2] == 'refused'], ids=lambda text: text[:30])
def test_features_that_are_refused_are_named(capsys, feature, flags):
    with pytest.raises(SystemExit) as exit_info:
        parse_train_args(['DIR', *SMALL, *flags.split()])
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and message.count('\n') == 1
    assert '--agmax' in message and any(flag in message for flag in flags.split() if flag.startswith('--')), message


def test_the_table_contains_all_refused_features():
    documented = ' '.join(flags for _, flags, state in ROWS if state == 'refused')
    assert all(flag_with_values(condition) in documented for condition, *_ in NOT_WITH_AGMAX)
    assert len([row for row in ROWS if row[2] == 'refused']) == len(NOT_WITH_AGMAX)


def switched_on(conditions):
    """Return options under which conditions hold, with what they need."""
    options = {}
    for condition in conditions:
        name, *values = condition.split()
        declaration = declared(parsers.TrainOptions)[name]
        options |= switched_on(declaration.needs) | {name: values[0] if values else declaration.default or True}
    return options


@pytest.mark.parametrize('condition, other', [(one, other) for one, others in NOT_WITH.items() for other in others])
def test_each_pair_is_refused_with_both_flags(condition, other):
    options = parsers.TrainOptions(**switched_on([condition, other]))
    first = next(iter(check_combinations(options)))
    assert flag_with_values(condition) in first and flag_with_values(other) in first
    for alone in (condition, other):
        lines = [line for line in check_combinations(parsers.TrainOptions(**switched_on([alone])))
                 if 'cannot be combined' in line]
        assert not lines
