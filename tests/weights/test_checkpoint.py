"""What a checkpoint states about its weights, and what is read from ours, from timm's, and from hostile files."""
import json
import os
import pickle
import platform
import zipfile
from argparse import Namespace
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import timm.utils
import torch
from timm.task import ClassificationTask, resume_task_checkpoint

import agmax_timm
from agmax_timm.base.errors import CheckpointError
from agmax_timm.commands import train as train_cli
from agmax_timm.evaluation.prediction import Predictor, options_of
from agmax_timm.options.parsers import saved_train_options
from agmax_timm.training.checkpoints.saver import CheckpointSaver
from agmax_timm.weights.checkpoint import choose_ema, describe_weights, load_weights, saved_options
from agmax_timm.weights.find import position_of
from agmax_timm.weights.metadata import make_metadata
from agmax_timm.weights.resume import resume
from agmax_timm.weights.saved_model import read_model
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.run_files import load, summary

INPUT = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@torch.no_grad()
def logits(model, input=INPUT):
    return model.eval()(input)


def save_timm(path, classifier, **args):
    """Save a checkpoint like timm's train.py."""
    folder = os.path.dirname(path)
    saver = timm.utils.CheckpointSaver(
        classifier, torch.optim.SGD(classifier.parameters(), lr=0.1), args=Namespace(**args),
        checkpoint_dir=folder, recovery_dir=folder, task=ClassificationTask(classifier, torch.nn.CrossEntropyLoss()))
    saver.save_checkpoint(4, metric=50.)
    os.replace(os.path.join(folder, 'last.pth.tar'), path)


# Written

def test_a_checkpoint_contains_the_settings_of_its_weights(ema_run, photos):
    record = load(ema_run / 'last.pth.tar')['agmax_timm']
    row = {name: float(value) for name, value in summary(ema_run)[-1].items()}
    assert record == {
        'architecture': 'test_resnet',
        'model_args': {'num_classes': 3, 'in_chans': 3, 'global_pool': 'avg'},
        'class_names': ['ant', 'bee', 'cat'],
        'data_config': {'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.5,) * 3, 'std': (0.5,) * 3,
                        'crop_pct': 0.95, 'crop_mode': 'center'},
        'base': {},
        'metric_name': 'top1',
        'versions': {'agmax_timm': agmax_timm.__version__, 'timm': timm.__version__, 'torch': str(torch.__version__),
                     'python': platform.python_version()},
        'metrics': {weights: {name: row[f'{weights}_{name}'] for name in ('loss', 'top1', 'top5')}
                    for weights in ('raw', 'ema')},
    }
    assert row['raw_loss'] != row['ema_loss']
    assert load(ema_run / 'last.pth.tar')['args']['lr'] == 0.05


def test_every_checkpoint_has_the_metrics_of_its_own_epoch(ema_run):
    for row in summary(ema_run):
        metrics = load(ema_run / f"checkpoint-{row['epoch']}.pth.tar")['agmax_timm']['metrics']
        assert metrics['ema']['loss'] == float(row['ema_loss'])


def test_a_recovery_file_has_no_metrics_of_the_previous_epoch(tmp_path):
    model = timm.create_model('test_resnet', num_classes=3)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    saver = CheckpointSaver(
        str(tmp_path), task, torch.optim.SGD(model.parameters(), lr=0.1), saved_train_options({'model': 'test_resnet'}),
        make_metadata(model, 'test_resnet', {}))
    saver.save_checkpoint(0, 50., raw={'top1': 50.}, ema=None)
    saver.save_recovery(1, 7)
    saver.close()
    assert load(tmp_path / 'last.pth.tar')['agmax_timm']['metrics'] == {'raw': {'top1': 50.}}
    assert load(tmp_path / 'recovery-1-7.pth.tar')['agmax_timm']['metrics'] == {}


def test_outputs_beyond_the_classes_are_named_by_their_index():
    model = timm.create_model('test_resnet', num_classes=5)
    assert make_metadata(model, 'test_resnet', {}, ['ant', 'bee'])['class_names'] == ['ant', 'bee', '2', '3', '4']
    assert make_metadata(model, 'test_resnet', {})['class_names'] is None


