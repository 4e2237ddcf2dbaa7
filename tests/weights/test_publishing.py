"""The command of publishing, and runs with --push-to-hub, on a Hub on 127.0.0.1."""
import dataclasses
import json
import os
import re
import resource
import shlex
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load as load_tensors

import agmax_timm.publish
from agmax_timm.assembly import model as build
from agmax_timm.assembly.model import create_named_model
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights import publishing
from agmax_timm.weights.base_model import find_base
from agmax_timm.weights.hub import Destination, HubError, publish
from agmax_timm.weights.staging import load_folder, stage, try_staging
from tests.helpers.hostile_folders import HOSTILE
from tests.helpers.hub_server import contents, edit_on_hub
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.ranks import finish_ranks, logs, run_command, start_ranks, torchrun_environment
from tests.helpers.run_files import load

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '1',
         '--warmup-epochs', '0', '--lr', '0.05', '--experiment', 'run']


def test_the_command_stages_a_run_and_can_continue_after_a_failure(hub, command, tmp_path, capsys):
    run_dir = tmp_path / 'a run'
    run_dir.mkdir()
    hub.fail('POST', '/commit/', 403, 'no')
    with pytest.raises(SystemExit) as status:
        command(run_dir, 'ann/net', '--private', '--revision', 'v2')
    told = capsys.readouterr().err.splitlines()[-1]
    assert status.value.code == 2 and told.startswith('python -m agmax_timm.publish: error: cannot upload ')
    folder = run_dir / 'hub'
    words = shlex.split(told.split(f"{folder}' stays; to continue: ")[1])
    assert words == [
        'python', '-m', 'agmax_timm.publish', str(folder), 'ann/net', '--private', '--revision', 'v2']
    command(*words[3:])
    assert f'{hub.url}/ann/net/commit/' in capsys.readouterr().out
    assert 'model.safetensors' in hub.files('ann/net', 'v2') and hub.repos['ann/net'].private


def test_an_exported_onnx_model_is_published_with_its_model(hub, command, staged, tmp_path):
    folder = shutil.copytree(staged, tmp_path / 'exported')
    (folder / 'model.onnx').write_bytes(b'onnx')
    command(folder, 'ann/net')
    assert hub.files('ann/net')['model.onnx'].content == b'onnx'
    (folder / 'model.onnx').unlink()
    command(folder, 'ann/net')
    assert 'model.onnx' not in hub.files('ann/net')


def test_files_of_others_are_not_replaced_by_a_staged_model(hub, command, tmp_path, capsys):
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub' / 'README.md').write_text('mine')
    with pytest.raises(SystemExit):
        command(tmp_path, 'ann/net')
    assert f"'{tmp_path}/hub' is needed to stage the model, and holds other files: rename it" in capsys.readouterr().err
    command(tmp_path / 'best.pth.tar', 'ann/net')
    assert (tmp_path / 'best-hub' / 'config.json').is_file() and (tmp_path / 'hub' / 'README.md').read_text() == 'mine'


def test_the_name_of_the_data_set_can_be_given(hub, command, tmp_path, capsys):
    command(tmp_path, 'ann/net', '--hub-dataset', 'ann/bees')
    assert ModelCard(hub.files('ann/net')['README.md'].content.decode()).data.datasets == ['ann/bees']
    for words, said in (
            ([tmp_path / 'hub', 'ann/net', '--hub-dataset', 'ann/bees'], 'is staged already: drop --hub-dataset'),
            ([tmp_path, 'ann/net', '--hub-dataset', 'a--b'], "--hub-dataset 'a--b' is not a name of a data set")):
        with pytest.raises(SystemExit) as status:
            command(*words)
        assert status.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_ends_staging_without_files(hub, command, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit):
            command(tmp_path, 'ann/net')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot stage '{tmp_path}/hub': " in told and 'File too large' in told
    assert ' stays; ' in told and told.endswith(f'to continue: python -m agmax_timm.publish {tmp_path} ann/net')
    assert list(tmp_path.iterdir()) == [] and not hub.repos


@pytest.mark.parametrize('flags, key, said', [
    ([], 'state_dict_ema', 'the EMA of the weights, by which the run'),
    (['--use-ema'], 'state_dict_ema', 'the EMA of the weights, by which the run'),
    (['--raw'], 'state_dict', 'the raw weights; the run ranked'),
])
def test_the_published_weights_are_the_ranked_or_the_given_ones(
        hub, monkeypatch, ema_run, tmp_path, caplog, flags, key, said):
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    run = shutil.copytree(ema_run, tmp_path / 'run')
    with caplog.at_level('INFO'):
        agmax_timm.publish.main([str(run), 'ann/net', *flags])
    assert any('/model_best.pth.tar' in message and said in message for message in caplog.messages)
    published = load_tensors(hub.files('ann/net')['model.safetensors'].content)
    expected = load(run / 'model_best.pth.tar')[key]
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[name], value) for name, value in expected.items())
    assert f'safetensors; {said}' in hub.files('ann/net')['README.md'].content.decode()


