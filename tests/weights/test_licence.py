"""The licence of a published model: the chosen one, that of the initial weights, or none."""
import dataclasses
import json
import shutil
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from timm.models import get_pretrained_cfg

from agmax_timm import export
from agmax_timm.base.errors import OptionError
from agmax_timm.base.licences import LISTED, check_license
from agmax_timm.commands.train import main as train
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights.base_model import base_of_file, find_base
from agmax_timm.weights.checkpoint import METADATA
from agmax_timm.weights.staging import recipe, stage
from tests.helpers.run_files import load

NON_COMMERCIAL = 'resnet50.fb_swsl_ig1b_ft_in1k'  # cc-by-nc-4.0, where timm's default of resnet50 is apache-2.0


def stated(folder):
    """The licence in config.json, in the metadata of the card and in its text."""
    card = ModelCard.load(folder / 'README.md')
    data = card.data.to_dict()
    row, = (line for line in card.text.splitlines() if line.startswith('- **Licence:** '))
    config = json.loads((folder / 'config.json').read_text())
    return (config['pretrained_cfg'].get('license'), data['license'], data.get('license_name'),
            row.removeprefix('- **Licence:** '))


def base_at_start(model, **options):
    """The base that a run records for this model of timm."""
    config = get_pretrained_cfg(model).to_dict() if ':' not in model else {'license': 'mit'}
    args = Namespace(**{**dict(model=model, pretrained=True, pretrained_path='', initial_checkpoint='', resume='',
                               pretrained_cfg_overlay={}), **options})
    return find_base(args, SimpleNamespace(pretrained_cfg=config))


@pytest.fixture(scope='module')
def restricted(make_saved, tmp_path_factory):
    """A staged folder of weights that were fine-tuned from weights under a non-commercial licence."""
    folder = tmp_path_factory.mktemp('restricted') / 'hub'
    stage(make_saved(base={'name': f'timm/{NON_COMMERCIAL}', 'license': 'cc-by-nc-4.0'}), folder)
    return folder


OF_BASE = 'cc-by-nc-4.0, that of the weights from which training started'


def test_without_a_choice_no_licence_is_stated(make_saved, tmp_path, caplog):
    stage(make_saved(), tmp_path)
    assert stated(tmp_path) == (
        None, 'other', None, 'none is stated: whoever publishes this model has to choose one')
    assert 'No licence is stated: choose one with --license' in caplog.text


def test_the_licence_of_the_initial_weights_is_stated(restricted):
    assert stated(restricted) == ('cc-by-nc-4.0', 'cc-by-nc-4.0', None, OF_BASE)


@pytest.mark.parametrize('options, expected', [
    ({'license': 'mit'}, ('mit', 'mit', None, 'mit')),
    ({'license': 'other:bee-licence-1.0'}, ('bee-licence-1.0', 'other', 'bee-licence-1.0', 'bee-licence-1.0')),
])
def test_a_licence_chosen_for_the_run_is_stated(make_saved, tmp_path, caplog, options, expected):
    stage(make_saved(options=options, base={'name': 'ann/bees', 'license': 'cc-by-nc-4.0'}), tmp_path)
    assert stated(tmp_path) == expected
    warning, = (message for message in caplog.messages if 'ann/bees' in message)
    assert all(words in warning for words in ("under 'cc-by-nc-4.0'", f"under '{expected[0]}': check"))


def test_a_licence_that_the_hub_does_not_list_has_a_name(make_saved, tmp_path):
    stage(make_saved(base={'name': None, 'license': 'dinov3-license'}), tmp_path)
    assert 'dinov3-license' not in LISTED
    assert stated(tmp_path)[:3] == ('dinov3-license', 'other', 'dinov3-license')


@pytest.mark.parametrize('model, options, expected', [
    (NON_COMMERCIAL, {}, {'name': f'timm/{NON_COMMERCIAL}', 'license': 'cc-by-nc-4.0'}),
    (NON_COMMERCIAL, {'pretrained': False}, {}),
    (NON_COMMERCIAL, {'pretrained_cfg_overlay': {'url': 'https://x/y.pth'}}, {'license': None}),
    ('agmax_resnet50.cutmix_aa_in1k', {}, {'name': None, 'license': 'apache-2.0'}),
    (NON_COMMERCIAL, {'initial_checkpoint': 'missing.pth'}, {'name': None, 'license': None}),
    ('local-dir:nowhere', {}, {'name': None, 'license': 'mit'}),
])
def test_the_base_of_a_run_is_that_of_its_initial_weights(model, options, expected):
    found = base_at_start(model, **options)
    assert {name: found[name] for name in expected} == expected and bool(found) == bool(expected)


