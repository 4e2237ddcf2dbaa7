"""Publishing with the real client, to a Hub on 127.0.0.1 that stores files and fails on request."""
import dataclasses
import hashlib
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import struct
import time
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file

import agmax_timm.publish
from agmax_timm.assembly import model as build
from agmax_timm.assembly.model import create_named_model
from agmax_timm.base.errors import DataError, OptionError
from agmax_timm.base.hub_connection import NoConnectionError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights import publishing
from agmax_timm.weights.base_model import find_base
from agmax_timm.weights.hub import Destination, HubError, check_destination, publish
from agmax_timm.weights.staging import load_folder, stage, try_staging
from tests.helpers import hub_server
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.ranks import finish_ranks, logs, run_command, start_ranks, torchrun_environment
from tests.helpers.run_files import load

CLOSED = 'http://127.0.0.1:9'  # nothing listens on this port
OWNER_SCOPE = [{'entity': {'type': 'user', 'name': 'ann'}, 'permissions': ['repo.content.read', 'repo.write']}]
READ_SCOPE = [{'entity': {'type': 'user', 'name': 'ann'}, 'permissions': ['repo.content.read']}]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with hub_server.serve(tmp_path_factory.mktemp('storage')) as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    """The empty Hub, with the user ann and her tokens."""
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)  # what HF_HUB_DISABLE_XET=1 sets at import
    for state in (server.repos, server.users, server.requests, server.faults):
        state.clear()
    for path in server.storage.iterdir():
        path.unlink()
    server.add_user('hf_write', 'ann', orgs=[('lab', 'write'), ('readers', 'read')])
    server.add_user('hf_read', 'ann', 'read')
    server.add_user('hf_fine', 'ann', 'fineGrained', scoped=OWNER_SCOPE)
    server.add_user('hf_fine_read', 'ann', 'fineGrained', scoped=READ_SCOPE)
    return server


@pytest.fixture
def upload(hub, staged):
    """Function: publish as ann, without waiting between attempts."""
    def upload(folder=staged, repo_id='ann/net', waits=(0., 0.), **kwargs):
        return publish(folder, Destination(repo_id, token='hf_write', endpoint=hub.url, waits=waits, **kwargs))
    return upload


def contents(files):
    return {name: file.content for name, file in files.items() if name != '.gitattributes'}


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


# What arrives


def test_all_files_are_published_in_one_commit(hub, upload, staged):
    url = upload()
    commits = hub.repos['ann/net'].branches['main']
    assert len(commits) == 2 and url == f'{hub.url}/ann/net/commit/{commits[-1].oid}'
    assert not hub.repos['ann/net'].private
    found = contents(hub.files('ann/net'))
    card = found.pop('README.md').decode()
    local = {path.name: path.read_bytes() for path in staged.iterdir()}
    text = local.pop('README.md').decode()
    assert found == local
    card, _, record = card.rpartition('\n\n<!-- agmax_timm wrote ')
    assert f'{card}\n' == text.replace('local-dir:.', 'hf_hub:ann/net').replace(
        "pipeline('image-classification', '.')", "pipeline('image-classification', 'ann/net')")
    assert json.loads(record.removesuffix(' -->\n'))['files'].keys() == local.keys()
    assert 'local-dir' not in card and "'.'" not in card
    assert ModelCard(card).data.to_dict() == ModelCard(text).data.to_dict()


def test_a_missing_branch_is_created(hub, upload):
    upload()
    upload(revision='v2')
    upload(revision='v2')
    branches = hub.repos['ann/net'].branches
    assert set(branches) == {'main', 'v2'} and len(branches['main']) == 2
    of_branch = hub.files('ann/net', 'v2')['README.md'].content
    assert b"'hf_hub:ann/net@v2'" in of_branch
    assert b"pipeline('image-classification', 'ann/net', revision='v2')" in of_branch
    assert b"'hf_hub:ann/net'" in hub.files('ann/net')['README.md'].content


def test_a_pull_request_does_not_change_the_branch(hub, upload):
    url = upload(create_pr=True)
    branches = hub.repos['ann/net'].branches
    assert url == f'{hub.url}/ann/net/discussions/1'
    assert len(branches['main']) == 1 and 'model.safetensors' in branches['refs/pr/1'][-1].files


