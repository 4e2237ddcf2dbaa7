"""Stage a run or a checkpoint and publish it, or publish a folder that is staged already."""
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path

from .hub import Destination, publish
from .hub_error import HubError
from .saved_model import SavedModel, read_model
from .staging import CONFIG, DISK_ERRORS, change_license, load_folder, stage

_logger = getLogger(__name__)


def publish_source(
        source: str,
        to: Destination,
        use_ema: bool | None,
        hub_dataset: str,
        check: Callable[[SavedModel, Path], None],
) -> str:
    """Publish a run, a checkpoint or a staged folder.

    A run is staged in its folder `hub`, a checkpoint NAME.pth.tar beside it in `NAME-hub`.

    Args:
        use_ema: Whether to publish the EMA of the weights. None publishes the weights that the run ranked.
        hub_dataset: Name of the training data on the Hub. '' is the name that the run gave, if any.
        check: Further check of the staged model and its folder. It may raise HubError.

    Returns:
        The address of the commit or pull request.

    Raises:
        CheckpointError: There is nothing to publish.
        HubError: Publishing failed. If a retry can help, the message ends with the command for it.
    """
    folder = source
    if os.path.isfile(os.path.join(source, CONFIG)):
        flags = [word for word in _choice(use_ema, hub_dataset) if word.startswith('--')]
        if flags:
            raise HubError(f"'{source}' is staged already: drop {' and '.join(flags)}, or name the run")
        load_folder(source)
        if to.license:
            change_license(source, to.license)
    else:
        folder = os.path.join(source, 'hub') if os.path.isdir(source) else (
            os.path.join(os.path.dirname(source), os.path.basename(source).removesuffix('.pth.tar') + '-hub'))
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.isfile(os.path.join(folder, CONFIG)):
            raise HubError(f"'{folder}' is needed to stage the model, and holds other files: rename it")
        saved = read_model(source, use_ema)
        _logger.info(f'{saved.source}: {saved.weights}')
        saved = saved.with_dataset(hub_dataset)
        with _naming_command(DISK_ERRORS, source, publish_command(source, to, use_ema, hub_dataset)):
            stage(saved, folder, to.license, partial(check, saved))
        to = replace(to, license=to.license or saved.options.get('license') or '')
    # The folder contains all choices except the licence.
    with _naming_command((Exception,), folder, publish_command(folder, to)):
        return publish(folder, to)


def publish_command(source: str, to: Destination, use_ema: bool | None = None, hub_dataset: str = '') -> str:
    """Return the command that publishes a run or a folder in the same way."""
    return shlex.join(
        ['python', '-m', 'agmax_timm.publish', source, to.repo_id, *_choice(use_ema, hub_dataset), *to.flags])


def _choice(use_ema: bool | None, hub_dataset: str) -> list[str]:
    """Return the flags that choose the weights and the data set name of a staged run."""
    weights = [] if use_ema is None else ['--use-ema' if use_ema else '--raw']
    return weights + (['--hub-dataset', hub_dataset] if hub_dataset else [])


@contextmanager
def _naming_command(causes: tuple[type[Exception], ...], source: str, command: str) -> Iterator[None]:
    """Add the command for another try to a HubError with one of these causes. Other errors would occur again.

    The command after a ChangedError overwrites what was changed.
    """
    try:
        yield
    except HubError as error:
        if not isinstance(error.__cause__ or error, causes):
            raise
        flags = ''.join(f' {flag}' for flag in getattr(error, 'flags', ()))
        raise HubError(f"{error}. '{source}' stays; to continue: {command}{flags}") from error