def test_class_names_are_in_the_order_of_the_class_map(train_once, tmp_path_factory):
    class_map = tmp_path_factory.mktemp('map') / 'classes.txt'
    class_map.write_text('cat\nant\nbee\n')
    folder = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '1', '--class-map', str(class_map))
    assert read_model(str(folder)).class_names == ['cat', 'ant', 'bee']


PLAIN = """
import argparse, json, sys, timm, torch
def plain(value):
    if isinstance(value, dict):
        return all(type(name) is str and plain(part) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)
with torch.serialization.safe_globals([argparse.Namespace]):
    checkpoint = torch.load(sys.argv[1], weights_only=True)
assert plain(checkpoint['agmax_timm']) and plain(checkpoint['args'])
model = timm.create_model('test_resnet', num_classes=3, checkpoint_path=sys.argv[1]).eval()
with torch.no_grad():
    print(json.dumps([checkpoint['agmax_timm'], model(torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)).tolist()]))
"""


def test_plain_timm_and_torch_load_a_checkpoint(ema_run, tmp_path):
    record, found = json.loads(run_in_plain_timm(PLAIN, ema_run / 'last.pth.tar', cwd=tmp_path))
    checkpoint = load(ema_run / 'last.pth.tar')
    assert record == json.loads(json.dumps(checkpoint['agmax_timm']))
    model = timm.create_model('test_resnet', num_classes=3)
    model.load_state_dict(checkpoint['state_dict_ema'])  # what timm prefers where there are both
    assert found == logits(model).tolist()


# Read

def test_the_best_epoch_is_not_the_last(ema_run):
    assert load(ema_run / 'model_best.pth.tar')['epoch'] < 3


@pytest.mark.parametrize('which, epoch', [('last', -1), ('best', None)])
@pytest.mark.parametrize('use_ema', [False, True])
def test_read_model_reads_weights_and_metrics_of_a_run(ema_run, which, epoch, use_ema):
    name = {'last': 'last.pth.tar', 'best': 'model_best.pth.tar'}[which]
    checkpoint = load(ema_run / name)
    tensors = checkpoint['state_dict_ema' if use_ema else 'state_dict']
    saved = read_model(str(ema_run), use_ema, which)
    torch.testing.assert_close(saved.state_dict, dict(tensors), rtol=0, atol=0)
    row = summary(ema_run)[checkpoint['epoch'] if epoch is None else epoch]
    prefix = 'ema' if use_ema else 'raw'
    assert saved.metrics == {
        'epoch': int(row['epoch']), **{key: float(row[f'{prefix}_{key}']) for key in ('loss', 'top1', 'top5')}}
    assert (saved.architecture, saved.num_classes, saved.in_chans) == ('test_resnet', 3, 3)
    assert saved.options == checkpoint['args']
    assert saved.class_names == ['ant', 'bee', 'cat']
    assert (saved.source, saved.run_dir) == (str(ema_run / name), str(ema_run))
    from_file = read_model(str(ema_run / name), use_ema)
    assert replace(from_file, state_dict={}) == replace(saved, state_dict={})
    model = timm.create_model('test_resnet', num_classes=3)
    model.load_state_dict(tensors)
    assert torch.equal(logits(saved.create_model()), logits(model))
    assert not saved.create_model().training


def test_options_of_the_model_are_read_back(train_once):
    folder = train_once(
        '--model', 'test_efficientnet', '--bn-eps', '0.1', '--in-chans', '1', '--gp', 'max', '--img-size', '32',
        '--epochs', '1')
    saved = read_model(str(folder))
    assert (saved.in_chans, saved.global_pool, saved.model_args) == (1, 'max', {'bn_eps': 0.1})
    assert saved.data_config['input_size'] == (1, 32, 32)
    assert saved.data_config['mean'] == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    model = timm.create_model('test_efficientnet', num_classes=3, bn_eps=0.1, in_chans=1, global_pool='max')
    model.load_state_dict(load(folder / 'model_best.pth.tar')['state_dict'])
    assert torch.equal(logits(saved.create_model(), INPUT[:, :1]), logits(model, INPUT[:, :1]))


