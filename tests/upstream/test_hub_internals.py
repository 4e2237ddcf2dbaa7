"""huggingface_hub: what its reference does not list."""
import hashlib

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, HTTPError


def test_the_hash_of_a_file_in_git():
    """--push-to-hub over files that are there: weights/hub.py compares a small file with the Hub's by git's SHA-1."""
    from huggingface_hub.utils.sha import git_hash
    assert git_hash(b'x') == hashlib.sha1(b'blob 1\0x').hexdigest()


def test_the_size_and_sum_of_an_upload():
    """--push-to-hub over files that are there: weights/hub.py compares a large file with the Hub's by SHA-256."""
    addition = CommitOperationAdd('name', b'content')
    assert addition.upload_info.sha256 == hashlib.sha256(b'content').digest()
    assert addition.upload_info.size == 7
    with addition.as_file() as file:
        assert file.read() == b'content'


def test_the_metadata_block_of_a_card():
    """Updating a model card: split_card() in weights/card_text.py cuts the metadata off by this expression."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    card = '---\na: 1\n---\n# Title\n'
    match = REGEX_YAML_BLOCK.search(card)
    assert match[2] == 'a: 1' and card[match.end():].strip() == '# Title'
    assert REGEX_YAML_BLOCK.search('# Title\n') is None


def test_the_errors_of_the_client():
    """Every message about the Hub: weights/hub_error.py reads status and reason from these errors."""
    assert issubclass(HfHubHTTPError, HTTPError)
    assert 'server_message' in HfHubHTTPError.__init__.__code__.co_varnames


def test_one_client_sends_all_requests_and_its_offline_error_is_not_repeated(monkeypatch):
    """Every download: single_attempt() in base/hub_connection.py replaces the method `send` of this client."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session
    asked = []

    def send(request, **kwargs):
        asked.append(request.url.host)
        raise OfflineModeIsEnabled
    monkeypatch.setattr(get_session(), 'send', send)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint='http://hub.invalid').whoami(token='hf_write')
    assert asked.count('hub.invalid') == 1
