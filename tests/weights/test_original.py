"""Checkpoints of the original: names, unchanged files, and refused ones. The original's logits are the oracle."""
import collections
import os

import pytest
import timm
import torch
from torch import nn

from agmax_timm.base.errors import CheckpointError
from agmax_timm.commands import validate as validate_cli
from agmax_timm.weights.checkpoint import load_weights, saved_options
from agmax_timm.weights.original import is_original, original_to_timm
from agmax_timm.weights.released import timm_architecture
from tests.helpers.original_networks import NAMES, names_and_digest, original_checkpoint, original_network

torch.set_num_threads(1)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def save(tmp_path):
    """Function: the path of a saved checkpoint."""
    def run(checkpoint, name='original.pth'):
        torch.save(checkpoint, tmp_path / name)
        return str(tmp_path / name)
    return run


@pytest.fixture
def loads(monkeypatch):
    """The keyword arguments of all calls of torch.load."""
    calls, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize('name, agmax', NAMES)
def test_networks_of_the_tests_have_the_tensors_of_the_original(name, agmax):
    with torch.device('meta'):
        network = original_network(name, agmax, num_classes=1000, units=2048 if name == 'resnet50' else 4096)
    assert names_and_digest(nn.DataParallel(network).state_dict()) == NAMES[name, agmax]


@pytest.mark.slow
@pytest.mark.parametrize('data_parallel', [True, False], ids=['module.', ''])
@pytest.mark.parametrize('agmax', [True, False], ids=['agmax', 'standard'])
@pytest.mark.parametrize('name', ['test_resnet', 'regnetx_002', 'regnety_004', 'efficientnet_b0'])
def test_timm_gives_the_logits_of_the_original(name, agmax, data_parallel, images, save, loads):
    network = original_network(name, agmax)
    path = save(original_checkpoint(network, data_parallel))
    model = timm.create_model(name, num_classes=3).eval()
    load_weights(path, model)
    with torch.no_grad():
        logits, expected = model(images), network(images)
    assert expected.std() > 1e-3
    assert torch.equal(logits, expected)
    assert loads and all(call['weights_only'] is True for call in loads)


@pytest.mark.slow
@pytest.mark.parametrize('name, agmax', [('resnet50', True), ('resnet101', False)])
def test_timm_gives_the_logits_of_the_released_networks(name, agmax, images):
    network = original_network(name, agmax, num_classes=1000)
    model = timm.create_model(name).eval()
    model.load_state_dict(original_to_timm(original_checkpoint(network)))
    with torch.no_grad():
        assert torch.equal(model(images), network(images))


def test_checkpoints_of_the_tests_contain_what_the_original_pickles(save):
    checkpoint = torch.load(save(original_checkpoint(original_network('test_resnet'))), weights_only=True)
    assert isinstance(checkpoint['scheduler_state_dict']['milestones'], collections.Counter)
    assert checkpoint['optimizer_state_dict']['state'][0]['momentum_buffer'] is not None
    assert is_original(checkpoint)


@pytest.mark.parametrize('other', [
    {}, {'state_dict': {'conv1.weight': torch.ones(1)}}, {'conv1.weight': torch.ones(1)}, [], None, torch.ones(1),
    {'model_state_dict': None}, {'model_state_dict': {'conv1.weight': torch.ones(1), 3: 4}}])
def test_other_files_are_not_recognised_as_the_original(other):
    assert not is_original(other)


def test_names_have_an_architecture_of_timm():
    for name, architecture in (('agmax_resnet50', 'resnet50'), ('agmax_resnet101.cutmix_aa_in1k', 'resnet101'),
                               ('resnet50.a1_in1k', 'resnet50'), ('agmax_other.tag', 'agmax_other')):
        assert timm_architecture(name) == architecture


def spoiled(**changes):
    """A checkpoint with tensors that are renamed, replaced, added or, with None, removed."""
    checkpoint = original_checkpoint(original_network('test_resnet'))
    tensors = checkpoint['model_state_dict']
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return checkpoint


PREFIX = 'module.backbone.'


