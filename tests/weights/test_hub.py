"""Publishing to a Hub on 127.0.0.1 with the real client. It stores files and fails on request."""
import dataclasses
import json
import re
import shutil
import time

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load as load_tensors

from agmax_timm.assembly.model import create_named_model
from agmax_timm.base.errors import DataError, OptionError
from agmax_timm.base.hub_connection import NoConnectionError
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights.hub import Destination, HubError, check_destination, check_update
from agmax_timm.weights.publishing import publish_source
from agmax_timm.weights.staging import stage
from tests.helpers import hub_server
from tests.helpers.hostile_folders import HOSTILE
from tests.helpers.hub_server import contents, edit_on_hub

CLOSED = 'http://127.0.0.1:9'  # nothing listens on this port


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


# Published files


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


def test_a_pull_request_is_against_the_given_branch(hub, upload, staged, tmp_path):
    """train.py accepts both flags, as publish does."""
    options = parse_train_args(['DIR', '--push-to-hub', 'ann/net', '--hub-revision', 'v2', '--hub-pr'])
    upload(revision='v2')
    (shutil.copytree(staged, tmp_path / 'hub') / 'summary.csv').write_text('epoch\n')
    upload(tmp_path / 'hub', revision=options.hub_revision, create_pr=options.hub_pr)
    branches = hub.repos['ann/net'].branches
    *before, request = branches['refs/pr/1']
    assert request.files['summary.csv'].content == b'epoch\n' and before == branches['v2'] != branches['main']


def test_private_is_refused_for_a_public_repository(hub, upload):
    upload(private=True)
    assert hub.repos['ann/net'].private
    upload(private=True)
    upload(repo_id='ann/open')
    before = hub.files('ann/open')
    with pytest.raises(HubError, match="ann/open' exists and is public: make it private"):
        upload(repo_id='ann/open', private=True)
    with pytest.raises(HubError, match="ann/open' exists and is public"):
        check_destination(Destination('ann/open', private=True))
    check_destination(Destination('ann/net', private=True))
    check_destination(Destination('ann/new', private=True))
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


def test_publishing_another_model_keeps_files_and_text_of_the_owner(hub, upload, make_saved, tmp_path, caplog):
    upload()
    edit_on_hub(hub, 'ann/net', 'README.md', lambda content: content.replace(
        b'\n<!-- agmax_timm: results', b'\nOur own words.\n\n<!-- agmax_timm: results'))
    edit_on_hub(hub, 'ann/net', 'LICENSE', lambda content: b'All yours.')
    stage(make_saved(num_classes=6, run_dir=None), tmp_path / 'hub')
    caplog.clear()
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


def test_a_missing_branch_is_checked_as_the_default_one_from_which_it_starts(hub, upload, staged):
    upload()
    edit_on_hub(hub, 'ann/net', 'config.json', lambda content: content + b'\n')
    to = Destination('ann/net', revision='new')
    with pytest.raises(HubError, match="'ann/net@new': .*config.json were not published from here"):
        check_update(staged, to)
    assert 'new' not in hub.repos['ann/net'].branches
    check_update(staged, dataclasses.replace(to, repo_id='ann/other'))  # a missing repository


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


# Checks before a run


@pytest.mark.parametrize('token, repo_id', [
    ('hf_write', 'ann/net'), ('hf_write', 'Ann/net'), ('hf_write', 'lab/net'), ('hf_fine', 'ann/net')])
def test_tokens_that_can_write_are_accepted(hub, monkeypatch, token, repo_id):
    monkeypatch.setenv('HF_TOKEN', token)
    check_destination(Destination(repo_id))


