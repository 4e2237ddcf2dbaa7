"""The effects of single flags in a run, in addition to the numbers of tests/training/test_timm_equality.py."""
import csv
import math
import sys
from argparse import Namespace
from dataclasses import replace

import datasets
import pytest
import torch
from PIL import Image
from timm.models import create_model
from timm.models._hub import save_for_hf
from timm.task import MultiLabelClassificationEvaluator

from agmax_timm.assembly.model import Precision, import_device_modules
from agmax_timm.assembly.objective import build_task
from agmax_timm.assembly.optimizer import build_optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.evaluation.evaluate import evaluate
from agmax_timm.evaluation.evaluated_model import prepare
from agmax_timm.options.parse import parse_train_args, parse_validate_args
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


def test_several_labels_per_image_are_trained_and_evaluated_in_both_formats(tmp_path, labelled):
    rows = []
    for labels in (['labels'], ['dense', '--target-format', 'multihot']):
        folder = tmp_path / labels[0]
        rows += run(folder, *SMALL, '--task', 'multilabel', '--dataset', labelled, '--target-key', *labels,
                    '--mixup', '0.2', '--model-ema')
        checkpoint = torch.load(folder / 'run' / 'model_best.pth.tar', weights_only=True)
        assert checkpoint['metric'] == float(rows[-1]['eval_map']), 'ranked by mAP by default'
        assert checkpoint['args']['smoothing'] == 0.
        for flags in (['--metrics-avg', 'macro'], ['--calibration']):  # the task is that of the checkpoint
            words = ['--dataset', labelled, '--checkpoint', str(folder / 'run' / 'model_best.pth.tar'), *flags]
            with pytest.raises(OptionError, match=f'{flags[0]} is for one class per image'):
                prepare(parse_validate_args(words), CPU)
    assert rows[0] == rows[1] and 'eval_top1' not in rows[0] and float(rows[0]['train_loss']) > 0
    assert all(0. <= float(rows[0][f'eval_{name}']) <= 100. for name in ('map', 'micro_f1', 'macro_f1', 'sample_f1'))


def test_labels_count_from_the_threshold():
    model = torch.nn.Identity()
    loader = [(torch.tensor([[0., 2.], [-2., 0.5]]), torch.tensor([[1., 1.], [0., 1.]]))]
    args = Namespace(no_prefetcher=False, channels_last=False)
    for threshold, f1 in ((0.5, 100.), (0.7, 50.)):  # the probabilities are 0.5, 0.88, 0.12 and 0.62
        evaluator = MultiLabelClassificationEvaluator(CPU, threshold=threshold)
        metrics = evaluate(model, loader, args, CPU, Precision(), 1, evaluator=evaluator)
        assert math.isclose(metrics['micro_f1'], f1)


def test_device_modules_are_imported(tmp_path, monkeypatch):
    (tmp_path / 'torch_toaster.py').write_text('import sys\nsys.toaster = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    import_device_modules(Namespace(device_modules=['torch_toaster']))
    assert sys.toaster
    with pytest.raises(OptionError, match="--device-modules 'torch_kettle"):
        import_device_modules(Namespace(device_modules=['torch_kettle']))


@pytest.mark.parametrize('argv, words', [
    (['--aug-repeats', '3'], ['--aug-repeats 3', 'torchrun']),
    (['--naflex-loader'], ['--naflex-loader', 'ResNet']),
    (['--model-kwargs', 'depht=3'], ['test_resnet', '--model-kwargs', 'depht']),
    (['--opt', 'nosuch'], ["--opt 'nosuch"]),
    (['--aa', 'nosuch'], ["--aa 'nosuch"]),
    (['--aa', 'cifar-mstd0.5'], ['did you mean cifar10?']),
    (['--aa', 'randaug-m9'], ["--aa 'randaug-m9'", 'did you mean rand?']),
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


@pytest.mark.parametrize('flags', [[], ['--agmax'], ['--kd-distill-type', 'feature'], ['--dry-run']])
def test_a_teacher_of_another_input_size_is_refused(tmp_path, photos, flags):
    fixed = dict(dynamic_img_size=False)  # takes images of 160 pixels
    save_for_hf(create_model('test_vit', num_classes=3, **fixed), str(tmp_path / 'teacher'), model_args=fixed)
    name = f"local-dir:{tmp_path / 'teacher'}"
    with pytest.raises(OptionError) as error:
        run(tmp_path, str(photos), *SMALL, '--kd-model-name', name, *flags)
    message = str(error.value)
    assert message.startswith(f"--kd-model-name '{name}' does not take images of 3 x 32 x 32, as set by "
                              '--img-size (or use another teacher): ') and '\n' not in message
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('config, reason', [
    ('{}', "its configuration has no 'architecture'"), ('{"architecture": "nosuch"}', 'nosuch'), ('[]', 'an integer'),
    ('{"architecture": "test_resnet", "pretrained_cfg": {}, "model_args": {"depht": 3}}', 'depht'),
])
@pytest.mark.parametrize('flag', ['--model', '--kd-model-name'])
def test_a_folder_that_is_not_of_timm_is_refused(tmp_path, photos, flag, config, reason):
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(OptionError) as error:
        run(tmp_path, str(photos), *SMALL, flag, f'local-dir:{tmp_path}')
    message = str(error.value)
    assert message.startswith(f"{flag} 'local-dir:{tmp_path}'") and reason in message and '\n' not in message
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
