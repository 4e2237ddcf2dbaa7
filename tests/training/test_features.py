"""The effects of single flags in a run, in addition to the numbers of tests/training/test_timm_equality.py."""
import csv
import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from types import ModuleType

import datasets
import pytest
import torch
from PIL import Image
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    JsdCrossEntropy,
    PolyCrossEntropy,
)
from timm.models import create_model
from timm.task import MultiLabelClassificationEvaluator

from agmax_timm.assembly.model import Precision, import_device_modules
from agmax_timm.assembly.objective import build_criterion, build_task
from agmax_timm.assembly.optimizer import build_optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.evaluation.evaluate import evaluate
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--epochs', '1']
CPU = torch.device('cpu')


def run(tmp_path, *argv):
    training.train(parse_train_args([*argv, '--output', str(tmp_path), '--experiment', 'run']))
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """A Hugging Face data set of images with any number of three labels."""
    root = tmp_path_factory.mktemp('labelled')
    for split, count in (('train', 8), ('validation', 5)):
        rows = [[j for j in range(3) if i >> j & 1] for i in range(count)]
        datasets.Dataset.from_dict({
            'image': [Image.new('RGB', (36, 32), tuple(200 * (j in row) for j in range(3))) for row in rows],
            'labels': rows,
            'dense': [[int(j in row) for j in range(3)] for row in rows],
        }, features=datasets.Features({
            'image': datasets.Image(), 'labels': datasets.Sequence(datasets.Value('int64')),
            'dense': datasets.Sequence(datasets.Value('int64'))})).to_parquet(str(root / f'{split}.parquet'))
    return f'hfds/{root}'


@pytest.mark.parametrize('labels', [['labels'], ['dense', '--target-format', 'multihot']], ids=['indices', 'multihot'])
def test_several_labels_per_image_are_trained_and_evaluated(tmp_path, labelled, labels):
    row, = run(tmp_path, *SMALL, '--task', 'multilabel', '--dataset', labelled, '--target-key', *labels,
               '--mixup', '0.2', '--model-ema')
    assert 'eval_top1' not in row
    assert all(0. <= float(row[f'eval_{name}']) <= 100. for name in ('map', 'micro_f1', 'macro_f1', 'sample_f1'))
    checkpoint = torch.load(tmp_path / 'run' / 'model_best.pth.tar', weights_only=True)
    assert checkpoint['metric'] == float(row['eval_map']), 'ranked by mAP where nothing else is asked for'
    assert checkpoint['args']['smoothing'] == 0.


def test_labels_count_from_the_threshold():
    model = torch.nn.Identity()
    loader = [(torch.tensor([[0., 2.], [-2., 0.5]]), torch.tensor([[1., 1.], [0., 1.]]))]
    args = Namespace(no_prefetcher=False, channels_last=False)
    for threshold, f1 in ((0.5, 100.), (0.7, 50.)):  # the probabilities are 0.5, 0.88, 0.12 and 0.62
        evaluator = MultiLabelClassificationEvaluator(CPU, threshold=threshold)
        metrics = evaluate(model, loader, args, CPU, Precision(), 1, evaluator=evaluator)
        assert math.isclose(metrics['micro_f1'], f1)


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


