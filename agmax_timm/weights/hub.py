"""Publish a staged folder on the Hugging Face Hub: check it, upload it as one commit, retry temporary errors."""
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from ..base.hub_connection import NoConnectionError, single_attempt
from ..options.hub_names import check_name, check_revision
from .card import published_card
from .hub_error import HubError, as_hub_error, reason, status
from .staging import CARD, PUBLISHED
from .update import ChangedError, Remote, Update, plan_update

_LONGEST_WAIT = 300.
# Larger files are always LFS files, which SHA-256 identifies.
_LARGEST_IN_GIT = 10_000_000
_NEW_TOKEN = 'https://huggingface.co/settings/tokens'

_logger = getLogger(__name__)
for _client in ('httpx', 'httpx2'):
    getLogger(_client).setLevel('WARNING')  # it logs every request


@dataclass(frozen=True)
class Destination:
    """Where a model is published, and what may be overwritten there.

    Args:
        repo_id: OWNER/NAME. A missing repository is created.
        private: Whether a new repository is private. An existing public repository is then refused.
        revision: Branch; None or '' for main. A missing branch is created.
        create_pr: Whether to open a pull request against the branch instead of writing to it.
        replace_card: Whether to overwrite README.md even if it was changed on the Hub.
        replace_files: Whether to overwrite and delete other files even if they were changed on the Hub.
        license: Licence that the user gave, which replaces another one; '' if none.
        waits: Seconds to wait before each further attempt, if the Hub is busy or out of reach. Retry-After takes
            precedence.
    """
    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    replace_card: bool = False
    replace_files: bool = False
    license: str = ''
    waits: Sequence[float] = (1., 2., 4., 8., 16.)

    @property
    def branch(self) -> str | None:
        """Name of the branch, None for the default one."""
        return self.revision if self.revision not in ('', 'main') else None

    @property
    def flags(self) -> list[str]:
        """Flags of agmax_timm.publish with the same effect."""
        given = {'private': self.private, 'revision': self.revision, 'pr': self.create_pr, 'license': self.license,
                 'replace-card': self.replace_card, 'replace-files': self.replace_files}
        return [word for name, value in given.items() if value
                for word in (f'--{name}', *([value] if isinstance(value, str) else []))]

    def call(self, function: Callable[[], Any], repeatable: bool = True) -> Any:
        """Call a function, and repeat it after temporary errors. The client itself repeats only the upload of files.

        Args:
            repeatable: Whether to repeat a call without an answer. The first call may have had its effect.
        """
        for wait in self.waits:
            try:
                return function()
            except HTTPError as error:
                code = status(error)
                # 412: somebody else committed in the meantime.
                temporary = repeatable if code is None else code in (408, 412, 429) or code >= 500
                if not temporary:
                    raise
                after = error.response.headers.get('Retry-After', '') if isinstance(error, HfHubHTTPError) else ''
                wait = min(float(after), _LONGEST_WAIT) if after.isdigit() else wait
                _logger.warning(f'Hugging Face Hub: {reason(error)}; trying again in {wait:g} s')
                time.sleep(wait)
        return function()


def check_destination(to: Destination) -> None:
    """Check the name, the token and its permissions before training.

    Raises:
        OptionError: The name is malformed.
        HubError: There is no valid token, or the token cannot write there.
    """
    check_name(to.repo_id)
    log_in = 'log in with `hf auth login`, or set HF_TOKEN'
    try:
        with single_attempt('publish later, by python -m agmax_timm.publish'):
            user = to.call(HfApi().whoami)
    except NoConnectionError:
        raise
    except LocalTokenNotFoundError:
        raise HubError(f'no token of the Hugging Face Hub: {log_in}') from None
    except (HTTPError, OSError, ValueError) as error:
        if status(error) == 401:
            raise HubError(f'the token of the Hugging Face Hub is not valid: {log_in}') from None
        raise HubError(f'the Hugging Face Hub does not say who owns the token: {reason(error)}') from error
    _check_permission(to, user)
    if to.private:
        with as_hub_error(f"cannot look up '{to.repo_id}'"):
            to.call(lambda: _check_private(to))


def publish(folder: str | Path, to: Destination) -> str:
    """Upload a staged folder as one commit. Create the repository and the branch if they are missing.

    The folder is not checked, see load_folder. Only the files `PUBLISHED` are uploaded. Changes that were made on the
    Hub are kept, see update.plan_update. Files of a former model are deleted.

    Returns:
        The address of the commit or pull request.

    Raises:
        ChangedError: A change that was made on the Hub would be overwritten.
        HubError: The Hub refuses the commit or is out of reach. Nothing is committed.
    """
    folder = Path(folder)
    check_name(to.repo_id)
    check_revision(to.revision)
    api = HfApi()

    def commit() -> tuple[Any, Update]:
        """Plan every attempt anew: the one before may have had its effect, and the client marks operations as done."""
        remote = _read_remote(to)
        operations, update = _plan(folder, to, remote)
        return api.create_commit(
            to.repo_id,
            operations=operations,
            commit_message=f'Upload {folder.absolute().name} with agmax_timm',
            commit_description='\n'.join(update.lines),
            revision=to.revision or None,
            create_pr=to.create_pr,
            parent_commit=remote.commit if remote is not None else None,
        ), update

    with as_hub_error(f"cannot upload '{folder}' to '{to.repo_id}'"):
        to.call(lambda: api.create_repo(to.repo_id, private=to.private or None, exist_ok=True))
        if to.private:
            to.call(lambda: _check_private(to))
        if to.branch and not to.branch.startswith('refs/'):
            to.call(lambda: api.create_branch(to.repo_id, branch=str(to.branch), exist_ok=True))
        answer, update = to.call(commit, repeatable=not to.create_pr)
    for change in update.lines:
        _logger.info(f'{to.repo_id}: {change}')
    return str(answer.pr_url or answer.commit_url)


