"""Publishing a staged folder on the Hugging Face Hub: asked for beforehand, uploaded as one commit, tried again."""
import re
import time
from logging import getLogger
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .card import published_card
from .hub_error import HubError, line, reason, status, told
from .staging import CARD, FILES, load_folder, stage

__all__ = ['HubError', 'check_dataset', 'check_destination', 'check_name', 'check_revision', 'load_folder', 'publish',
           'stage', 'upload']

# Seconds before each further attempt where the Hub is busy or out of reach; Retry-After wins, up to the longest.
WAITS = (1., 2., 4., 8., 16.)
_LONGEST_WAIT = 300.

_logger = getLogger(__name__)
for _client in ('httpx', 'httpx2'):
    getLogger(_client).setLevel('WARNING')  # it has a line for every request


def check_destination(
        repo_id: str,
        token: Optional[str] = None,
        private: bool = False,
        create_pr: bool = False,
        endpoint: Optional[str] = None,
        waits: Sequence[float] = WAITS,
) -> None:
    """Whether publishing to a repository can succeed, as far as the Hub tells beforehand; arguments as in publish.

    Raises:
        HubError: the name is malformed, there is no valid token, or it may not write there.
    """
    check_name(repo_id)
    api = HfApi(endpoint=endpoint, token=token)
    try:
        user = _persistently(api.whoami, waits)
    except LocalTokenNotFoundError:
        raise HubError('no token of the Hugging Face Hub: log in with `hf auth login`, or set HF_TOKEN') from None
    except (HTTPError, OSError, ValueError) as error:
        if status(error) == 401:
            raise HubError('the token of the Hugging Face Hub is not valid: log in with `hf auth login`, '
                           'or set HF_TOKEN') from None
        raise HubError(f'the Hugging Face Hub does not tell whose the token is: {reason(error)}') from error
    if not create_pr:
        _check_permission(repo_id, user)
    elif user.get('auth', {}).get('accessToken', {}).get('role') == 'read':
        raise HubError(f"the token of {user['name']} can only read: make one that can write at "
                       'https://huggingface.co/settings/tokens')
    if private:
        with told(f'cannot look up {repo_id}'):
            _persistently(lambda: _check_private(api, repo_id), waits)


def check_name(repo_id: str) -> None:
    """Raise HubError unless it has the form OWNER/NAME that the Hub asks for."""
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise HubError(line(str(error))) from None
    if '/' not in repo_id:
        raise HubError(f"expected OWNER/NAME, got '{repo_id}'")


def check_dataset(name: str) -> None:
    """Raise HubError unless it can be the name of a data set on the Hub, or ''."""
    try:
        validate_repo_id(name or None)
    except ValueError as error:
        raise HubError(f'--hub-dataset {name} is no name of a data set on the Hub: {line(str(error))}') from None


def check_revision(revision: Optional[str]) -> None:
    """Raise HubError unless it can be the name of a branch, or None."""
    if revision and (re.fullmatch(r'\w[\w./-]*', revision) is None or re.search(r'\.\.|//|[./]$|\.lock$', revision)):
        raise HubError(f"'{revision}' cannot be a branch: use letters, digits, '-', '_', '.' and '/'")


def publish(
        folder: Union[str, Path],
        repo_id: str,
        token: Optional[str] = None,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
        endpoint: Optional[str] = None,
        waits: Sequence[float] = WAITS,
) -> str:
    """Upload a staged folder as one commit, into a repository and branch that are made where they are missing.

    The folder is checked first, as by load_folder. Only `FILES` are uploaded, whatever else lies there.

    Args:
        repo_id: OWNER/NAME.
        token: Of the Hub (default: HF_TOKEN, or that of `hf auth login`).
        private: Make a new repository private; one that exists and is public is refused.
        revision: Branch (default: main).
        create_pr: Open a pull request against it instead.
        endpoint: Address of the Hub (default: HF_ENDPOINT, or huggingface.co).
        waits: Seconds before each further attempt after an error that may pass.

    Returns:
        The address of the commit or pull request.

    Raises:
        HubError: the folder does not load, or the Hub refuses or stays out of reach. Nothing is committed then.
    """
    load_folder(folder)
    return upload(folder, repo_id, token, private, revision, create_pr, endpoint, waits)


