"""The Hugging Face Hub without a connection: an error at once, in place of a minute of retries."""
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.error import HTTPError as RefusedDownload
from urllib.error import URLError

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from .errors import UserError
from .text import one_line

_http: Any = import_module(HTTPError.__module__.partition('.')[0])  # httpx or httpx2, by the version of huggingface_hub
_NO_CONNECTION = (_http.ConnectError, _http.ConnectTimeout, _http.ProxyError)


class NoConnectionError(UserError, ConnectionError):
    """A host on the network cannot be reached, and its files are not in the cache."""


@contextmanager
def single_attempt(remedy: str) -> Iterator[None]:
    """Do not repeat requests to the Hub that find no connection. Its cache is used, as with HF_HUB_OFFLINE.

    Args:
        remedy: What to do instead, the end of the message.

    Raises:
        NoConnectionError: What was called inside needs the Hub or another host, which cannot be reached.
    """
    client: Any = get_session()  # of all calls of huggingface_hub
    send = client.send
    failures: dict[str, str] = {}  # by host

    def send_once(request: Any, **kwargs: Any) -> Any:
        host = request.url.host
        if host not in failures:
            try:
                return send(request, **kwargs)
            except _NO_CONNECTION as error:
                failures[host] = f'no connection to {host} ({one_line(error)})'
        raise OfflineModeIsEnabled(failures[host])  # huggingface_hub repeats requests after other errors

    client.send = send_once
    try:
        yield
    except Exception as error:
        reason = _no_connection(error)
        if not reason and isinstance(error, ConnectionError):  # that of datasets does not have its cause
            reason = '; '.join(failures.values())
        if not reason:
            raise
        raise NoConnectionError(f'{reason}: {remedy}') from error
    finally:
        client.send = send


def _no_connection(error: BaseException) -> str:
    """Return why an error is due to a missing connection, '' if it is not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else str(cause)
        if isinstance(cause, URLError) and not isinstance(cause, RefusedDownload):
            return one_line(error)
        cause = cause.__cause__ or cause.__context__
    return ''