def test_private_is_refused_for_a_public_repository(hub, upload):
    upload(private=True)
    assert hub.repos['ann/net'].private
    upload(private=True)
    upload(repo_id='ann/open')
    before = hub.files('ann/open')
    with pytest.raises(HubError, match="ann/open' exists and is public: make it private"):
        upload(repo_id='ann/open', private=True)
    with pytest.raises(HubError, match="ann/open' exists and is public"):
        check_destination(Destination('ann/open', token='hf_write', private=True, endpoint=hub.url))
    check_destination(Destination('ann/net', token='hf_write', private=True, endpoint=hub.url))
    check_destination(Destination('ann/new', token='hf_write', private=True, endpoint=hub.url))
    assert hub.files('ann/open') == before


def test_an_older_card_is_replaced_and_unknown_files_are_not_published(hub, upload, staged, tmp_path):
    upload()
    folder = shutil.copytree(staged, tmp_path / 'hub')
    (folder / 'README.md').write_text((folder / 'README.md').read_text() + '\nMore.\n')
    (folder / 'pytorch_model.bin').write_bytes(b'secret')
    upload(folder)
    assert b'\nMore.\n' in hub.files('ann/net')['README.md'].content
    assert 'pytorch_model.bin' not in hub.files('ann/net')
    assert hub.count('PUT', '/storage/') == 2  # weights and curves, once


def test_publishing_the_same_files_makes_no_commit(hub, upload):
    assert upload() == upload()
    assert len(hub.repos['ann/net'].branches['main']) == 2


def edit_on_hub(hub, repo_id, name, edit, title='Update README.md'):
    """Commit a change in the name of somebody else."""
    branch = hub.repos[repo_id].branches['main']
    files = dict(branch[-1].files)
    files[name] = hub_server.File(edit(files[name].content) if name in files else edit(b''), False)
    branch.append(hub_server.Commit(hashlib.sha1(f'{len(branch)}{title}'.encode()).hexdigest(), title, files))


def test_publishing_another_model_keeps_files_and_text_of_the_owner(hub, upload, make_saved, tmp_path, caplog):
    upload()
    edit_on_hub(hub, 'ann/net', 'README.md', lambda content: content.replace(
        b'\n<!-- agmax_timm: results', b'\nOur own words.\n\n<!-- agmax_timm: results'))
    edit_on_hub(hub, 'ann/net', 'LICENSE', lambda content: b'All yours.')
    stage(make_saved(num_classes=6, run_dir=None), tmp_path / 'hub')
    with caplog.at_level('INFO'):
        upload(tmp_path / 'hub')
    commits = hub.repos['ann/net'].branches['main']
    assert len(commits) == 5  # one more
    found = contents(hub.files('ann/net'))
    assert found.keys() == {'config.json', 'model.safetensors', 'README.md', 'train_hparams.yaml', 'LICENSE'}
    card = found['README.md'].decode()
    assert card.count('Our own words.') == 1 and '- **Classes:** 6' in card and '- **Classes:** 3' not in card
    changes = ['replaced: config.json, model.safetensors, train_hparams.yaml, README.md',
               'deleted: summary.csv, curves.png', 'kept in README.md as changed on the Hub: text']
    told = [message for message in caplog.messages if message.startswith('ann/net: ')]
    assert [line.split(': ', 1)[1] for line in told][-2:] == changes[-2:] and commits[-1].description.splitlines() == [
        line.removeprefix('ann/net: ') for line in told]


def test_files_changed_on_the_hub_are_not_overwritten(hub, upload, make_saved, tmp_path):
    """Numbers of the card and another file were changed by somebody else."""
    upload()
    edit_on_hub(hub, 'ann/net', 'README.md', lambda content: content.replace(b'66.6667 |', b'99.0000 |'))
    edit_on_hub(hub, 'ann/net', 'config.json', lambda content: content + b'\n')
    stage(make_saved(metrics=dict(top1=50.)), tmp_path / 'hub')
    before = hub.files('ann/net')
    with pytest.raises(HubError) as error:
        upload(tmp_path / 'hub')
    assert all(words in one_line(error) for words in ("'ann/net': ", 'config.json were not', 'README.md was changed'))
    assert '(section results)' in one_line(error)
    assert hub.files('ann/net') == before
    upload(tmp_path / 'hub', replace_card=True, replace_files=True)
    assert b'| 50.0000 |' in hub.files('ann/net')['README.md'].content


