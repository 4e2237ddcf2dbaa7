"""Publish a run, or a folder that is staged already: python -m agmax_timm.publish RUN_OR_FOLDER OWNER/NAME"""
import logging
import os
import shlex
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Tuple, Type

from .checkpoint import SavedModel, chosen_by_ema, read_model
from .command_line import Parser
from .hub import HubError, check_destination, load_folder, stage, upload
from .staging import CONFIG, DISK_ERRORS
from .untrusted import CheckpointError

_logger = logging.getLogger(__name__)


def main(argv: Optional[List[str]] = None) -> None:
    """The command. Prints the address of the commit; exit status 2, with one line, where nothing was published."""
    parser = Parser(prog='python -m agmax_timm.publish', description=__doc__.split(':')[0] + '.')
    parser.add_argument('source', metavar='RUN_OR_FOLDER',
                        help="a run's folder (its best checkpoint, of the EMA if it chose by that), a checkpoint, "
                             'or a staged folder')
    parser.add_argument('repo_id', metavar='OWNER/NAME', help='repository, made if it is missing')
    parser.add_argument('--private', action='store_true', help='make it private')
    parser.add_argument('--revision', metavar='R', help='branch, made if it is missing (default: main)')
    parser.add_argument('--pr', action='store_true', help='open a pull request instead of writing to the branch')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        check_destination(args.repo_id, private=args.private, create_pr=args.pr)
        print(publish_source(args.source, args.repo_id, args.private, args.revision, args.pr))
    except (HubError, CheckpointError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')


def publish_source(
        source: str,
        repo_id: str,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
) -> str:
    """Publish a run, a checkpoint or a staged folder; what is not staged yet is staged beside it, in `hub`.

    Returns:
        The address of the commit or pull request.

    Raises:
        CheckpointError: there is nothing to publish.
        HubError: it failed. The message ends with the command that goes on where trying again can help.
    """
    folder = source
    if os.path.isfile(os.path.join(source, CONFIG)):
        load_folder(source)
    else:
        folder = os.path.join(source if os.path.isdir(source) else os.path.dirname(source), 'hub')
        saved = read_best(source)
        with _going_on(DISK_ERRORS, source, repo_id, private, revision, create_pr):
            stage(saved, folder)
    with _going_on((Exception,), folder, repo_id, private, revision, create_pr):
        return upload(folder, repo_id, private=private, revision=revision, create_pr=create_pr)


@contextmanager
def _going_on(causes: Tuple[Type[Exception], ...], source: str, *destination: Any) -> Iterator[None]:
    """Add the command that goes on to a HubError with one of these causes: others come back however often it is tried.

    Args:
        *destination: Further arguments of command_of.
    """
    try:
        yield
    except HubError as error:
        if not isinstance(error.__cause__ or error, causes):
            raise
        raise HubError(f'{error}. {source} stays; to go on: {command_of(source, *destination)}') from error


def read_best(path: str) -> SavedModel:
    """What a run chose by: the best checkpoint, its EMA where the EMA was validated."""
    saved = read_model(path)
    return read_model(path, use_ema=True) if chosen_by_ema(saved.options) else saved


def command_of(source: str, repo_id: str, private: bool, revision: Optional[str], create_pr: bool) -> str:
    flags = [*(['--private'] if private else []), *(['--revision', revision] if revision else []),
             *(['--pr'] if create_pr else [])]
    return shlex.join(['python', '-m', 'agmax_timm.publish', source, repo_id, *flags])


if __name__ == '__main__':
    main()
