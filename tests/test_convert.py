"""From a checkpoint of the original to a folder in timm's layout."""
import json
import os

import pytest
import timm
import torch
from safetensors import safe_open

from agmax_timm import convert
from agmax_timm.weights.card_text import join_sections, split_card, split_sections
from tests.helpers.original_networks import original_checkpoint, original_network

torch.set_num_threads(1)


@pytest.fixture
def original(tmp_path):
    """Function: a checkpoint in the original's format with changes, and its network."""
    def make(name='test_resnet', changes=(), **kwargs):
        network = original_network(name, **kwargs)
        path = tmp_path / 'original.pth'
        torch.save({**original_checkpoint(network), **dict(changes)}, path)
        return path, network
    return make


@pytest.mark.slow
@pytest.mark.parametrize('name, size, resize', [('test_resnet', 224, 256), ('regnetx_002', 256, 288)])
@pytest.mark.parametrize('agmax', [True, False], ids=['agmax', 'standard'])
def test_timm_loads_the_folder_with_the_logits_of_the_original(name, size, resize, agmax, original, tmp_path, capsys):
    path, network = original(name, agmax=agmax)
    folder = tmp_path / 'folder'
    convert.main([str(path), str(folder), '--model', name])
    assert f"timm.create_model('local-dir:{folder}', pretrained=True)" in capsys.readouterr().out
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), network(images))
    with safe_open(folder / 'model.safetensors', 'pt') as tensors:
        assert tensors.metadata() == {'format': 'pt'}
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['num_classes']) == (name, 3)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert (transform.transforms[0].size, transform.transforms[1].size) == (resize, (size, size))
    assert transform.transforms[0].interpolation.value == 'bilinear'
    assert transform.transforms[3].mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    card = (folder / 'README.md').read_text()
    assert '2110.10536' in card
    assert 'The checkpoint states these numbers, for the validation images of its run,' in card
    assert 'Measured in validation' not in card and 'only on the validation images of its run' in card
    assert '81.19' in card and 'original.pth' in card and 'github.com/roatienza/agmax' in card


@pytest.mark.slow
def test_released_checkpoints_are_converted_to_timm_architectures(original, tmp_path):
    path, _ = original('resnet50', num_classes=4)
    convert.main([str(path), str(tmp_path / 'folder'), '--model', 'agmax_resnet50.cutmix_aa_in1k', '--img-size', '64'])
    config = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    assert config['architecture'] == 'resnet50'
    assert config['pretrained_cfg']['input_size'] == [3, 64, 64]


def test_the_card_has_the_licence_and_the_origin_in_sections_that_publishing_replaces(original, tmp_path):
    path, _ = original()
    folder = tmp_path / 'folder'
    convert.main([str(path), str(folder), '--model', 'test_resnet', '--img-size', '32', '--license', 'mit'])
    metadata, body = split_card((folder / 'README.md').read_text())
    sections, rest = split_sections(body)
    assert metadata['license'] == 'mit' and '- **Licence:** mit' in sections['about']
    assert sections['origin'].startswith('## Origin\n\nConverted from `original.pth`')
    assert join_sections(rest, {}).strip() == ''


@pytest.mark.parametrize('name, words, told', [
    ('folder', [], "folder' exists and is not an empty folder: name a new one"),
    ('new', ['--license', 'mti'], "--license 'mti': the Hub does not list such a licence, did you mean mit?"),
])
def test_invalid_arguments_are_refused_before_the_checkpoint_is_read(tmp_path, capsys, name, words, told):
    files = {'README.md': 'mine', 'summary.csv': 'a,b'}
    (tmp_path / 'folder').mkdir()
    for file, text in files.items():
        (tmp_path / 'folder' / file).write_text(text)
    with pytest.raises(SystemExit) as end:
        convert.main(['none.pth', str(tmp_path / name), '--model', 'test_resnet', *words])
    assert end.value.code == 2 and told in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / 'folder').iterdir()} == files


def test_the_accuracy_of_another_epoch_is_left_out(original):
    path, _ = original(changes=dict(best_epoch=70))
    assert convert.read_original(str(path), 'test_resnet').metrics == {'epoch': 87}
    path, _ = original()
    assert convert.read_original(str(path), 'test_resnet').metrics == {'epoch': 87, 'top1': 81.19, 'top5': 95.5}


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_invalid_checkpoints_are_refused_in_one_line(original, tmp_path, capsys):
    path, _ = original()
    other, hostile, headless = tmp_path / 'other.pth', tmp_path / 'hostile.pth', tmp_path / 'headless.pth'
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['model_state_dict']['module.backbone.classifier.weight']
    torch.save(checkpoint, headless)
    torch.save({'state_dict': timm.create_model('test_resnet').state_dict()}, other)
    torch.save({'model_state_dict': Payload(tmp_path / 'executed')}, hostile)
    folder = tmp_path / 'folder'
    for file, model, told in (
            (path, 'resnet18', "does not fit 'resnet18': missing"),
            (path, 'regnetx_002', "does not fit 'regnetx_002': missing"),
            (path, 'resnet5', "--model 'resnet5': timm has no such model"),
            (other, 'test_resnet', 'is not a checkpoint of the original AgMax'),
            (tmp_path / 'none.pth', 'test_resnet', 'none.pth'),
            (headless, 'test_resnet', 'missing fc.weight'),
            (hostile, 'test_resnet', 'mkdir')):
        with pytest.raises(SystemExit) as end:
            convert.main([str(file), str(folder), '--model', model])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and told in error, error
    assert not folder.exists() and not (tmp_path / 'executed').exists()