def test_the_card_states_the_licence_before_the_configuration(hub, command, upload, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    upload()
    args = parse_train_args(['DIR', '--model', 'hf_hub:ann/net', '--pretrained'])
    model = SimpleNamespace(pretrained_cfg={'license': 'mit'})
    assert find_base(args, model) == {'name': 'ann/net', 'license': 'mit'}
    edit_on_hub(hub, 'ann/net', 'README.md',
                lambda content: content.replace(b'license: other', b'license: cc-by-nc-4.0'))
    assert find_base(args, model) == {'name': 'ann/net', 'license': 'cc-by-nc-4.0'}


def test_an_invalid_branch_is_refused_before_anything_is_staged(hub, command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(tmp_path, 'ann/net', '--revision', 'a..b')
    assert "error: --revision 'a..b': 'a..b' cannot be a branch" in capsys.readouterr().err
    assert hub.requests == [] and list(tmp_path.iterdir()) == []


def test_raw_is_refused_for_a_staged_folder(command, staged, capsys):
    with pytest.raises(SystemExit) as status:
        command(staged, 'ann/net', '--raw')
    assert status.value.code == 2 and 'staged already: drop --raw' in capsys.readouterr().err


def test_a_given_licence_is_stated_in_card_and_configuration(hub, command, staged, tmp_path, capsys):
    """For a run, and for a folder that was staged without a licence."""
    run_dir, folder = tmp_path / 'run', shutil.copytree(staged, tmp_path / 'hub')
    run_dir.mkdir()
    for source, repo_id in ((run_dir, 'ann/run'), (folder, 'ann/folder')):
        command(source, repo_id, '--license', 'cc-by-4.0')
        files = {name: hub.files(repo_id)[name].content.decode() for name in ('README.md', 'config.json')}
        assert ModelCard(files['README.md']).data.license == 'cc-by-4.0'
        assert '\n- **Licence:** cc-by-4.0\n' in files['README.md'] and 'none is stated' not in files['README.md']
        assert json.loads(files['config.json'])['pretrained_cfg']['license'] == 'cc-by-4.0'
    assert contents(hub.files('ann/run')).keys() == contents(hub.files('ann/folder')).keys()
    load_folder(folder)
    with pytest.raises(SystemExit) as status:
        command(folder, 'ann/folder', '--license', 'apache')
    assert status.value.code == 2 and "--license 'apache': the Hub does not list such" in capsys.readouterr().err


def test_the_command_to_continue_has_the_same_flags(hub, command, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise HubError('no room') from OSError()
    monkeypatch.setattr(publishing, 'stage', fail)
    with pytest.raises(SystemExit):
        command(tmp_path, 'ann/net', '--raw', '--license', 'mit')
    assert capsys.readouterr().err.endswith(
        f'python -m agmax_timm.publish {tmp_path} ann/net --raw --license mit\n')


def test_a_failure_of_publishing_after_a_run_is_returned_and_not_raised(monkeypatch, caplog, tmp_path):
    def fail(*args):
        raise KeyError('surprise')
    monkeypatch.setattr(publishing, 'publish_source', fail)
    failure = train_cli.publish_run(parse_train_args(['DIR', '--push-to-hub', 'ann/net', '--hub-pr']), str(tmp_path))
    assert 'KeyError' in failure and f'to continue: python -m agmax_timm.publish {tmp_path} ann/net --pr' in failure
    assert 'surprise' in caplog.text


def test_a_permanent_failure_has_no_command_to_continue(hub, command, saved, staged, tmp_path, monkeypatch, capsys):
    """Weights that cannot be staged, and an invalid staged folder."""
    broken = dataclasses.replace(saved, state_dict={**saved.state_dict, 'fc.bias': torch.full((3,), float('nan'))})
    monkeypatch.setattr(publishing, 'read_model', lambda path, use_ema=False: broken)
    folder = shutil.copytree(staged, tmp_path / 'hub')
    HOSTILE['missing tensor'][0](folder)
    for source, said in ((tmp_path, 'are not finite, nothing to publish: use another checkpoint'),
                         (folder, 'missing fc.bias: export the folder again')):
        with pytest.raises(SystemExit) as status:
            command(source, 'ann/net')
        told = capsys.readouterr().err.splitlines()[-1]
        assert status.value.code == 2 and said in told and 'continue' not in told


@pytest.fixture
def environment(hub, tmp_path):
    return {**{name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'PYTHONPATH'))},
            'HF_ENDPOINT': hub.url, 'HF_TOKEN': 'hf_write', 'HF_HOME': str(tmp_path / 'home'),
            'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'OMP_NUM_THREADS': '1'}


def test_a_run_is_published_and_loaded_in_plain_timm(hub, environment, command, photos, tmp_path, monkeypatch, capsys):
    """The first upload fails. The printed command publishes, then the model is loaded without this package."""
    hub.fail('POST', '/commit/', 403, 'storage is full', times=1)
    trained = run_command(
        ['train.py', photos, *SMALL, '--agmax', '--output', tmp_path, '--push-to-hub', 'ann/net', '--hub-revision',
         'v2', '--report'], env=environment)
    assert trained.returncode == 69, trained.stderr
    assert '--result' in trained.stdout and (tmp_path / 'run' / 'report.html').exists()
    told = [line for line in trained.stderr.splitlines() if 'not published' in line]
    folder = tmp_path / 'run' / 'hub'
    assert len(told) == 1 and re.search(f'cannot upload .*{folder}.*ann/net.*: 403 storage is full', told[0])
    assert 'Traceback' not in trained.stderr and 'httpx' not in trained.stderr
    words = shlex.split(re.search(r'to continue: (.*)$', told[0])[1])
    assert words == ['python', '-m', 'agmax_timm.publish', str(folder), 'ann/net', '--revision', 'v2']
    capsys.readouterr()
    command(*words[3:])
    assert capsys.readouterr().out == f"{hub.url}/ann/net/commit/{hub.repos['ann/net'].branches['v2'][-1].oid}\n"
    files = hub.files('ann/net', 'v2')
    publish(folder, Destination('ann/net'))

    card = ModelCard(files['README.md'].content.decode())
    accuracy = card.data.eval_results[0].metric_value
    local = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.manual_seed(0)
    torch.save(local(torch.randn(2, 3, 32, 32)), tmp_path / 'logits.pt')
    code = f'''
import timm, torch
from huggingface_hub import constants
constants.HUGGINGFACE_CO_URL_TEMPLATE = {constants.HUGGINGFACE_CO_URL_TEMPLATE!r}
constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = {str(tmp_path / 'cache')!r}, True
expected = torch.load('logits.pt', weights_only=True)
for name in ('hf_hub:ann/net', 'hf_hub:ann/net@v2'):
    model = timm.create_model(name, pretrained=True).eval()
    torch.manual_seed(0)
    assert torch.equal(model(torch.randn(2, 3, 32, 32)), expected)
assert model.pretrained_cfg.get('label_names') == {json.loads(files['config.json'].content).get('label_names')}
'''
    run_in_plain_timm(code, cwd=tmp_path)
    assert hub.count('HEAD', '/ann/net/resolve/v2/model.safetensors') == hub.count('GET', '/storage/') == 1
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    validate_cli.main([str(photos), '-j', '0', '-b', '4', '--model', 'hf_hub:ann/net', '--pretrained'])
    assert json.loads(capsys.readouterr().out.split('--result\n')[1])['top1'] == accuracy
    assert f'| {accuracy:.4f} |' in card.content


@pytest.mark.parametrize('name', ['no config', 'truncated', 'missing tensor', 'unknown architecture', 'no JSON'])
def test_an_invalid_folder_is_refused_in_one_line_when_loaded(staged, tmp_path, name):
    folder = shutil.copytree(staged, tmp_path / 'hub')
    HOSTILE[name][0](folder)
    with pytest.raises(OptionError) as error:
        create_named_model(f'local-dir:{folder}', pretrained=True)
    message = str(error.value)
    assert '\n' not in message and message.startswith(f"--model 'local-dir:{folder}': ")


def train_with_hub(url, argv):
    """Run train.py with this Hub, like HF_ENDPOINT and HF_HUB_DISABLE_XET at import."""
    constants.ENDPOINT, constants.HF_HUB_DISABLE_XET = url, True
    train_cli.main(argv)


def test_only_one_of_several_processes_publishes(hub, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    ranks = start_ranks(2, tmp_path, train_with_hub, hub.url, [
        str(photos), *SMALL, '--agmax', '--output', str(tmp_path), '--push-to-hub', 'ann/net', '--hub-private',
        '--hub-pr'], environment=lambda *rank: {**torchrun_environment(*rank), 'HF_TOKEN': 'hf_write'})
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path)
    assert f'Published: {hub.url}/ann/net/discussions/1' in logs(tmp_path)
    assert hub.count('GET', 'whoami') == hub.count('POST', '/commit/') == 1 and hub.repos['ann/net'].private


@pytest.fixture
def unbuildable(monkeypatch):
    """Let timm build a model only once, so that it cannot be built from its checkpoint."""
    create, built = timm.create_model, []

    def create_once(*args, **kwargs):
        if built:
            raise RuntimeError('no second one')
        built.append(True)
        return create(*args, **kwargs)
    monkeypatch.setattr(timm, 'create_model', create_once)
    monkeypatch.setattr(build, 'create_model', create_once)


@pytest.mark.parametrize('flags', [['--push-to-hub', 'ann/net'], ['--report']])
def test_a_model_that_cannot_be_staged_is_refused_before_training(
        hub, command, unbuildable, photos, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as status:
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), *flags])
    told = capsys.readouterr().err.splitlines()[-1]
    assert status.value.code == 2 and re.search(f"error: {' .?'.join(flags)}.?: ", told) and 'no second one' in told
    assert list(tmp_path.iterdir()) == []