def test_a_checkpoint_of_timm_is_read_and_resumed(tmp_path):
    model = timm.create_model('test_resnet', num_classes=7, in_chans=1, global_pool='max')
    path = str(tmp_path / 'timm.pth.tar')
    save_timm(path, model, model='test_resnet', num_classes=None, in_chans=None, img_size=48, gp='max',
              model_kwargs={}, eval_metric='top1', mean=None, crop_pct=0.8)
    saved = read_model(path)
    assert (saved.num_classes, saved.in_chans, saved.global_pool) == (7, 1, 'max')
    assert saved.data_config == dict(
        input_size=(1, 48, 48), interpolation='bilinear', mean=(0.5,), std=(0.5,), crop_pct=0.8, crop_mode='center')
    assert (saved.class_names, saved.versions, saved.run_dir) == (None, {}, None)
    assert saved.metrics == {'epoch': 4}, 'the file does not name the metric and its data'
    assert torch.equal(logits(saved.create_model(), INPUT[:, :1]), logits(model, INPUT[:, :1]))

    resumed = timm.create_model('test_resnet', num_classes=7, in_chans=1, global_pool='max')
    resume(path, ClassificationTask(resumed, torch.nn.CrossEntropyLoss()), verbose=False)
    assert position_of(load(path)) == (5, 0)
    assert torch.equal(logits(resumed, INPUT[:, :1]), logits(model, INPUT[:, :1]))


@pytest.mark.parametrize('content, epoch', [
    (dict(epoch=4, version=2, metric=1.), 5), (dict(epoch=4, version=2), 4), (dict(epoch=4, metric=1.), 4),
    (dict(epoch=4), 3), (dict(version=2, metric=1.), None)])
def test_a_checkpoint_of_timm_continues_with_the_epoch_that_it_names(tmp_path, content, epoch):
    """As in timm after a complete epoch. A file without a metric is from within an epoch, which timm leaves out."""
    assert position_of(content) == (None if epoch is None else (epoch, 0))
    model = torch.nn.Linear(2, 2)
    torch.save({**content, 'state_dict': model.state_dict()}, tmp_path / 'x.pth.tar')
    timm_epoch = resume_task_checkpoint(
        ClassificationTask(model, verbose=False), str(tmp_path / 'x.pth.tar'), log_info=False)
    assert timm_epoch == (epoch if epoch is None or 'metric' in content else epoch + 1)


def test_a_transformer_trained_by_timm_has_the_given_size(tmp_path):
    model = timm.create_model('test_vit.r160_in1k', num_classes=3, img_size=32)
    path = str(tmp_path / 'timm.pth.tar')
    save_timm(path, model, model='test_vit.r160_in1k', num_classes=3, img_size=32, model_kwargs={})
    saved = read_model(path)
    assert (saved.architecture, saved.data_config['input_size']) == ('test_vit.r160_in1k', (3, 32, 32))
    assert torch.equal(logits(saved.create_model()), logits(model))


@pytest.mark.parametrize('name, option', [('test_efficientnet', {'bn_eps': 0.1}), ('test_vit', {'img_size': 32})])
def test_a_checkpoint_of_timm_is_evaluated_with_the_options_of_its_model(tmp_path, name, option):
    path = str(tmp_path / 'timm.pth.tar')
    model = timm.create_model(name, num_classes=3, **option)
    save_timm(path, model, **{'model': name, 'num_classes': 3, 'img_size': 32, 'model_kwargs': {}, **option})
    evaluated = Predictor(options_of(path, device='cpu')).subject.model
    assert torch.equal(logits(evaluated), logits(model))


@pytest.mark.slow
def test_a_checkpoint_of_timm_has_centre_crops_unlike_pretrained_weights(tmp_path):
    name = 'tf_efficientnetv2_b3'
    assert timm.get_pretrained_cfg(name).crop_mode == 'squash'
    model = timm.create_model(name, num_classes=3)
    save_timm(str(tmp_path / 'timm.pth.tar'), model, model=name, num_classes=3)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    assert read_model(str(tmp_path / 'timm.pth.tar')).data_config['crop_mode'] == 'center'
    assert saved_options(str(tmp_path / 'timm.pth.tar'))['crop_mode'] == 'center'
    assert read_model(str(tmp_path / 'weights.pth'), architecture=name).data_config['crop_mode'] == 'squash'


