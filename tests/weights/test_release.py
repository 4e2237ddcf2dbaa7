"""The original's release as models of timm, downloaded from a local server."""
import copy
import functools
import hashlib
import http.server
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf, set_pretrained_check_hash

import agmax_timm.weights.released
from agmax_timm.base.errors import CheckpointError
from agmax_timm.commands import validate as validate_cli
from agmax_timm.weights.original import original_to_timm
from tests.helpers.original_networks import original_checkpoint, original_network
from tests.helpers.plain_timm import run_in_plain_timm

torch.set_num_threads(1)

FILES = {
    'agmax_resnet50.cutmix_aa_in1k': 'imagenet-agmax-ResNet50-cutmix-auto_augment-79.12-mlp-2048.pth',
    'agmax_resnet50.baseline_cutmix_aa_in1k': 'imagenet-standard-ResNet50-cutmix-auto_augment-78.5.pth',
    'agmax_resnet101.cutmix_aa_in1k': 'imagenet-agmax-mi-ResNet101-cutmix-auto_augment-81.19-mlp-4096.pth',
    'agmax_resnet101.baseline_cutmix_aa_in1k': 'imagenet-standard-ResNet101-cutmix-auto_augment-80.69.pth',
}
NAME, FILE = next(iter(FILES.items()))
NARROW = dict(layers=(1, 1, 1, 1), channels=(8, 16, 16, 16))  # ResNets of a few tensors and many kinds


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files. A path under /cut/ ends in the middle, with the length of the complete file."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if not self.path.startswith('/cut/'):
            return super().do_GET()
        content = Path(self.directory, os.path.basename(self.path)).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def networks():
    return {name: original_network('resnet50', agmax='standard' not in file, num_classes=1000, seed=seed, **NARROW)
            for seed, (name, file) in enumerate(FILES.items())}


@pytest.fixture(scope='module')
def folder(networks, tmp_path_factory):
    """The released files, and the first one's tensors in timm's format."""
    folder = tmp_path_factory.mktemp('release')
    for name, file in FILES.items():
        torch.save(original_checkpoint(networks[name]), folder / file)
    state_dict = original_to_timm(torch.load(folder / FILE, weights_only=True))
    save_file(state_dict, folder / 'timm.safetensors')
    torch.save(state_dict, folder / 'timm.pth')
    return folder