def test_the_trial_of_staging_changes_no_random_number(saved, photos, tmp_path, hub, command, caplog):
    """A published run equals one that is not published."""
    for name in ('plain', 'published'):
        flags = ['--push-to-hub', 'ann/net', '--report'] if name == 'published' else []
        train_cli.main([str(photos), *SMALL, '--agmax', '--output', str(tmp_path), *flags, '--experiment', name])
    states = [load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('plain', 'published')]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_full_temporary_folder_does_not_prevent_a_run(saved, file_size_limit, caplog):
    with file_size_limit(100_000):
        try_staging(saved)
    assert 'was not tested' in caplog.text and 'too large' in caplog.text
    caplog.clear()
    try_staging(saved)
    assert not caplog.text


def test_an_untrained_model_may_have_logits_that_are_not_finite(saved):
    """The statistics of batch norm are still the initial ones."""
    broken = dataclasses.replace(saved, state_dict={**saved.state_dict, 'fc.bias': torch.full((3,), float('nan'))})
    try_staging(broken)
    with pytest.raises(HubError, match='not finite'):
        stage(broken, 'nowhere')


def test_a_token_that_is_not_valid_ends_a_run_before_it_begins(hub, command, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(SystemExit) as status:
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), '--push-to-hub', 'ann/net'])
    error = capsys.readouterr().err
    assert status.value.code == 2
    assert re.search(': --push-to-hub .*ann/net.*: the token .* not valid: ', error.splitlines()[-1])
    assert 'Traceback' not in error and 'Model test_resnet' not in error
    assert not (tmp_path / 'run').exists()