@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'wrapped'])
def test_weights_alone_need_the_model(tmp_path, kind):
    model = timm.create_model('test_resnet', num_classes=7, in_chans=1)
    path = str(tmp_path / f'weights.{kind}')
    if kind == 'safetensors':
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        prefix = 'module._orig_mod.' if kind == 'wrapped' else ''
        torch.save({prefix + name: value for name, value in model.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match='--model'):
        read_model(path)
    saved = read_model(path, architecture='test_resnet')
    assert (saved.num_classes, saved.in_chans) == (7, 1)
    assert saved.data_config['input_size'] == (1, 160, 160)
    assert torch.equal(logits(saved.create_model(), INPUT[:, :1]), logits(model, INPUT[:, :1]))


def test_a_file_of_an_old_torch_is_read(tmp_path):
    path = str(tmp_path / 'old.pth')
    torch.save(timm.create_model('test_resnet').state_dict(), path, _use_new_zipfile_serialization=False)
    assert saved_options(path) == {}
    assert read_model(path, architecture='test_resnet').num_classes == 1000


# Refused

class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(path, *words, **kwargs):
    """Check that both readers refuse the file in one line that names it."""
    model = timm.create_model('test_resnet', num_classes=3)
    for read in (lambda: read_model(str(path), architecture='test_resnet', **kwargs),
                 lambda: load_weights(str(path), model, **kwargs)):
        with pytest.raises(CheckpointError) as error_info:
            read()
        message = str(error_info.value)
        assert str(path) in message and '\n' not in message and len(message) < 300 + len(str(path)), message
        assert all(word in message for word in words), message


@pytest.mark.parametrize('save', [
    lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
    lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    lambda content, path: path.write_bytes(pickle.dumps(content, protocol=4)),
    lambda content, path: torch.save(content, path),
    lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
], ids=['protocol 0', 'protocol 2', 'protocol 4', 'torch', 'old torch'])
def test_a_pickle_with_a_payload_is_refused_and_not_executed(tmp_path, save, request):
    path = tmp_path / 'evil.pth.tar'
    save({'state_dict': {'fc.bias': torch.ones(3)}, 'optimizer': Payload(tmp_path / 'pwned')}, path)
    words = ['mkdir', 'refused', 'executed. Ask its author for a file of weights only']
    refused(path, *(words if 'torch' in request.node.callspec.id else []))
    with pytest.raises(CheckpointError):
        saved_options(str(path))
    with pytest.raises(CheckpointError):
        resume(str(path), ClassificationTask(timm.create_model('test_resnet'), torch.nn.CrossEntropyLoss()))
    assert not (tmp_path / 'pwned').exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / 'pwned')))  # it does what it is feared for
    assert (tmp_path / 'pwned').exists()


def test_damaged_files_and_files_of_other_kinds_are_refused(ema_run, tmp_path):
    whole = (ema_run / 'last.pth.tar').read_bytes()
    contents = {'empty': b'', 'half.pth.tar': whole[:len(whole) // 2], 'head.pth': whole[:100], 'text.pth': b'hello',
                'image.pth': b'\x89PNG\r\n\x1a\n' + bytes(100), 'lie.safetensors': b'\xff' * 7 + b'\x00{}',
                'text.safetensors': b'hello', 'cut.safetensors': b'\x40' + bytes(7) + b'{"a":{"dtype":"F32"'}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, 'empty' if not content else 'damaged')
    with zipfile.ZipFile(tmp_path / 'other.pth', 'w') as archive:
        archive.writestr('a', 'b')
    refused(tmp_path / 'other.pth', 'damaged')
    refused(tmp_path / 'nowhere.pth', 'no such')
    for number, content in enumerate(([torch.ones(2)], {}, {'state_dict': 5}, {'epoch': 3}, {'state_dict': {'a': 1}})):
        torch.save(content, tmp_path / f'{number}.pth')
        refused(tmp_path / f'{number}.pth', 'checkpoint' if number == 0 else 'no weights')


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='no such checkpoint: .*last.pth.tar'):
        read_model(str(tmp_path), which='last')


def test_a_missing_ema_is_refused(train_once):
    folder = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '1')
    refused(folder / 'last.pth.tar', 'no EMA', '--use-ema', use_ema=True)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    tensors = dict(timm.create_model('test_resnet', num_classes=3).state_dict())
    tensors['fc.bias'] = torch.ones(4)
    tensors['extra.weight'] = tensors.pop('layer1.0.conv1.weight')
    torch.save({'state_dict': tensors}, tmp_path / 'other.pth')
    refused(tmp_path / 'other.pth', 'test_resnet', 'missing layer1.0.conv1.weight', 'unexpected extra.weight',
            'fc.bias [4] in place of [3]')
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'vit.pth')
    refused(tmp_path / 'vit.pth', 'and', 'more')


