"""Errors of publishing, in one line."""
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the HTTP client's own, httpx or httpx2

from ..base.errors import UserError
from ..base.text import one_line


class HubError(UserError, ValueError):
    """A model that cannot be staged or published. The message has the reason and the remedy."""


def status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of the client, or of its cause; None if no answer came."""
    if not isinstance(error, HTTPError) and error.__cause__ is not None:
        return status(error.__cause__)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: BaseException) -> str:
    """Return the message of an error on one line."""
    if isinstance(error, HfHubHTTPError):
        return one_line(f'{error.response.status_code} {error.server_message or error.response.reason_phrase}')
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f'{one_line(error)} {reason(error.__cause__)}'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


@contextmanager
def as_hub_error(what: str, errors=(HTTPError, OSError, ValueError, RuntimeError)):
    """Turn errors into HubError: `what` and the reason on one line."""
    try:
        yield
    except HubError:
        raise
    except errors as error:
        raise HubError(f'{what}: {reason(error)}') from error