def test_weights_in_a_folder_keep_its_licence(restricted, tmp_path):
    """With every option that loads them. The card has priority over the configuration."""
    weights = str(restricted / 'model.safetensors')
    for options in ({'pretrained_path': weights}, {'pretrained_cfg_overlay': {'file': weights}},
                    {'pretrained': False, 'initial_checkpoint': weights}):
        assert base_at_start('resnet18', **options)['license'] == 'cc-by-nc-4.0'
    folder = shutil.copytree(restricted, tmp_path / 'hub')
    card = folder / 'README.md'
    card.write_text(card.read_text().replace('license: cc-by-nc-4.0', 'license: CC-BY-4.0'))
    assert base_at_start(f'local-dir:{folder}')['license'] == 'cc-by-4.0'
    assert base_at_start('resnet18', pretrained_path=str(folder / 'model.safetensors'))['license'] == 'cc-by-4.0'
    card.write_text('---\n[')
    assert base_at_start('resnet18', pretrained_path=str(folder / 'model.safetensors'))['license'] == 'cc-by-nc-4.0'


def test_the_licence_of_the_first_weights_passes_to_later_runs(restricted, photos, tmp_path, capsys):
    """A run from a folder, one from its checkpoint, and one that resumes it."""
    small = [str(photos), '--img-size', '32', '-b', '4', '-j', '0', '--warmup-epochs', '0', '--lr', '0.01',
             '--output', str(tmp_path)]
    train([*small, '--model', f'local-dir:{restricted}', '--pretrained', '--epochs', '1', '--experiment', 'first'])
    small += ['--model', 'test_resnet', '--num-classes', '3']
    train([*small, '--initial-checkpoint', str(tmp_path / 'first' / 'last.pth.tar'), '--epochs', '1',
           '--experiment', 'second'])
    train([*small, '--resume', str(tmp_path / 'second' / 'last.pth.tar'), '--epochs', '2', '--experiment', 'third'])
    for name in ('first', 'second', 'third'):
        record = load(tmp_path / name / 'last.pth.tar')[METADATA]
        assert record['base'] == {'name': None, 'license': 'cc-by-nc-4.0'}
        export.main([str(tmp_path / name), str(tmp_path / name / 'hub')])
        assert stated(tmp_path / name / 'hub')[:2] == ('cc-by-nc-4.0', 'cc-by-nc-4.0')
    export.main([str(tmp_path / 'first'), str(tmp_path / 'explicit'), '--license', 'mit'])
    assert stated(tmp_path / 'explicit') == ('mit', 'mit', None, 'mit')
    export.main([str(restricted / 'model.safetensors'), str(tmp_path / 'again')])
    assert stated(tmp_path / 'again')[0] == 'cc-by-nc-4.0'


def test_a_chosen_licence_passes_to_runs_from_the_checkpoint(make_saved, tmp_path):
    saved = make_saved()
    torch.save({'state_dict': saved.state_dict, 'args': Namespace(license='cc-by-nc-sa-4.0'),
                METADATA: {'base': {'name': 'ann/bees', 'license': 'mit'}}}, tmp_path / 'x.pth.tar')
    assert base_of_file(str(tmp_path / 'x.pth.tar')) == {'name': 'ann/bees', 'license': 'cc-by-nc-sa-4.0'}
    assert 'license' not in recipe({'license': 'mit'})


def test_the_base_of_former_checkpoints_comes_from_their_options(make_saved, tmp_path):
    """timm's checkpoints and ours of former versions."""
    saved = dataclasses.replace(make_saved(), options={'model': NON_COMMERCIAL, 'pretrained': True})
    stage(saved, tmp_path)
    assert stated(tmp_path)[:2] == ('cc-by-nc-4.0', 'cc-by-nc-4.0')
    saved = dataclasses.replace(saved, options={**saved.options, 'initial_checkpoint': 'x.pth'})
    stage(saved, tmp_path)
    assert stated(tmp_path)[:2] == (None, 'other')


@pytest.mark.parametrize('value, message', [
    ('apache2', 'did you mean apache-2.0?'), ('apache2', 'use other:NAME'),
    ('MIT', 'did you mean mit?'),
    ('other', 'the Hub does not list such a licence'),
    ('other:', 'the Hub does not list such a licence'),
    ('other:Bee Licence', 'with a-z, 0-9, -, . and + in NAME'),
])
def test_an_invalid_licence_is_refused(value, message, tmp_path, capsys):
    with pytest.raises(OptionError) as error:
        check_license(value)
    assert message in str(error.value)
    for command in (lambda: parse_train_args(['DIR', '--license', value]),
                    lambda: export.main(['nothing', str(tmp_path / 'new'), '--license', value])):
        with pytest.raises(SystemExit) as status:
            command()
        told = capsys.readouterr().err
        assert status.value.code == 2 and message in told and told.count('\n') == 1