def test_a_commit_during_publishing_is_considered(hub, upload, make_saved, tmp_path, monkeypatch):
    upload()
    stage(make_saved(metrics=dict(top1=50.)), tmp_path / 'hub')
    validate, late = HfApi._validate_yaml, [True]

    def validate_and_edit(*args, **kwargs):
        if late:
            late.pop()
            edit_on_hub(hub, 'ann/net', 'README.md', lambda content: content + b'\nLate words.\n')
        return validate(*args, **kwargs)
    monkeypatch.setattr(HfApi, '_validate_yaml', validate_and_edit)
    upload(tmp_path / 'hub')
    card = hub.files('ann/net')['README.md'].content.decode()
    assert 'Late words.' in card and '| 50.0000 |' in card and hub.count('POST', '/commit/') == 3


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


# Before a run


@pytest.mark.parametrize('token, repo_id', [
    ('hf_write', 'ann/net'), ('hf_write', 'Ann/net'), ('hf_write', 'lab/net'), ('hf_fine', 'ann/net')])
def test_tokens_that_can_write_are_accepted(hub, token, repo_id):
    check_destination(Destination(repo_id, token=token, endpoint=hub.url))


@pytest.mark.parametrize('token, repo_id, message', [
    ('hf_wrong', 'ann/net', 'the token of the Hugging Face Hub is not valid: log in with `hf auth login`'),
    ('hf_read', 'ann/net', "the token of 'ann' cannot write to 'ann/net': make one that can at https"),
    ('hf_fine_read', 'ann/net', "the token of 'ann' cannot write to 'ann/net"),
    ('hf_fine', 'lab/net', "not a member of 'lab"),
    ('hf_write', 'bob/net', "not a member of 'bob': publish to 'ann/NAME'"),
    ('hf_write', 'readers/net', "can only read in 'readers"),
])
def test_tokens_that_cannot_write_are_refused(hub, token, repo_id, message):
    with pytest.raises(HubError) as error:
        check_destination(Destination(repo_id, token=token, endpoint=hub.url))
    assert message in one_line(error)


def test_a_pull_request_to_others_needs_a_token_that_can_write(hub):
    check_destination(Destination('bob/net', token='hf_write', create_pr=True, endpoint=hub.url))
    with pytest.raises(HubError, match="the token of 'ann' can only read"):
        check_destination(Destination('bob/net', token='hf_read', create_pr=True, endpoint=hub.url))


def test_a_missing_token_is_refused_with_the_remedy(hub, monkeypatch, tmp_path):
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'none'))
    with pytest.raises(HubError, match='no token .*: log in with `hf auth login`'):
        check_destination(Destination('ann/net', endpoint=hub.url))
    assert hub.requests == []


def test_a_hub_without_a_connection_is_refused_at_once(caplog):
    with pytest.raises(NoConnectionError, match=r'no connection to 127.0.0.1 \(.* refused\): publish later'):
        check_destination(Destination('ann/net', token='hf_write', endpoint=CLOSED, waits=(60.,)))
    assert caplog.records == []


def test_a_failing_hub_is_reported_after_some_attempts(hub, caplog):
    hub.fail('GET', '/whoami', 503, 'busy', times=3)
    with pytest.raises(HubError) as error:
        check_destination(Destination('ann/net', token='hf_write', endpoint=hub.url, waits=(0., 0.)))
    assert 'does not say who owns the token' in one_line(error)
    assert sum('trying again' in record.message for record in caplog.records) == 2


# Loading


