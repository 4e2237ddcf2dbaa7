"""A staged folder: its content, its licence, and that it is complete or does not exist."""
import json
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from agmax_timm.options.declare import values
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights.hub_error import HubError
from agmax_timm.weights.staging import FILES, load_folder, recipe, stage


def test_all_files_exist_and_none_is_a_pickle(staged):
    assert sorted(path.name for path in staged.iterdir()) == sorted(FILES)
    assert not [path for path in staged.iterdir() if path.read_bytes()[:2] in (b'PK', b'\x80\x02')]


def test_plain_timm_gives_the_same_logits(saved, staged):
    input = torch.randn(2, 3, 32, 32)
    loaded = timm.create_model(f'local-dir:{staged}', pretrained=True).eval()
    assert torch.equal(loaded(input), saved.create_model()(input))
    with safe_open(staged / 'model.safetensors', framework='pt') as f:
        assert f.metadata() == {'format': 'pt'}


def test_the_configuration_describes_these_weights(make_saved, tmp_path):
    source = timm.get_pretrained_cfg('resnet10t.c3_in1k').to_dict()
    assert source['hf_hub_id'] and source['test_input_size'] and source['origin_url']  # nothing may be left of these
    saved = make_saved(architecture='resnet10t.c3_in1k')
    stage(saved, tmp_path / 'hub', license='mit')
    config = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['label_names']) == (
        'resnet10t', 3, ['ant', 'bee', 'cat'])
    assert 'num_classes' not in config['model_args']  # where transformers does not expect it
    ours = config['pretrained_cfg']
    assert (ours['tag'], ours['license'], ours['paper_ids']) == ('agmax_photos', 'mit', 'arXiv:2110.10536')
    assert not {'hf_hub_id', 'url', 'file', 'source', 'origin_url', 'test_input_size', 'test_crop_pct'} & set(ours)
    model = timm.create_model(f'local-dir:{tmp_path}/hub')
    found = timm.data.resolve_model_data_config(model, use_test_size=True)
    assert {name: as_list(value) for name, value in found.items()} == {
        name: as_list(value) for name, value in saved.data_config.items()}


def test_a_licence_other_than_that_of_the_source_warns(make_saved, tmp_path, caplog):
    for license in (None, 'mit'):  # test_resnet's is apache-2.0
        stage(make_saved(options={'pretrained': True}), tmp_path / 'hub', license=license)
        assert bool(re.search('apache-2.0.* staged under .?mit', caplog.text)) == (license == 'mit')


def as_list(value):
    return list(value) if isinstance(value, tuple) else value


def test_the_folder_contains_the_arguments_of_the_model(make_saved, tmp_path):
    saved = make_saved(in_chans=1, num_classes=7, global_pool='max', model_args={'block_args': {'attn_layer': 'se'}})
    stage(saved, tmp_path / 'hub')
    model = load_folder(tmp_path / 'hub')
    assert model.state_dict().keys() == saved.state_dict.keys() and any('se.' in name for name in saved.state_dict)
    assert model.global_pool.pool_type == 'max' and model.num_classes == 7


@pytest.mark.parametrize('architecture', ['test_vit', 'test_efficientnet.r160_in1k'])
def test_other_architectures_are_staged(make_saved, tmp_path, architecture):
    stage(make_saved(architecture=architecture, size=160), tmp_path / 'hub')


def test_tensors_that_share_memory_are_staged(make_saved, tmp_path):
    """CoaT has them. Each is stored under its own name, as plain timm expects."""
    saved = make_saved(architecture='coat_lite_tiny', model_args=dict(img_size=32, embed_dims=[16, 16, 16, 16]))
    assert len({value.data_ptr() for value in saved.state_dict.values()}) < len(saved.state_dict)
    stage(saved, tmp_path / 'hub')
    found = load_file(tmp_path / 'hub' / 'model.safetensors')
    assert found.keys() == saved.state_dict.keys()
    assert all(torch.equal(found[name], value) for name, value in saved.state_dict.items())


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_umask(saved, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        stage(saved, tmp_path / 'hub')
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / 'hub').iterdir()}
    assert modes == dict.fromkeys(FILES, mode)
    assert (tmp_path / 'hub').stat().st_mode & 0o777 == 0o777 & ~umask


def test_weights_in_channels_last_are_staged(make_saved, tmp_path):
    saved = make_saved()
    saved.state_dict = {name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
                        for name, value in saved.state_dict.items()}
    stage(saved, tmp_path / 'hub')


def test_the_recipe_is_a_file_for_train_and_names_no_machine(saved, staged):
    options = yaml.safe_load((staged / 'train_hparams.yaml').read_text())
    assert options == recipe(saved.options) and options['lr'] == 0.05
    args = parse_train_args(['DIR', '-c', str(staged / 'train_hparams.yaml')])
    assert {name: getattr(args, name) for name in options} == options
    assert 'secret' not in (staged / 'train_hparams.yaml').read_text() + (staged / 'README.md').read_text()


def test_every_option_of_a_run_is_part_of_a_recipe_or_left_out(tmp_path):
    options = values(parse_train_args(['DIR', '--agmax', '--push-to-hub', 'ann/net', '--experiment', 'x']))
    path = tmp_path / 'train_hparams.yaml'
    path.write_text(yaml.safe_dump(recipe(options)))
    again = values(parse_train_args(['DIR', '-c', str(path)]))
    assert {name for name in options if options[name] != again[name]} == {'experiment', 'push_to_hub'}


def test_logits_that_differ_are_an_error_and_leave_nothing(make_saved, tmp_path):
    saved = make_saved()
    create = saved.create_model

    def create_another():
        model = create()
        torch.nn.init.normal_(model.fc.weight)
        return model
    saved.create_model = create_another
    with pytest.raises(HubError, match='the logits of .*best.*differ by up to'):
        stage(saved, tmp_path / 'hub')
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_an_error(make_saved, tmp_path):
    saved = make_saved()
    saved.state_dict['fc.bias'] = torch.full((3,), float('nan'))
    with pytest.raises(HubError, match='not finite'):
        stage(saved, tmp_path / 'hub')


@contextmanager
def files_of_at_most(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('size', [100, 100_000], ids=['config', 'weights'])
def test_a_full_disk_is_one_line_and_keeps_the_former_files(saved, staged, tmp_path, size):
    folder = tmp_path / 'hub'
    stage(saved, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_of_at_most(size), pytest.raises(HubError) as raised:
        stage(saved, folder)
    assert f"cannot stage '{folder}': " in str(raised.value) and 'File too large' in str(raised.value)
    assert '\n' not in str(raised.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ['hub']


def test_staging_again_replaces_only_its_own_files(make_saved, saved, tmp_path):
    folder = tmp_path / 'hub'
    stage(saved, folder)
    (folder / 'notes.txt').write_text('mine')
    stage(make_saved(options={}, run_dir=None), folder)
    assert {path.name for path in folder.iterdir()} == {'config.json', 'model.safetensors', 'README.md', 'notes.txt'}


def test_a_folder_that_cannot_be_created_is_an_error(saved, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(HubError, match="cannot stage '.*file/hub': "):
        stage(saved, Path(tmp_path, 'file', 'hub'))
