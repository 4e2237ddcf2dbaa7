"""Names on the Hugging Face Hub: of repositories, data sets and branches."""
import re

from huggingface_hub.utils import validate_repo_id

from ..base.errors import OptionError
from ..base.text import one_line


def check_name(repo_id: str) -> None:
    """Raise OptionError unless the name of a repository has the Hub's form OWNER/NAME."""
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise OptionError(one_line(error)) from None
    if '/' not in repo_id:
        raise OptionError(f"expected OWNER/NAME, got '{repo_id}'")


def check_dataset(name: str) -> None:
    """Raise OptionError unless a name is '' or valid for a data set on the Hub."""
    try:
        validate_repo_id(name or None)
    except ValueError as error:
        raise OptionError(f'--hub-dataset {name} is not a name of a data set on the Hub: {one_line(error)}') from None


def check_revision(revision: str | None) -> None:
    """Raise OptionError unless a name is None or valid for a branch."""
    if revision and (re.fullmatch(r'\w[\w./-]*', revision) is None or re.search(r'\.\.|//|[./]$|\.lock$', revision)):
        raise OptionError(f"'{revision}' cannot be a branch: use letters, digits, '-', '_', '.' and '/'")
