"""A Hub on 127.0.0.1, and ways to publish to it."""
import pytest
from huggingface_hub import constants

import agmax_timm.publish
from agmax_timm.weights import publishing
from agmax_timm.weights.hub import Destination, publish
from tests.helpers import hub_server

OWNER_SCOPE = [{'entity': {'type': 'user', 'name': 'ann'}, 'permissions': ['repo.content.read', 'repo.write']}]
READ_SCOPE = [{'entity': {'type': 'user', 'name': 'ann'}, 'permissions': ['repo.content.read']}]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with hub_server.serve(tmp_path_factory.mktemp('storage')) as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    """The empty Hub, with the user ann and her tokens. This process is logged in as ann."""
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)  # what HF_HUB_DISABLE_XET=1 sets at import
    for state in (server.repos, server.users, server.requests, server.faults):
        state.clear()
    for path in server.storage.iterdir():
        path.unlink()
    monkeypatch.setattr(constants, 'ENDPOINT', server.url)  # what HF_ENDPOINT sets at import
    monkeypatch.setattr(
        constants, 'HUGGINGFACE_CO_URL_TEMPLATE', server.url + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    server.add_user('hf_write', 'ann', orgs=[('lab', 'write'), ('readers', 'read')])
    server.add_user('hf_read', 'ann', 'read')
    server.add_user('hf_fine', 'ann', 'fineGrained', scoped=OWNER_SCOPE)
    server.add_user('hf_fine_read', 'ann', 'fineGrained', scoped=READ_SCOPE)
    return server


@pytest.fixture
def upload(hub, staged):
    """Function: publish as ann, without waiting between attempts."""
    def upload(folder=staged, repo_id='ann/net', waits=(0., 0.), **kwargs):
        return publish(folder, Destination(repo_id, waits=waits, **kwargs))
    return upload


@pytest.fixture
def command(hub, monkeypatch, saved):
    """Function: run python -m agmax_timm.publish as ann in this process. Every run contains `saved`."""
    monkeypatch.setattr(publishing, 'read_model', lambda path, use_ema: saved)
    return lambda *words: agmax_timm.publish.main([str(word) for word in words])