def check_update(folder: str | Path, to: Destination) -> None:
    """Check that the files in the repository allow a folder like this one to be published.

    Raises:
        ChangedError: A change that was made on the Hub would be overwritten.
        HubError: The Hub does not answer.
    """
    with as_hub_error(f"cannot look up '{to.repo_id}'"):
        remote = to.call(lambda: _read_remote(to))
    with as_hub_error(f"cannot read '{folder}'"):
        _plan(Path(folder), to, remote)


def _read_remote(to: Destination) -> Remote | None:
    """Return the content of a branch, None without a repository. A missing branch will start as the default one."""
    api = HfApi()
    try:
        commit = api.repo_info(to.repo_id, revision=to.revision or None).sha
    except RevisionNotFoundError:
        return _read_remote(replace(to, revision=None)) if to.branch else None
    except RepositoryNotFoundError:
        return None
    remote = Remote(commit or '')
    for entry in api.list_repo_tree(to.repo_id, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            remote.files[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
    if CARD in remote.files:
        with TemporaryDirectory() as scratch:
            path = api.hf_hub_download(to.repo_id, CARD, revision=commit, local_dir=scratch)
            remote.card = Path(path).read_bytes().decode('utf-8', 'replace')
    return remote


def _plan(
        folder: Path,
        to: Destination,
        remote: Remote | None,
) -> tuple[list[CommitOperationAdd | CommitOperationDelete], Update]:
    """Return the operations of a commit, and what they change. Raises ChangedError as plan_update."""
    additions = [CommitOperationAdd(name, str(folder / name)) for name in PUBLISHED
                 if name != CARD and (folder / name).is_file()]
    card = (folder / CARD).read_text(encoding='utf-8') if (folder / CARD).is_file() else ''
    files = {addition.path_in_repo: _identifiers(addition) for addition in additions}
    try:
        update = plan_update(remote, published_card(card, to.repo_id, to.branch), files, to.replace_card or not card,
                             to.replace_files, bool(to.license))
    except ChangedError as error:
        place = '@'.join(filter(None, [to.repo_id, to.branch]))
        raise ChangedError(f"'{place}': {error}", error.flags) from None
    deletions = [CommitOperationDelete(name, is_folder=False) for name in update.deletions]
    cards = [CommitOperationAdd(CARD, update.card.encode())] if card else []
    return [*additions, *cards, *deletions], update


def _identifiers(addition: CommitOperationAdd) -> tuple[str, ...]:
    """Return the identifiers that the Hub may give to a file: SHA-256 for LFS files, git's SHA-1 for others."""
    info = addition.upload_info
    with addition.as_file() as file:
        in_git = (git_hash(file.read()),) if info.size < _LARGEST_IN_GIT else ()
    return (info.sha256.hex(), *in_git)


def _check_permission(to: Destination, user: dict[str, Any]) -> None:
    """Raise HubError if the user of a token cannot write to the repository or open a pull request.

    Args:
        user: Answer of whoami-v2.
    """
    name, token = user['name'], user.get('auth', {}).get('accessToken', {})
    if to.create_pr:
        if token.get('role') == 'read':
            raise HubError(f"the token of '{name}' can only read: make one that can write at {_NEW_TOKEN}")
        return
    owner = to.repo_id.split('/')[0].lower()
    organizations = {entry['name'].lower(): entry for entry in user.get('orgs', [])}
    if owner != name.lower() and owner not in organizations:
        raise HubError(f"the token belongs to '{name}', who is not a member of '{owner}': publish to "
                       f"'{name}/NAME', or open a pull request (--hub-pr of train.py, --pr of publish)")
    if organizations.get(owner, {}).get('roleInOrg') == 'read':
        raise HubError(f"the token belongs to '{name}', who can only read in '{owner}': ask for the write role "
                       'there, or open a pull request (--hub-pr of train.py, --pr of publish)')
    scopes = token.get('fineGrained', {}).get('scoped', [])
    writable = {scope.get('entity', {}).get('name', '').lower() for scope in scopes
                if any('write' in permission for permission in scope.get('permissions', []))}
    fine_grained = token.get('role') == 'fineGrained' and not writable & {owner, to.repo_id.lower()}
    if token.get('role') == 'read' or fine_grained:
        raise HubError(f"the token of '{name}' cannot write to '{to.repo_id}': make one that can at {_NEW_TOKEN}")


def _check_private(to: Destination) -> None:
    with suppress(RepositoryNotFoundError):
        if not HfApi().repo_info(to.repo_id).private:
            raise HubError(f"'{to.repo_id}' exists and is public: make it private in its settings, or publish it as "
                           'public')