@pytest.mark.parametrize('changes, named', [
    ({f'{PREFIX}feature_extractor.bn1.weight': None}, 'missing bn1.weight'),
    ({f'{PREFIX}classifier.bias': None}, 'missing fc.bias'),
    ({f'{PREFIX}feature_extractor.layer9.weight': torch.ones(2)}, 'unexpected layer9.weight'),
    ({f'{PREFIX}feature_extractor.bn1.weight': torch.ones(2)}, 'bn1.weight [2] in place of [32]'),
    ({f'{PREFIX}classifier.bias': torch.ones(4)}, 'fc.bias'),
    ({f'{PREFIX}feature_extractor.fc.weight': torch.ones(3, 96)}, f'{PREFIX}'),
    ({f'{PREFIX}extra.weight': torch.ones(2)}, f"{PREFIX}extra.weight' is not a tensor of the original"),
    ({'module.bn1.weight': torch.ones(32)}, "module.bn1.weight' is not a tensor of the original"),
    ({'module.qnet.other.weight': torch.ones(2)}, "module.qnet.other.weight' is not a tensor of the original"),
    ({f'{PREFIX}feature_extractor.bn1.weight': 'text'}, f"{PREFIX}feature_extractor.bn1.weight' is not a tensor"),
    ({'backbone.feature_extractor.bn1.weight': torch.ones(32)}, "bn1.weight' is not a tensor of the original"),
])
def test_a_tensor_that_does_not_fit_is_named_in_one_line(changes, named, save):
    path = save(spoiled(**changes))
    with pytest.raises(CheckpointError) as error:
        load_weights(path, timm.create_model('test_resnet', num_classes=3))
    message = str(error.value)
    assert path in message and named in message and '\n' not in message and len(message) < 400


def test_another_architecture_is_named_with_its_tensors(save):
    path = save(original_checkpoint(original_network('test_resnet')))
    with pytest.raises(CheckpointError, match=r'resnet18.*: missing .* \d+ more; unexpected .* more'):
        load_weights(path, timm.create_model('resnet18', num_classes=3))


def test_use_ema_is_refused_for_the_original(save):
    path = save(original_checkpoint(original_network('test_resnet')))
    with pytest.raises(CheckpointError, match='no EMA weights: .*--use-ema .*--raw'):
        load_weights(path, timm.create_model('test_resnet', num_classes=3), use_ema=True)


# ---- validate.py ----

@pytest.fixture
def validate(photos, results_of):
    """Function: the results of validate.py on the photos."""
    def run(*argv):
        results = results_of(photos, '-b', '4', *argv)
        del results['checkpoint']
        return results
    return run


@pytest.mark.slow
@pytest.mark.parametrize('name, size', [('test_resnet', 224), ('regnetx_002', 256)])
def test_validate_uses_the_input_settings_of_the_original(name, size, save, validate):
    network = original_network(name)
    checkpoint = original_checkpoint(network)
    model = timm.create_model(name, num_classes=3)
    model.load_state_dict(original_to_timm(checkpoint))
    results = validate('--model', name, '--checkpoint', save(checkpoint, 'imagenet-agmax-81.19-mlp-4096.pth'))
    assert results == validate(
        '--model', name, '--num-classes', 3, '--img-size', size, '--crop-pct', size / (size + 32), '--interpolation',
        'bilinear', '--mean', 0.485, 0.456, 0.406, '--std', 0.229, 0.224, 0.225,
        '--checkpoint', save(model.state_dict(), 'timm.pth'))
    assert (results['img_size'], results['interpolation']) == (size, 'bilinear')
    assert results['loss'] > 0


@pytest.mark.slow
def test_flags_override_the_input_settings_of_the_original(save, validate):
    path = save(original_checkpoint(original_network('resnet50')))
    results = validate('--model', 'resnet50', '--img-size', 64, '--crop-pct', 0.5, '--checkpoint', path)
    assert (results['img_size'], results['crop_pct'], results['interpolation']) == (64, 0.5, 'bilinear')


# ---- Hostile files ----

class Payload:
    """A pickle that would create a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize('key', ['model_state_dict', 'scheduler_state_dict', 'best_model'])
def test_a_payload_is_refused_in_one_line_and_not_executed(key, save, tmp_path, photos, capsys):
    marker = tmp_path / 'executed'
    checkpoint = original_checkpoint(original_network('test_resnet'))
    checkpoint[key] = Payload(marker)
    path = save(checkpoint)
    for use in (saved_options, lambda path: load_weights(path, timm.create_model('test_resnet', num_classes=3))):
        with pytest.raises(CheckpointError) as error:
            use(path)
        assert path in str(error.value) and 'mkdir' in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(SystemExit) as end:
        validate_cli.main([str(photos), '--model', 'test_resnet', '--num-classes', '3', '--checkpoint', path])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and path in captured.err
    assert not marker.exists()
