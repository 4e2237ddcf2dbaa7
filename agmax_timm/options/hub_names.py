"""Names on the Hugging Face Hub: of repositories, data sets, branches and licences.

huggingface_hub is imported when a name is checked, because it takes time.
"""
import re
from collections.abc import Iterator

from ..base.errors import OptionError
from ..base.licences import check_license
from ..base.text import one_line
from .declare import refused
from .run import Hub


def check_hub(options: Hub) -> Iterator[str]:
    """Yield a line for each invalid name, and for each flag that needs --push-to-hub."""
    for option in refused(options, Hub):
        yield f'{option.flag} needs --push-to-hub OWNER/NAME'
    for check, value, flag in (
            (check_license, options.license, ''), (check_dataset, options.hub_dataset, ''),
            (check_name, options.push_to_hub, f"--push-to-hub '{options.push_to_hub}': "),
            (check_revision, options.hub_revision, f"--hub-revision '{options.hub_revision}': ")):
        try:
            if value:
                check(value)
        except OptionError as problem:
            yield f'{flag}{problem}'


def check_name(repo_id: str) -> None:
    """Raise OptionError unless the name of a repository has the Hub's form OWNER/NAME."""
    _validate(repo_id)
    if '/' not in repo_id:
        raise OptionError(f"expected OWNER/NAME, got '{repo_id}'")


def check_dataset(name: str) -> None:
    """Raise OptionError unless a name is '' or valid for a data set on the Hub."""
    if name:
        _validate(name, f"--hub-dataset '{name}' is not a name of a data set on the Hub: ")


def _validate(name: str, message: str = '') -> None:
    """Raise OptionError, with a message before the reason, unless a name is valid on the Hub."""
    from huggingface_hub.utils import validate_repo_id
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise OptionError(message + one_line(error)) from None


def check_revision(revision: str | None) -> None:
    """Raise OptionError unless a name is None or valid for a branch."""
    if revision and (re.fullmatch(r'\w[\w./-]*', revision) is None or re.search(r'\.\.|//|[./]$|\.lock$', revision)):
        raise OptionError(f"'{revision}' cannot be a branch: use letters, digits, '-', '_', '.' and '/'")
