"""Publish a run, or a folder that is staged already: python -m agmax_timm.publish RUN_OR_FOLDER OWNER/NAME"""
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from .base.command_line import Parser, add_dataset_flag, add_weights_flags, quiet_in_pipes
from .base.licences import LicenseError, add_license_flag, check_license
from .base.safe_load import CheckpointError
from .evaluation.published import compare_on_data
from .weights.checkpoint import read_model
from .weights.hub import ChangedError, HubError, check_dataset, check_destination, load_folder, publish, stage
from .weights.staging import CONFIG, DISK_ERRORS, change_license

_logger = logging.getLogger(__name__)


@quiet_in_pipes
def main(argv: list[str] | None = None) -> None:
    """The command. Prints the address of the commit; exit status 2, with one line, where nothing was published."""
    parser = Parser(prog='python -m agmax_timm.publish', description=__doc__.split(':')[0] + '.')
    parser.add_argument('source', metavar='RUN_OR_FOLDER',
                        help="a run's folder, a checkpoint, or a staged folder")
    parser.add_argument('repo_id', metavar='OWNER/NAME', help='repository, made if it is missing')
    parser.add_argument('--private', action='store_true', help='make it private')
    parser.add_argument('--revision', metavar='R', help='branch, made if it is missing (default: main)')
    parser.add_argument('--pr', action='store_true', help='open a pull request instead of writing to the branch')
    parser.add_argument('--replace-card', action='store_true',
                        help='write README.md anew, over what was changed there since it was published from here')
    parser.add_argument('--replace-files', action='store_true',
                        help='overwrite or delete other files of a model too that were not published from here')
    add_dataset_flag(parser)
    add_weights_flags(parser)
    add_license_flag(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        check_license(args.license)
        check_dataset(args.hub_dataset)
        check_destination(args.repo_id, private=args.private, create_pr=args.pr)
        print(publish_source(args.source, args.repo_id, args.private, args.revision, args.pr, args.use_ema,
                             args.hub_dataset, args.license, args.replace_card, args.replace_files))
    except (HubError, CheckpointError, LicenseError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')


def publish_source(
        source: str,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        use_ema: bool | None = None,
        hub_dataset: str = '',
        license: str = '',
        replace_card: bool = False,
        replace_files: bool = False,
        in_run: bool = False,
) -> str:
    """Publish a run, a checkpoint or a staged folder; what is not staged yet is staged beside it, in `hub`.

    Args:
        use_ema: Whether to take the EMA of the weights; None for the weights that the run ranked by.
        hub_dataset: Name of the training data on the Hub, '' where the run or nobody knows it.
        license: As --license takes it (default: that of base.license_of, or of the staged folder).
        replace_card, replace_files: As for hub.publish.
        in_run: As for compare_on_data.

    Returns:
        The address of the commit or pull request.

    Raises:
        CheckpointError: there is nothing to publish.
        HubError: it failed. The message ends with the command that goes on where trying again can help.
    """
    folder = source
    if os.path.isfile(os.path.join(source, CONFIG)):
        _check_choice(source, use_ema, hub_dataset)
        load_folder(source)
        if license:
            change_license(source, license)
    else:
        folder = os.path.join(source if os.path.isdir(source) else os.path.dirname(source), 'hub')
        saved = read_model(source, use_ema)
        _logger.info(f'{saved.source}: {saved.weights}')
        dataset = hub_dataset or saved.options.get('hub_dataset')
        saved = replace(saved, options={**saved.options, 'hub_dataset': dataset})
        with _going_on(DISK_ERRORS, source, repo_id, private, revision, create_pr, use_ema, hub_dataset, license,
                       replace_card, replace_files):
            stage(saved, folder, license, partial(compare_on_data, saved, in_run=in_run))
        license = license or saved.options.get('license') or ''
    # The folder holds what was chosen for it, except that a licence was chosen.
    with _going_on((Exception,), folder, repo_id, private, revision, create_pr, None, '', license, replace_card,
                   replace_files):
        return publish(
            folder, repo_id, private=private, revision=revision, create_pr=create_pr, replace_card=replace_card,
            replace_files=replace_files, license_chosen=bool(license), checked=True)


@contextmanager
def _going_on(causes: tuple[type[Exception], ...], source: str, *destination: Any) -> Iterator[None]:
    """Add the command that goes on to a HubError with one of these causes: others come back however often it is tried.

    That of a ChangedError overwrites what was changed.

    Args:
        *destination: Further arguments of command_of.
    """
    try:
        yield
    except HubError as error:
        if not isinstance(error.__cause__ or error, causes):
            raise
        words = [command_of(source, *destination), *(error.flags if isinstance(error, ChangedError) else [])]
        raise HubError(f"{error}. {source} stays; to go on: {' '.join(words)}") from error


def _check_choice(folder: str, use_ema: bool | None, hub_dataset: str) -> None:
    """Raise HubError where a choice is made of what a staged folder holds already."""
    flags = [*_weights_flags(use_ema), *(['--hub-dataset'] if hub_dataset else [])]
    if flags:
        raise HubError(f"{folder} is staged already: drop {' and '.join(flags)}, or name the run")


def _weights_flags(use_ema: bool | None) -> list[str]:
    return [] if use_ema is None else ['--use-ema' if use_ema else '--raw']


def command_of(
        source: str,
        repo_id: str,
        private: bool,
        revision: str | None,
        create_pr: bool,
        use_ema: bool | None = None,
        hub_dataset: str = '',
        license: str = '',
        replace_card: bool = False,
        replace_files: bool = False,
) -> str:
    flags = [*(['--private'] if private else []), *(['--revision', revision] if revision else []),
             *(['--pr'] if create_pr else []), *_weights_flags(use_ema),
             *(['--hub-dataset', hub_dataset] if hub_dataset else []),
             *(['--license', license] if license else []), *(['--replace-card'] if replace_card else []),
             *(['--replace-files'] if replace_files else [])]
    return shlex.join(['python', '-m', 'agmax_timm.publish', source, repo_id, *flags])


if __name__ == '__main__':
    main()