# Changes on the Hub


def test_changes_on_the_hub_are_refused_before_training(hub, command, upload, photos, tmp_path, capsys):
    upload()
    edit_on_hub(hub, 'ann/net', 'README.md', lambda content: content.replace(b'66.6667 |', b'99.0000 |'))
    words = [str(photos), *SMALL, '--output', str(tmp_path), '--push-to-hub', 'ann/net']
    with pytest.raises(SystemExit) as status:
        train_cli.main(words)
    told = capsys.readouterr().err.splitlines()[-1]
    assert status.value.code == 2 and re.search('--push-to-hub .*ann/net.* README.md.* changed', told)
    assert told.endswith(': --hub-replace-card replaces it') and list(tmp_path.iterdir()) == []
    train_cli.main([*words, '--hub-replace-card'])
    assert b'99.0000' not in hub.files('ann/net')['README.md'].content


def test_the_command_names_the_flags_that_overwrite(hub, command, upload, staged, tmp_path, capsys):
    upload()
    edit_on_hub(hub, 'ann/net', 'summary.csv', lambda content: b'mine')
    with pytest.raises(SystemExit) as status:
        command(staged, 'ann/net')
    told = capsys.readouterr().err.splitlines()[-1]
    assert status.value.code == 2 and re.search('summary.csv.* not published from here', told)
    words = shlex.split(told.split('to continue: ')[1])
    assert words == ['python', '-m', 'agmax_timm.publish', str(staged), 'ann/net', '--replace-files']
    command(*words[3:])
    assert hub.files('ann/net')['summary.csv'].content == (staged / 'summary.csv').read_bytes()
