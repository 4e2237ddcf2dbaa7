"""Publishing a staged folder on the Hugging Face Hub: asked for beforehand, uploaded as one commit, tried again."""
import re
import time
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from .card import published_card
from .hub_error import HubError, line, reason, status, told
from .staging import CARD, FILES, load_folder, stage
from .update import ChangedError, Remote, Update, plan_update

__all__ = ['ChangedError', 'HubError', 'check_dataset', 'check_destination', 'check_name', 'check_revision',
           'check_update', 'load_folder', 'publish', 'stage']

# Seconds before each further attempt where the Hub is busy or out of reach; Retry-After wins, up to the longest.
WAITS = (1., 2., 4., 8., 16.)
_LONGEST_WAIT = 300.
# Larger files are always LFS files, which SHA-256 identifies.
_LARGEST_IN_GIT = 10_000_000

_logger = getLogger(__name__)
for _client in ('httpx', 'httpx2'):
    getLogger(_client).setLevel('WARNING')  # it has a line for every request


def check_destination(
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        endpoint: str | None = None,
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


def check_revision(revision: str | None) -> None:
    """Raise HubError unless it can be the name of a branch, or None."""
    if revision and (re.fullmatch(r'\w[\w./-]*', revision) is None or re.search(r'\.\.|//|[./]$|\.lock$', revision)):
        raise HubError(f"'{revision}' cannot be a branch: use letters, digits, '-', '_', '.' and '/'")


def publish(
        folder: str | Path,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        endpoint: str | None = None,
        waits: Sequence[float] = WAITS,
        replace_card: bool = False,
        replace_files: bool = False,
        license_chosen: bool = False,
        checked: bool = False,
) -> str:
    """Upload a staged folder as one commit, into a repository and branch that are made where they are missing.

    The folder is checked first, as by load_folder. Only `FILES` are uploaded, whatever else lies there. What was
    changed on the Hub since it was written stays, see update.plan_update, and files of a former model are deleted.

    Args:
        repo_id: OWNER/NAME.
        token: Of the Hub (default: HF_TOKEN, or that of `hf auth login`).
        private: Make a new repository private; one that exists and is public is refused.
        revision: Branch (default: main).
        create_pr: Open a pull request against it instead.
        endpoint: Address of the Hub (default: HF_ENDPOINT, or huggingface.co).
        waits: Seconds before each further attempt after an error that may pass.
        replace_card: Write README.md without regard to what is there.
        replace_files: Overwrite and delete other files without regard to who wrote them.
        license_chosen: The licence was asked for, so that it replaces another one.
        checked: The folder was just staged or loaded, and is not checked again.

    Returns:
        The address of the commit or pull request.

    Raises:
        ChangedError: something that was changed on the Hub would be overwritten.
        HubError: the folder does not load, or the Hub refuses or stays out of reach. Nothing is committed then.
    """
    if not checked:
        load_folder(folder)
    folder = Path(folder)
    check_name(repo_id)
    check_revision(revision)
    api = HfApi(endpoint=endpoint, token=token)
    flags = (replace_card, replace_files, license_chosen)

    def commit() -> tuple[Any, Update]:
        """Anew for every attempt: an earlier one may have had its effect, and the client marks what it has done."""
        remote = _read_remote(api, repo_id, revision)
        operations, update = _plan(folder, repo_id, revision, remote, *flags)
        return api.create_commit(
            repo_id,
            operations=operations,
            commit_message=f'Upload {folder.absolute().name} with agmax_timm',
            commit_description='\n'.join(update.lines),
            revision=revision,
            create_pr=create_pr,
            parent_commit=remote.commit if remote is not None else None,
        ), update

    with told(f'cannot upload {folder} to {repo_id}'):
        _persistently(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), waits)
        if private:
            _persistently(lambda: _check_private(api, repo_id), waits)
        if revision and revision != 'main' and not revision.startswith('refs/'):
            _persistently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), waits)
        answer, update = _persistently(commit, waits, once_heard=create_pr)
    for change in update.lines:
        _logger.info(f'{repo_id}: {change}')
    return str(answer.pr_url or answer.commit_url)


def check_update(
        folder: str | Path,
        repo_id: str,
        token: str | None = None,
        revision: str | None = None,
        endpoint: str | None = None,
        waits: Sequence[float] = WAITS,
        replace_card: bool = False,
        replace_files: bool = False,
        license_chosen: bool = False,
) -> None:
    """Whether a folder like this one can be published, by what is in the repository; arguments as in publish.

    Raises:
        ChangedError: something that was changed on the Hub would be overwritten.
        HubError: the Hub does not tell.
    """
    api = HfApi(endpoint=endpoint, token=token)
    try:
        with told(f'cannot look up {repo_id}'):
            remote = _persistently(lambda: _read_remote(api, repo_id, revision), waits)
    except HubError as error:
        raise HubError(str(error)) from None  # try_staging lets pass what a disk causes, by the class of the cause
    with told(f'cannot read {folder}'):
        _plan(Path(folder), repo_id, revision, remote, replace_card, replace_files, license_chosen)


def _read_remote(api: HfApi, repo_id: str, revision: str | None) -> Remote | None:
    """What a branch holds, None where there is no such repository or branch."""
    try:
        commit = api.repo_info(repo_id, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
    remote = Remote(commit)
    for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            remote.files[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
    if CARD in remote.files:
        with TemporaryDirectory() as scratch:
            path = api.hf_hub_download(repo_id, CARD, revision=commit, local_dir=scratch)
            remote.card = Path(path).read_bytes().decode('utf-8', 'replace')
    return remote


def _plan(
        folder: Path,
        repo_id: str,
        revision: str | None,
        remote: Remote | None,
        replace_card: bool,
        replace_files: bool,
        license_chosen: bool,
) -> tuple[list[CommitOperationAdd | CommitOperationDelete], Update]:
    """The operations of a commit, and what they change. Raises ChangedError as plan_update."""
    additions = [CommitOperationAdd(name, str(folder / name)) for name in FILES
                 if name != CARD and (folder / name).is_file()]
    branch = revision if revision != 'main' else None
    card = (folder / CARD).read_text(encoding='utf-8') if (folder / CARD).is_file() else ''
    try:
        update = plan_update(remote, published_card(card, repo_id, branch), {
            addition.path_in_repo: _identifiers(addition) for addition in additions},
            replace_card or not card, replace_files, license_chosen)
    except ChangedError as error:
        raise ChangedError(f"{repo_id}{f'@{branch}' if branch else ''}: {error}", error.flags) from None
    deletions = [CommitOperationDelete(name, is_folder=False) for name in update.deletions]
    cards = [CommitOperationAdd(CARD, update.card.encode())] if card else []
    return [*additions, *cards, *deletions], update


def _identifiers(addition: CommitOperationAdd) -> tuple[str, ...]:
    """By which the Hub may know a file: the SHA-256 of LFS files, git's SHA-1 of others."""
    info = addition.upload_info
    with addition.as_file() as file:
        in_git = (git_hash(file.read()),) if info.size < _LARGEST_IN_GIT else ()
    return (info.sha256.hex(), *in_git)


def _check_permission(repo_id: str, user: dict[str, Any]) -> None:
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
            # 412: another commit came between.
            passing = not once_heard if code is None else code in (408, 412, 429) or code >= 500
            if not passing:
                raise
            after = error.response.headers.get('Retry-After', '') if code else ''
            wait = min(float(after), _LONGEST_WAIT) if after.isdigit() else wait
            _logger.warning(f'Hugging Face Hub: {reason(error)}; trying again in {wait:g} s')
            time.sleep(wait)
    return call()