def test_false_records_in_a_file_are_refused_or_ignored(ema_run, tmp_path, monkeypatch):
    """A file never decides from where weights are loaded."""
    checkpoint = load(ema_run / 'last.pth.tar')
    path = tmp_path / 'lie.pth.tar'
    record = checkpoint['agmax_timm']
    for broken in (5, {}, {**record, 'model_args': 5}, {**record, 'metrics': None}, {**record, 'data_config': 3}):
        torch.save({**checkpoint, 'agmax_timm': broken}, path)
        with pytest.raises(CheckpointError, match='lie.pth.tar'):
            read_model(str(path))
        if broken in (5, {}):
            with pytest.raises(CheckpointError, match='lie.pth.tar'):
                saved_options(str(path))
    elsewhere = {'checkpoint_path': str(tmp_path / 'nowhere'), 'pretrained': True, 'cache_dir': str(tmp_path / 'c'),
                 'pretrained_cfg_overlay': {'file': str(tmp_path / 'nowhere')}}
    torch.save({**checkpoint, 'agmax_timm': {**record, 'model_args': {**record['model_args'], **elsewhere}}}, path)
    torch.testing.assert_close(
        dict(read_model(str(path)).create_model().state_dict()), dict(checkpoint['state_dict']), rtol=0, atol=0)
    assert not elsewhere.keys() & saved_options(str(path))['model_kwargs'].keys()

    monkeypatch.setattr('socket.socket.connect', None)
    for name in ('hf-hub:evil/model', 'nothing', None):
        torch.save({**checkpoint, 'args': Namespace(model=name), 'agmax_timm': {**record, 'architecture': name}}, path)
        with pytest.raises(CheckpointError, match='--model'):
            read_model(str(path))
        torch.save({'state_dict': checkpoint['state_dict'], 'args': Namespace(model=name)}, path)
        with pytest.raises(CheckpointError, match='--model'):
            read_model(str(path))


@pytest.mark.parametrize('function', ['is_model', 'timm_architecture'])
def test_an_error_of_this_package_is_not_reported_as_a_damaged_file(ema_run, monkeypatch, function):
    def broken(*args):
        raise AttributeError('ours')

    monkeypatch.setattr(f'agmax_timm.weights.saved_model.{function}', broken)
    with pytest.raises(AttributeError, match='ours'):
        read_model(str(ema_run / 'last.pth.tar'))


def test_an_error_of_this_package_is_not_reported_as_a_damaged_config(tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {'input_size': [3, 32, 32]}}))
    safetensors.torch.save_file(
        timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'model.safetensors')
    assert read_model(str(tmp_path)).num_classes == 3
    monkeypatch.setattr('agmax_timm.weights.checkpoint.license_in_folder', lambda folder: folder.ours)
    with pytest.raises(AttributeError, match='ours'):
        read_model(str(tmp_path))


def test_a_checkpoint_of_another_model_to_resume_is_refused(photos, tmp_path, capsys):
    path = tmp_path / 'vit.pth.tar'
    torch.save({'state_dict': timm.create_model('test_vit').state_dict()}, path)
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([str(photos), '--model', 'test_resnet', '--num-classes', '3', '-b', '4', '-j', '0',
                       '--resume', str(path), '--output', str(tmp_path)])
    assert exit_info.value.code == 2
    assert str(path) in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize('options, chosen', [
    (dict(model_ema=True), True),
    (dict(model_ema=True, val_split='val'), True),
    (dict(model_ema=True, val_split=''), False),  # ranked by the loss of training
    (dict(model_ema=True, model_ema_force_cpu=True), False),
    (dict(model_ema=False), False),
    ({}, False),
])
def test_the_default_weights_are_those_that_the_run_ranked(options, chosen):
    assert choose_ema(options) == chosen == choose_ema(options, None)
    assert choose_ema(options, True) and not choose_ema(options, False)
    if options.get('model_ema'):
        assert describe_weights(options, chosen).endswith(', by which the run ranked its checkpoints')
        assert '; the run ranked its checkpoints by' in describe_weights(options, not chosen)