def test_device_modules_are_imported(tmp_path, monkeypatch):
    (tmp_path / 'torch_toaster.py').write_text('import sys\nsys.toaster = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    import_device_modules(Namespace(device_modules=['torch_toaster']))
    assert sys.toaster
    with pytest.raises(OptionError, match="--device-modules 'torch_kettle"):
        import_device_modules(Namespace(device_modules=['torch_kettle']))


def criterion(*argv):
    args = parse_train_args(['DIR', '--num-classes', '3', *argv])
    return build_criterion(args)


def test_losses_equal_those_of_timm(tmp_path):
    stats = tmp_path / 'stats.json'
    stats.write_text(json.dumps(dict(pos_counts=[2, 4, 8], num_samples=16)))
    several = ['--task', 'multilabel', '--dataset', 'hfds/x']
    logits, dense = torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5, 3)).double()
    for argv, expected in (
            (['--bce-loss', '--bce-pos-weight', '2'], BinaryCrossEntropy(0., smooth_dense=True, pos_weight=2.)),
            (['--loss-pos-weight', 'neg_pos', '--class-stats', str(stats)],
             BinaryCrossEntropy(0., pos_weight=torch.tensor([7., 3., 1.]))),
            (['--loss', 'asl', '--asl-gamma-neg', '2', '--asl-clip', '0'],
             AsymmetricLossMultiLabel(gamma_neg=2., gamma_pos=1., clip=0., reduction='batchmean')),
            (['--loss', 'db', '--class-stats', str(stats), '--db-focal-gamma', '1'],
             DistributionBalancedLoss(torch.tensor([2., 4., 8.]), 16, focal_gamma=1.)),
    ):
        torch.testing.assert_close(criterion(*several, *argv)(logits, dense), expected(logits, dense))
    target = torch.randint(3, (6,))
    logits = torch.randn(6, 3)
    torch.testing.assert_close(
        criterion('--loss', 'poly', '--poly-epsilon', '-1')(logits, target),
        PolyCrossEntropy(epsilon=-1., smoothing=0.1)(logits, target))
    torch.testing.assert_close(
        criterion('--jsd-loss', '--aug-splits', '3')(logits, target),
        JsdCrossEntropy(num_splits=3, smoothing=0.1)(logits, target))


@pytest.mark.parametrize('argv, words', [
    ('--bce-sum', ['--loss ce', 'bce']),
    ('--loss-class-weight 1,2', ['--loss-class-weight', '2 entries', '3 classes']),
    ('--loss-class-weight nowhere.json', ['nowhere.json']),
    ('--loss bce --loss-pos-weight neg_pos', ["--loss-pos-weight 'neg_pos'", '--class-stats auto']),
])
def test_invalid_options_of_losses_are_refused_in_one_line(argv, words):
    with pytest.raises(OptionError) as error_info:
        criterion(*argv.split())
    message = str(error_info.value)
    assert '\n' not in message and all(word in message for word in words), message


@pytest.mark.parametrize('argv, words', [
    (['--aug-repeats', '3'], ['--aug-repeats 3', 'torchrun']),
    (['--naflex-loader'], ['--naflex-loader', 'ResNet']),
    (['--model-kwargs', 'depht=3'], ['test_resnet', '--model-kwargs', 'depht']),
    (['--opt', 'nosuch'], ['--opt nosuch']),
    (['--aa', 'nosuch'], ['--aa nosuch']),
    (['--gp', 'nosuch'], ['test_resnet', '--gp', 'nosuch']),
    (['--kd-model-name', 'resnet1001'], ['--kd-model-name', 'resnet1001']),
    (['--kd-model-name', 'local-dir:/nowhere'], ['--kd-model-name', '/nowhere']),
])
def test_runs_that_cannot_be_built_are_refused_in_one_line(tmp_path, photos, argv, words):
    with pytest.raises(OptionError) as error_info:
        run(tmp_path, str(photos), *SMALL, *argv)
    message = str(error_info.value)
    assert '\n' not in message and all(word in message for word in words), message
    assert not (tmp_path / 'run').exists()


def test_a_learning_rate_of_0_is_used(tmp_path, photos):
    row, = run(tmp_path, str(photos), *SMALL, '--lr', '0', '--sched', 'none')
    assert float(row['lr']) == 0.


def test_fallback_list_of_muon_uses_the_names_of_the_model():
    """Muon leaves weights of `fallback_list` to AdamW: the same ones with and without AgMax."""
    def fallbacks(*argv):
        args = parse_train_args(['DIR', '--num-classes', '3', '--opt', 'muon', '--opt-kwargs',
                                 "fallback_list=['fc.*', 'conv1*']", *argv])
        args = replace(args, lr=0.1)
        task = build_task(args, create_model('test_resnet', num_classes=3), CPU, Precision())
        optimizer = build_optimizer(args, task)
        names = {parameter: name for name, parameter in task.get_trainable_module().named_parameters()}
        return {names[parameter].removeprefix('model.') for group in optimizer.param_groups
                if group.get('use_fallback') for parameter in group['params'] if parameter.ndim > 1}
    plain = fallbacks()
    assert 'fc.weight' in plain and fallbacks('--agmax') == plain
