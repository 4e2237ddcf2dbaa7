"""Weights & Biases gets the values of summary.csv and of the log."""
import csv
import sys
from types import ModuleType

import pytest

from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.output import trackers

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--epochs', '1']


def run(tmp_path, *argv):
    training.train(parse_train_args([*argv, '--output', str(tmp_path), '--experiment', 'run']))
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


@pytest.fixture
def wandb(monkeypatch):
    """A replacement for the package, which records its calls."""
    module = ModuleType('wandb')
    module.told = []

    class Error(Exception):
        pass

    class Run:
        def define_metric(self, name, step_metric):
            module.axes[name] = step_metric

        def log(self, row):
            module.told.append(row)

        def finish(self):
            module.told.append('finished')

    module.Error, module.axes = Error, {}
    module.init = lambda **kwargs: module.told.append(kwargs) or Run()
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module


def test_weights_and_biases_gets_the_summary_and_losses_at_log_intervals(tmp_path, photos, wandb):
    rows = run(tmp_path, str(photos), *SMALL, '--epochs', '2', '--agmax', '--log-wandb', '--wandb-project', 'bees',
               '--wandb-tags', 'a', 'b', '--log-interval', '2')
    start, *told, end = wandb.told
    assert (start['project'], start['tags'], start['name'], start['id']) == ('bees', ['a', 'b'], 'run', None)
    assert start['config']['agmax'] is True and end == 'finished'
    assert wandb.axes == {'*': 'epoch', 'update_*': 'update'}
    of_rows = [values for values in told if 'epoch' in values]
    assert [{name: str(value) for name, value in row.items()} for row in of_rows] == rows
    of_updates = [values for values in told if 'epoch' not in values]
    assert all(set(values) == {'update', 'update_loss', 'update_ce', 'update_agreement', 'update_divergence'}
               for values in of_updates)
    assert [values['update'] for values in of_updates] == [0, 2, 3, 5], 'updates 0 and 2 of each epoch of 3'


@pytest.mark.parametrize('variable, name', [('', 'seed-0'), ('AgMax, seed 0', 'AgMax, seed 0')])
def test_the_name_is_that_of_the_folder_unless_the_variable_of_wandb_has_one(wandb, monkeypatch, variable, name):
    monkeypatch.setenv('WANDB_NAME', variable)
    trackers.Trackers(parse_train_args(['data', '--log-wandb']), 'output/seed-0', 1, 0, [], False)
    assert wandb.told[0]['name'] == name


def test_a_failed_login_to_weights_and_biases_is_one_line(tmp_path, photos, wandb):
    def refuse(**kwargs):
        raise wandb.Error('api_key not configured\n(no-tty)')
    wandb.init = refuse
    with pytest.raises(OptionError, match=r'^--log-wandb: api_key not configured \(no-tty\): try wandb login'):
        run(tmp_path, str(photos), *SMALL, '--epochs', '1', '--log-wandb')


def test_missing_weights_and_biases_is_reported_before_anything_is_built(tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(OptionError, match='pip install wandb'):
        run(tmp_path, str(photos), *SMALL, '--log-wandb', '--model', 'no_such_model')