@pytest.fixture
def server(folder, monkeypatch):
    """A server of the files on 127.0.0.1: `url`, and the requested paths in `requests`."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder))) as server:
        server.requests = []
        server.url = f'http://127.0.0.1:{server.server_address[1]}'
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The empty cache of torch."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def create(name=NAME, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=True, **NARROW, **kwargs).eval()


def images(channels=3):
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*')) if folder.exists() else []


def assert_same_logits(model, network):
    with torch.no_grad():
        assert torch.equal(model(images()), network(images()))


def test_timm_lists_the_release():
    assert timm.list_models('*agmax*', pretrained=True) == sorted(FILES, key=lambda name: ('101' in name, name))
    assert timm.list_models('agmax*') == ['agmax_resnet50', 'agmax_resnet101']


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_the_configuration_equals_that_of_the_original(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.url == f'https://github.com/roatienza/agmax/releases/download/agmax-0.1.0/{FILES[name]}'
    assert f"{cfg.architecture}.{cfg.tag}" == name
    with torch.device('meta'):
        model = timm.create_model(name)
        of_timm = timm.create_model(name.split('.')[0].removeprefix('agmax_'))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in of_timm.state_dict().items()}
    assert model.num_classes == 1000
    assert model.pretrained_cfg['license'] == 'apache-2.0'
    assert model.pretrained_cfg['paper_ids'] == 'arXiv:2110.10536'
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    assert [type(step).__name__ for step in transform.transforms] == [
        'Resize', 'CenterCrop', 'MaybeToTensor', 'Normalize']
    resize, crop, _, normalize = transform.transforms
    assert (resize.size, resize.interpolation.value, crop.size) == (256, 'bilinear', (224, 224))
    assert normalize.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert normalize.std.tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize('name', FILES)
def test_a_release_is_downloaded_once_and_gives_its_logits(name, server, networks, cache):
    overlay = dict(url=f'{server.url}/{FILES[name]}')
    for _ in range(2):
        assert_same_logits(create(name, pretrained_cfg_overlay=overlay), networks[name])
    assert server.requests == [f'/{FILES[name]}']
    assert files(cache) == [FILES[name]]


@pytest.mark.parametrize('name', FILES)
def test_a_release_in_the_cache_needs_no_network(name, folder, networks, cache):
    cache.mkdir(parents=True)
    shutil.copy(folder / FILES[name], cache)
    assert_same_logits(create(name), networks[name])


def test_the_first_tag_is_the_default(folder, networks, cache):
    cache.mkdir(parents=True)
    shutil.copy(folder / FILE, cache)
    assert_same_logits(create('agmax_resnet50'), networks[NAME])


@pytest.mark.parametrize('kwargs', [
    dict(num_classes=5), dict(num_classes=0), dict(in_chans=1), dict(in_chans=4, num_classes=2),
    dict(features_only=True, out_indices=(1, 3)), dict(features_only=True, in_chans=1), dict(global_pool='max'),
], ids=str)
def test_arguments_of_timm_have_the_effect_they_have_on_its_model(kwargs, server, folder):
    model = create(pretrained_cfg_overlay=dict(url=f'{server.url}/{FILE}'), **kwargs)
    expected = create('resnet50', pretrained_cfg_overlay=dict(file=str(folder / 'timm.safetensors')), **kwargs)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    outputs, expected_outputs = (m(images(kwargs.get('in_chans', 3))) for m in (model, expected))
    torch.testing.assert_close(outputs, expected_outputs, rtol=0, atol=0)


@pytest.mark.parametrize('file', [FILE, 'timm.safetensors', 'timm.pth'])
def test_files_of_both_formats_load_from_every_source(file, server, folder, networks, cache):
    path = str(folder / file)
    assert_same_logits(create(pretrained_cfg_overlay=dict(file=path)), networks[NAME])
    assert_same_logits(
        timm.create_model('agmax_resnet50', checkpoint_path=path, **NARROW).eval(), networks[NAME])
    if not file.endswith('.safetensors'):
        assert_same_logits(create(pretrained_cfg_overlay=dict(url=f'{server.url}/{file}')), networks[NAME])
        checkpoint = torch.load(path, weights_only=True)
        assert_same_logits(create(pretrained_cfg_overlay=dict(state_dict=checkpoint)), networks[NAME])
    assert not cache.exists() or files(cache) == [file]


def test_a_cache_folder_can_be_given(server, networks, tmp_path, cache):
    model = create(pretrained_cfg_overlay=dict(url=f'{server.url}/{FILE}'), cache_dir=tmp_path / 'own')
    assert_same_logits(model, networks[NAME])
    assert files(tmp_path / 'own') == [FILE]
    assert not cache.exists()


def test_without_pretrained_nothing_is_read(server):
    timm.create_model(NAME, pretrained_cfg_overlay=dict(url=f'{server.url}/{FILE}'), **NARROW)
    assert server.requests == []


# ---- What is refused ----

def refusal(**kwargs):
    with pytest.raises(CheckpointError) as error:
        create(**kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_an_incomplete_download_is_not_kept(server, networks, cache):
    url = f'{server.url}/cut/{FILE}'
    assert url in refusal(pretrained_cfg_overlay=dict(url=url))
    assert files(cache) == []
    assert_same_logits(create(pretrained_cfg_overlay=dict(url=f'{server.url}/{FILE}')), networks[NAME])


def test_a_missing_file_and_a_missing_server_are_refused(server, cache):
    message = refusal(pretrained_cfg_overlay=dict(url=f'{server.url}/missing.pth'))
    assert f'{server.url}/missing.pth' in message and '404' in message
    url = f'http://127.0.0.1:9/{FILE}'
    assert url in refusal(pretrained_cfg_overlay=dict(url=url))
    assert files(cache) == []


def test_a_cache_that_cannot_be_written_is_refused(server, tmp_path):
    (tmp_path / 'file').touch()
    url = f'{server.url}/{FILE}'
    message = refusal(pretrained_cfg_overlay=dict(url=url), cache_dir=str(tmp_path / 'file' / 'cache'))
    assert url in message and str(tmp_path / 'file') in message


def test_a_damaged_file_in_the_cache_is_named(folder, cache):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes((folder / FILE).read_bytes()[:1000])
    assert str(cache / FILE) in refusal()


def test_a_hash_in_the_name_is_checked(server, folder, networks, cache):
    content = (folder / FILE).read_bytes()
    for digest, right in ((hashlib.sha256(content).hexdigest()[:8], True), ('0' * 8, False)):
        (folder / f'agmax-{digest}.pth').write_bytes(content)
        overlay = dict(url=f'{server.url}/agmax-{digest}.pth')
        if right:
            assert_same_logits(create(pretrained_cfg_overlay=overlay), networks[NAME])
        else:
            assert 'hash' in refusal(pretrained_cfg_overlay=overlay)
        assert (cache / f'agmax-{digest}.pth').exists() == right


def test_the_accuracy_in_a_name_is_not_read_as_a_hash(server, networks):
    set_pretrained_check_hash(True)
    try:
        model = create(pretrained_cfg_overlay=dict(url=f'{server.url}/{FILE}'))
    finally:
        set_pretrained_check_hash(False)
    assert_same_logits(model, networks[NAME])


@pytest.mark.parametrize('kwargs', [dict(), dict(num_classes=5), dict(in_chans=1), dict(features_only=True)], ids=str)
@pytest.mark.parametrize('name, tensor, named', [
    ('bn1.weight', None, 'missing bn1.weight'),
    ('x.weight', torch.ones(1), 'unexpected x.weight'),
    ('bn1.bias', torch.ones(1), 'bn1.bias [1] in place of [64]'),
])
def test_an_incomplete_release_is_refused_with_all_arguments(name, tensor, named, kwargs, folder, tmp_path):
    checkpoint = torch.load(folder / FILE, weights_only=True)
    tensors = checkpoint['model_state_dict']
    tensors[f'module.backbone.feature_extractor.{name}'] = tensor
    if tensor is None:
        del tensors[f'module.backbone.feature_extractor.{name}']
    torch.save(checkpoint, tmp_path / 'spoiled.pth')
    message = refusal(pretrained_cfg_overlay=dict(file=str(tmp_path / 'spoiled.pth')), **kwargs)
    assert named in message and str(tmp_path / 'spoiled.pth') in message


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_payload_is_not_executed_and_not_kept(server, folder, tmp_path, cache):
    marker = tmp_path / 'executed'
    checkpoint = torch.load(folder / FILE, weights_only=True)
    torch.save({**checkpoint, 'best_model': Payload(marker)}, folder / 'payload.pth')
    (folder / 'bare.pth').write_bytes(pickle.dumps(Payload(marker), protocol=2))
    for name in ('payload.pth', 'bare.pth'):
        assert name in refusal(pretrained_cfg_overlay=dict(file=str(folder / name)))
        assert name in refusal(pretrained_cfg_overlay=dict(url=f'{server.url}/{name}'))
    assert files(cache) == []
    assert not marker.exists()


def test_validate_reports_a_missing_network_in_one_line(photos, capsys, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError(OSError('Network is unreachable'))
    monkeypatch.setattr(torch.hub, 'urlopen', no_network)
    with pytest.raises(SystemExit) as end:
        validate_cli.main([str(photos), '--model', NAME, '--pretrained', '-j', '0'])
    assert end.value.code == 2
    *log, error = capsys.readouterr().err.splitlines()
    assert not [line for line in log if 'Traceback' in line]
    assert agmax_timm.weights.released.default_cfgs['agmax_resnet50'].default.url in error and 'unreachable' in error
    assert ': use a copy' in error and error.endswith('--model local-dir:FOLDER')


# ---- What becomes of the models ----

@pytest.mark.filterwarnings('ignore:.*torch.jit.script:FutureWarning')
def test_the_models_can_be_copied_pickled_and_scripted(folder):
    model = create(pretrained_cfg_overlay=dict(file=str(folder / FILE)))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.jit.script(model)):
        assert_same_logits(other, model)


def test_saved_models_load_without_this_package(folder, tmp_path):
    model = create(pretrained_cfg_overlay=dict(file=str(folder / FILE)))
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / 'config.json').read_text())['architecture'] == 'resnet50'
    code = (
        'import sys, timm, torch; '
        'model = timm.create_model(sys.argv[1], pretrained=True).eval(); '
        'torch.save(model(torch.load(sys.argv[2])), sys.argv[3])')
    torch.save(images(), tmp_path / 'images.pth')
    run_in_plain_timm(code, f'local-dir:{tmp_path}', 'images.pth', 'logits.pth', cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / 'logits.pth'), model(images()))