def upload(
        folder: Union[str, Path],
        repo_id: str,
        token: Optional[str] = None,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
        endpoint: Optional[str] = None,
        waits: Sequence[float] = WAITS,
) -> str:
    """As publish, without its check of the folder: for one that was just staged or checked."""
    folder = Path(folder)
    check_name(repo_id)
    check_revision(revision)
    api = HfApi(endpoint=endpoint, token=token)
    with told(f'cannot upload {folder} to {repo_id}'):
        _persistently(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), waits)
        if private:
            _persistently(lambda: _check_private(api, repo_id), waits)
        if revision and revision != 'main' and not revision.startswith('refs/'):
            _persistently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), waits)
        commit = _persistently(lambda: api.create_commit(
            repo_id,
            operations=_operations(folder, repo_id, revision),
            commit_message=f'Upload {folder.absolute().name} with agmax_timm',
            revision=revision,
            create_pr=create_pr,
        ), waits, once_heard=create_pr)
    return str(commit.pr_url or commit.commit_url)


def _operations(folder: Path, repo_id: str, revision: Optional[str]) -> List[CommitOperationAdd]:
    """Anew for every attempt: the client marks in them what it has done."""
    operations = [CommitOperationAdd(name, str(folder / name)) for name in FILES
                  if name != CARD and (folder / name).is_file()]
    if (folder / CARD).is_file():
        branch = revision if revision != 'main' else None
        card = published_card((folder / CARD).read_text(encoding='utf-8'), repo_id, branch)
        operations.append(CommitOperationAdd(CARD, card.encode()))
    return operations


def _check_permission(repo_id: str, user: Dict[str, Any]) -> None:
    """Raise HubError if the answer of whoami-v2 leaves no way to write to the repository."""
    owner, name = repo_id.split('/')[0].lower(), user['name']
    organizations = {entry['name'].lower(): entry for entry in user.get('orgs', [])}
    if owner != name.lower() and owner not in organizations:
        raise HubError(f'{name}, whose token this is, does not belong to {owner}: publish to {name}/NAME, '
                       'or open a pull request')
    if organizations.get(owner, {}).get('roleInOrg') == 'read':
        raise HubError(f'{name}, whose token this is, can only read in {owner}')
    token = user.get('auth', {}).get('accessToken', {})
    scopes = token.get('fineGrained', {}).get('scoped', [])
    writable = {scope.get('entity', {}).get('name', '').lower() for scope in scopes
                if any('write' in permission for permission in scope.get('permissions', []))}
    if token.get('role') == 'read' or token.get('role') == 'fineGrained' and not writable & {owner, repo_id.lower()}:
        raise HubError(f'the token of {name} cannot write to {repo_id}: make one that can at '
                       'https://huggingface.co/settings/tokens')


def _check_private(api: HfApi, repo_id: str) -> None:
    try:
        if not api.repo_info(repo_id).private:
            raise HubError(f'{repo_id} exists and is public: make it private in its settings, or publish it as public')
    except RepositoryNotFoundError:
        pass


def _persistently(call: Callable, waits: Sequence[float], once_heard: bool = False) -> Any:
    """Call again after errors that may pass. For the content of files the client itself does so, and gives up for good.

    Args:
        once_heard: Never again where no answer came, since the first call may have had its effect.
    """
    for wait in waits:
        try:
            return call()
        except HTTPError as error:
            code = status(error)
            passing = not once_heard if code is None else code in (408, 429) or code >= 500
            if not passing:
                raise
            after = error.response.headers.get('Retry-After', '') if code else ''
            wait = min(float(after), _LONGEST_WAIT) if after.isdigit() else wait
            _logger.warning(f'Hugging Face Hub: {reason(error)}; trying again in {wait:g} s')
            time.sleep(wait)
    return call()
