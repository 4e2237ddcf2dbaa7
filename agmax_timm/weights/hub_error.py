"""What goes wrong with the Hub and its folders, in one line."""
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the HTTP client's own, httpx or httpx2

from ..base.errors import UserError
from ..base.text import one_line


class HubError(UserError, ValueError):
    """A model that cannot be staged or published. The message has the reason and the remedy."""


def status(error: BaseException) -> int | None:
    """HTTP status of an answer, None where there was none; of its cause for what the client raises in its stead."""
    if not isinstance(error, HTTPError) and error.__cause__ is not None:
        return status(error.__cause__)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: BaseException) -> str:
    """An error as part of a line."""
    if isinstance(error, HfHubHTTPError):
        return one_line(f'{error.response.status_code} {error.server_message or error.response.reason_phrase}')
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f'{one_line(error)} {reason(error.__cause__)}'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


@contextmanager
def told(what: str, errors=(HTTPError, OSError, ValueError, RuntimeError)):
    """Turn errors into HubError: `what`, and the reason, in one line."""
    try:
        yield
    except HubError:
        raise
    except errors as error:
        raise HubError(f'{what}: {reason(error)}') from error