@pytest.fixture
def loading(hub, monkeypatch, tmp_path):
    """Function: the weights of a pretrained model, with the Hub at this address and a new cache."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))

    def load(name='hf_hub:ann/net', url=hub.url, **kwargs):
        monkeypatch.setattr(constants, 'ENDPOINT', url)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}')
        return create_named_model(name, pretrained=True, **kwargs).state_dict()
    return load


def test_the_cache_is_used_without_a_connection(hub, upload, loading, caplog):
    upload()
    expected = loading()
    cached = loading(url=CLOSED)
    assert expected.keys() == cached.keys() and all(torch.equal(expected[name], cached[name]) for name in expected)
    assert 'Retrying' not in caplog.text


@pytest.mark.parametrize('name', ['hf_hub:ann/net', 'test_resnet'])
def test_weights_without_a_connection_are_refused_at_once(loading, caplog, name):
    start = time.monotonic()
    with pytest.raises(OptionError) as error:
        loading(name, CLOSED)
    assert time.monotonic() - start < 5 and 'Retrying' not in caplog.text
    assert re.fullmatch(
        rf"--model .?{name}.?: .* 127.0.0.1 .*refused.*: use .*--model local-dir:FOLDER", one_line(error))


def test_data_without_a_connection_is_refused_at_once(monkeypatch, tmp_path, caplog):
    config = pytest.importorskip('datasets').config
    monkeypatch.setattr(config, 'HF_ENDPOINT', CLOSED)
    monkeypatch.setattr(constants, 'ENDPOINT', CLOSED)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', CLOSED + '/{repo_id}/resolve/{revision}/{filename}')
    start = time.monotonic()
    with pytest.raises(DataError, match='no connection to .*127.0.0.1.*: use a copy'):
        create_dataset('hfds/ann/bees', tmp_path, 'train')
    assert time.monotonic() - start < 5 and 'Retrying' not in caplog.text


def test_the_offline_mode_is_named(loading, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)  # what HF_HUB_OFFLINE=1 sets at import
    with pytest.raises(OptionError, match="--model .*test_resnet.*: HF_HUB_OFFLINE .*: use a copy"):
        loading('test_resnet')


def test_loading_tries_a_busy_hub_again(hub, upload, loading, staged):
    upload()
    hub.fail('HEAD', '/resolve/', 503, 'busy')
    assert loading().keys() == load_tensors((staged / 'model.safetensors').read_bytes()).keys()


def test_other_errors_are_reported_with_the_cache(upload, loading):
    upload()
    loading()
    with pytest.raises(OptionError, match="--model 'hf_hub:ann/net' does not take all of --model-kwargs"):
        loading(url=CLOSED, no_such_argument=1)


@pytest.mark.parametrize('flags, message', [
    (['--push-to-hub', 'net'], "--push-to-hub 'net': expected OWNER/NAME, got 'net'"),
    (['--push-to-hub', 'a/b/c'], "--push-to-hub 'a/b/c': Repo id must be in the form"),
    (['--push-to-hub', 'ann/../x'], "--push-to-hub 'ann/../x': "),
    (['--push-to-hub', 'ann/a--b'], "--push-to-hub 'ann/a--b': Cannot have --"),
    (['--push-to-hub', 'ann/net', '--hub-revision', '../x'], "--hub-revision '../x': '../x' cannot be a branch"),
    (['--push-to-hub', 'ann/net', '--hub-revision', 'v2', '--hub-pr'], '--hub-pr opens a pull request against main'),
    (['--hub-dataset', 'My Photos'], "--hub-dataset 'My Photos' is not a name of a data set on the Hub"),
    (['--hub-private'], '--hub-private needs --push-to-hub OWNER/NAME'),
    (['--hub-revision', 'v2'], '--hub-revision needs --push-to-hub'),
    (['--hub-pr'], '--hub-pr needs --push-to-hub'),
    (['--hub-replace-card'], '--hub-replace-card needs --push-to-hub'),
    (['--hub-replace-files'], '--hub-replace-files needs --push-to-hub'),
])
def test_invalid_flags_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as status:
        parse_train_args(['DIR', *flags])
    error = capsys.readouterr().err
    assert status.value.code == 2 and message in error and error.count('\n') == 1


# Faults


@pytest.mark.slow
@pytest.mark.parametrize('method, path', [
    ('POST', '/repos/create'), ('POST', '/validate-yaml'), ('POST', '/preupload/'), ('POST', '/objects/batch'),
    ('PUT', '/storage/'), ('POST', '/commit/'), ('POST', '/branch/')])
def test_a_cut_connection_is_tried_again(hub, upload, method, path):
    hub.fail(method, path, hub_server.CUT)
    upload(revision='v2')
    assert 'model.safetensors' in hub.files('ann/net', 'v2')


@pytest.mark.slow
@pytest.mark.parametrize('status', [429, 500, 502, 503, 504])
def test_a_busy_hub_is_tried_again(hub, upload, status):
    hub.fail('POST', '/commit/', status, times=2)
    upload()
    assert len(hub.repos['ann/net'].branches['main']) == 2 and hub.count('POST', '/commit/') == 3


def test_the_time_of_retry_after_is_waited(hub, upload, caplog):
    hub.fail('POST', '/repos/create', 429, 'slow down', Retry_After=1)
    upload(waits=(0., 0.))
    assert '429 slow down; trying again in 1 s' in caplog.text


def test_the_number_of_attempts_is_limited(hub, upload):
    hub.fail('POST', '/commit/', 500, 'broken', times=99)
    with pytest.raises(HubError, match="cannot upload .*hub' to 'ann/net': 500 broken"):
        upload()
    assert hub.count('POST', '/commit/') == 3
    assert 'config.json' not in hub.files('ann/net')


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, upload):
    """The next attempt finds the commit."""
    hub.fail('POST', '/commit/', hub_server.LOST)
    upload()
    assert len(hub.repos['ann/net'].branches['main']) == 2


@pytest.mark.parametrize('fault', [hub_server.CUT, hub_server.LOST])
def test_a_pull_request_is_not_opened_twice(hub, upload, fault):
    hub.fail('POST', '/commit/', fault)
    with pytest.raises(HubError, match='cannot upload'):
        upload(create_pr=True)
    assert hub.count('POST', '/commit/') == 1
    hub.fail('POST', '/commit/', 503)
    upload(create_pr=True)  # an answer came: nothing was opened


@pytest.mark.parametrize('status, method, path, message', [
    (401, 'POST', '/repos/create', '401 injected'),
    (403, 'POST', '/commit/', '403 injected'),
    (404, 'POST', '/preupload/', '404 injected'),
    (409, 'POST', '/commit/', '409 injected'),
    (400, 'POST', '/validate-yaml', 'Invalid metadata in README.md'),
    (403, 'PUT', '/storage/', 'to the Hub. 403 injected'),
])
def test_a_refusal_is_one_line_and_nothing_is_committed(hub, upload, staged, status, method, path, message):
    hub.fail(method, path, status, times=99)
    before = {item.name: item.read_bytes() for item in staged.iterdir()}
    with pytest.raises(HubError) as error:
        upload()
    assert f"cannot upload '{staged}' to 'ann/net': " in one_line(error) and message in one_line(error)
    assert hub.count('POST', '/commit/') == (1 if path == '/commit/' else 0)
    assert {item.name: item.read_bytes() for item in staged.iterdir()} == before


@pytest.mark.parametrize('metadata, said', [
    ("datasets: [My Photos!]", '"datasets[0]" My Photos! is not valid'),
    ("datasets: [a--b]", '"datasets[0]" a--b is not valid'),
    ("datasets: [my-photos-]", '"datasets[0]" my-photos- is not valid'),
    ("base_model: a/b/c", '"base_model[0]" a/b/c is not valid'),
    ("license: mine", '"license" must be one of'),
    ("tags: timm", '"tags" must be a list'),
    ("model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d}, metrics: [{type: m, value: 1}]}]}]",
     '"model-index" needs type and name of a dataset'),
])
def test_the_server_refuses_cards_as_the_hub_does(hub, upload, staged, tmp_path, metadata, said):
    folder = shutil.copytree(staged, tmp_path / 'hub')
    (folder / 'README.md').write_text(f'---\n{metadata}\n---\n# x\n')
    with pytest.raises(HubError) as error:
        upload(folder)
    assert 'Invalid metadata in README.md' in one_line(error) and said in one_line(error)
    assert not hub.count('POST', '/commit/')


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {'dataset': '', 'data_dir': '/home/ann/My Photos!'}, {'dataset': '', 'data_dir': '/x/photos-'},
    {'dataset': '', 'data_dir': '/x/a--b'}, {'dataset': 'hfds/../data'}, {'dataset': 'demo'},
    {'dataset': 'hfds/a/b--c'}, {'dataset': '', 'data_dir': '/x/y', 'hub_dataset': 'ann/bees'}])
def test_cards_of_any_data_set_are_accepted_by_the_hub(hub, upload, make_saved, tmp_path, options):
    stage(make_saved(options={'model': 'test_resnet', 'val_split': 'val', **options}), tmp_path / 'hub')
    upload(tmp_path / 'hub')
    card = ModelCard(hub.files('ann/net')['README.md'].content.decode())
    assert card.data.datasets == ([options['hub_dataset']] if 'hub_dataset' in options else None)
    assert card.data.eval_results


# Folders that are not what they seem


class Payload:
    def __reduce__(self):
        return os.system, ('touch executed',)


def edit_config(folder, change):
    config = json.loads((folder / 'config.json').read_text())
    change(config)
    (folder / 'config.json').write_text(json.dumps(config))


def edit_weights(folder, change):
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors')


def write_header(folder, header, size=None):
    data = json.dumps(header).encode()
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', size or len(data)) + data + bytes(64))


def entry(offsets, shape=(4, 4)):
    return {'fc.weight': {'dtype': 'F32', 'shape': shape, 'data_offsets': offsets}}


HOSTILE = {
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'holds no model.safetensors'),
    'no config': (lambda f: (f / 'config.json').unlink(), 'holds no config.json'),
    'pickle in place of weights': (
        lambda f: (f / 'model.safetensors').write_bytes(pickle.dumps(Payload())), "model.safetensors' is not sound"),
    'pickle beside no weights': (
        lambda f: ((f / 'model.safetensors').unlink(), (f / 'pytorch_model.bin').write_bytes(pickle.dumps(Payload()))),
        'holds no model.safetensors'),
    'header beyond the file': (lambda f: write_header(f, entry([0, 64]), size=2 ** 40), 'is not sound: '),
    'data beyond the file': (lambda f: write_header(f, entry([0, 6400], (40, 40))), 'is not sound: '),
    'shape that is not its size': (lambda f: write_header(f, entry([0, 64], (400, 400))), 'is not sound: '),
    'truncated': (lambda f: (f / 'model.safetensors').write_bytes((f / 'model.safetensors').read_bytes()[:-9]),
                  'is not sound: '),
    'missing tensor': (lambda f: edit_weights(f, lambda t: t.pop('fc.bias')),
                       'does not fit config.json: missing fc.bias'),
    'tensor too many': (lambda f: edit_weights(f, lambda t: t.update(extra=torch.ones(2))),
                        'does not fit config.json: unexpected extra'),
    'other classes': (lambda f: edit_config(f, lambda c: c.update(num_classes=9)), 'fc.bias [3] in place of [9]'),
    'other architecture': (lambda f: edit_config(f, lambda c: c.update(architecture='test_vit')), 'config.json'),
    'unknown architecture': (lambda f: edit_config(f, lambda c: c.update(architecture='../../net')),
                             "timm has no architecture '../../net'"),
    'architecture of another kind': (lambda f: edit_config(f, lambda c: c.update(architecture=['x'])),
                                     "timm has no architecture ['x']"),
    'file elsewhere': (lambda f: edit_config(f, lambda c: c['pretrained_cfg'].update(file='../../etc/weights.pth')),
                       "file '../../etc/weights.pth' points to weights elsewhere"),
    'hub file elsewhere': (lambda f: edit_config(f, lambda c: c['pretrained_cfg'].update(
        hf_hub_filename='../../x.bin')), "hf_hub_filename '../../x.bin' points to weights elsewhere"),
    'argument that is a path': (lambda f: edit_config(f, lambda c: c['model_args'].update(
        checkpoint_path='../../x.pth')), "model_args checkpoint_path '../../x.pth' is a path"),
    'argument of no model': (lambda f: edit_config(f, lambda c: c['model_args'].update(exec='1')),
                             'timm cannot build its model'),
    'no JSON': (lambda f: (f / 'config.json').write_text('{'), "config.json' is not JSON"),
    'deep JSON': (lambda f: (f / 'config.json').write_text('[' * 200_000), "config.json' is not JSON"),
    'JSON of another kind': (lambda f: (f / 'config.json').write_text('[1]'), 'has no pretrained_cfg'),
    'link': (lambda f: ((f / 'summary.csv').unlink(), (f / 'summary.csv').symlink_to('/etc/hostname')), 'is a link'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_an_invalid_folder_is_refused_before_any_request(hub, upload, staged, tmp_path, monkeypatch, name):
    spoil, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(staged, tmp_path / 'hub')
    spoil(folder)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(HubError) as error:
        upload(folder)
    assert message in one_line(error) and str(folder) in one_line(error)
    assert hub.requests == [] and sorted(tmp_path.rglob('*')) == before  # nothing executed, nothing written


# The commands


@pytest.fixture
def command(hub, monkeypatch, saved):
    """Function: run python -m agmax_timm.publish as ann in this process. Every run contains `saved`."""
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)  # what HF_ENDPOINT sets at import
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', hub.url + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    monkeypatch.setattr(publishing, 'read_model', lambda path, use_ema: saved)
    return lambda *words: agmax_timm.publish.main([str(word) for word in words])


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
    ([], 'state_dict_ema', 'the EMA of the weights, by which the run ranked its checkpoints'),
    (['--use-ema'], 'state_dict_ema', 'the EMA of the weights, by which the run ranked its checkpoints'),
    (['--raw'], 'state_dict', 'the weights without averaging; the run ranked its checkpoints by their EMA'),
])
def test_the_published_weights_are_the_ranked_or_the_given_ones(
        hub, monkeypatch, ema_run, tmp_path, caplog, flags, key, said):
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    run = shutil.copytree(ema_run, tmp_path / 'run')
    with caplog.at_level('INFO'):
        agmax_timm.publish.main([str(run), 'ann/net', *flags])
    assert f'{run}/model_best.pth.tar: {said}' in caplog.messages
    published = load_tensors(hub.files('ann/net')['model.safetensors'].content)
    expected = load(run / 'model_best.pth.tar')[key]
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[name], value) for name, value in expected.items())
    assert f'safetensors; {said}\n' in hub.files('ann/net')['README.md'].content.decode()


def test_the_card_states_the_licence_before_the_configuration(hub, command, upload, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    upload()
    args = parse_train_args(['DIR', '--model', 'hf_hub:ann/net', '--pretrained'])
    model = SimpleNamespace(pretrained_cfg={'license': 'mit'})
    assert find_base(args, model) == {'name': 'ann/net', 'license': 'mit'}
    edit_on_hub(hub, 'ann/net', 'README.md',
                lambda content: content.replace(b'license: other', b'license: cc-by-nc-4.0'))
    assert find_base(args, model) == {'name': 'ann/net', 'license': 'cc-by-nc-4.0'}


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
    for source, said in ((tmp_path, 'are not finite: nothing to publish'), (folder, 'missing fc.bias')):
        with pytest.raises(SystemExit) as status:
            command(source, 'ann/net')
        told = capsys.readouterr().err.splitlines()[-1]
        assert status.value.code == 2 and said in told and 'continue' not in told


@pytest.fixture
def environment(hub, tmp_path):
    return {**{name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'PYTHONPATH'))},
            'HF_ENDPOINT': hub.url, 'HF_TOKEN': 'hf_write', 'HF_HOME': str(tmp_path / 'home'),
            'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'OMP_NUM_THREADS': '1'}


SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '1',
         '--warmup-epochs', '0', '--lr', '0.05', '--experiment', 'run']


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
    publish(folder, Destination('ann/net', token='hf_write', endpoint=hub.url))

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
    assert one_line(error).startswith(f"--model 'local-dir:{folder}': ")


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