@pytest.mark.parametrize('token, repo_id, message', [
    ('hf_wrong', 'ann/net', 'not valid: log in with `hf auth login`'),
    ('hf_read', 'ann/net', "cannot write to 'ann/net': make one that can"),
    ('hf_fine_read', 'ann/net', "the token of 'ann' cannot write to 'ann/net"),
    ('hf_fine', 'lab/net', "not a member of 'lab': publish to 'ann/NAME', or open a pull request (--hub-pr of "
     'train.py, --pr of publish)'),
    ('hf_write', 'bob/net', "not a member of 'bob': publish to 'ann/NAME'"),
    ('hf_write', 'readers/net', "who can only read in 'readers': ask for the write role there, or open a pull request "
     '(--hub-pr of train.py, --pr of publish)'),
])
def test_tokens_that_cannot_write_are_refused(hub, monkeypatch, token, repo_id, message):
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(HubError) as error:
        check_destination(Destination(repo_id))
    assert message in one_line(error)


def test_a_pull_request_to_others_needs_a_token_that_can_write(hub, monkeypatch):
    check_destination(Destination('bob/net', create_pr=True))
    monkeypatch.setenv('HF_TOKEN', 'hf_read')
    with pytest.raises(HubError, match="the token of 'ann' can only read"):
        check_destination(Destination('bob/net', create_pr=True))


def test_a_missing_token_is_refused_with_the_remedy(hub, monkeypatch, tmp_path):
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'none'))
    with pytest.raises(HubError, match='no token .*: log in with `hf auth login`'):
        check_destination(Destination('ann/net'))
    assert hub.requests == []


def test_a_hub_without_a_connection_is_refused_at_once(hub, monkeypatch, caplog):
    monkeypatch.setattr(constants, 'ENDPOINT', CLOSED)
    with pytest.raises(NoConnectionError, match=r'no connection to 127.0.0.1 \(.* refused\): publish later'):
        check_destination(Destination('ann/net', waits=(60.,)))
    assert caplog.records == []


def test_a_failing_hub_is_reported_after_some_attempts(hub, caplog):
    hub.fail('GET', '/whoami', 503, 'busy', times=3)
    with pytest.raises(HubError) as error:
        check_destination(Destination('ann/net', waits=(0., 0.)))
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


@pytest.fixture
def waits(monkeypatch):
    """List of the seconds that calls of time.sleep ask for. They return at once."""
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    return waits


@pytest.mark.parametrize('name', ['hf_hub:ann/net', 'test_resnet'])
def test_weights_without_a_connection_are_refused_at_once(loading, caplog, waits, name):
    with pytest.raises(OptionError) as error:
        loading(name, CLOSED)
    assert not waits and 'Retrying' not in caplog.text
    assert re.fullmatch(
        rf"--model .?{name}.?: .* 127.0.0.1 .*refused.*: use .*--model local-dir:FOLDER", one_line(error))


def test_data_without_a_connection_is_refused_at_once(monkeypatch, tmp_path, caplog, waits):
    config = pytest.importorskip('datasets').config
    monkeypatch.setattr(config, 'HF_ENDPOINT', CLOSED)
    monkeypatch.setattr(constants, 'ENDPOINT', CLOSED)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', CLOSED + '/{repo_id}/resolve/{revision}/{filename}')
    with pytest.raises(DataError, match='no connection to .*127.0.0.1.*: use a copy'):
        create_dataset('hfds/ann/bees', tmp_path, 'train')
    assert not waits and 'Retrying' not in caplog.text


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
def test_a_cut_connection_is_tried_again(hub, upload, waits, method, path):
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


# Invalid folders


@pytest.mark.parametrize('name', [name for name in HOSTILE if name != 'no config'])  # which makes a folder staged
def test_an_invalid_folder_is_refused_before_any_request(hub, staged, tmp_path, monkeypatch, name):
    spoil, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(staged, tmp_path / 'hub')
    spoil(folder)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(HubError) as error:
        publish_source(str(folder), Destination('ann/net'), None, '', None)
    assert message in one_line(error) and str(folder) in one_line(error)
    assert hub.requests == [] and sorted(tmp_path.rglob('*')) == before  # nothing executed, nothing written
