"""Publish a run, or a folder that is staged already: python -m agmax_timm.publish RUN_OR_FOLDER OWNER/NAME"""
import logging
import os
import shlex
from typing import List, Optional

from .checkpoint import SavedModel, chosen_by_ema, read_model
from .command_line import Parser
from .hub import HubError, check_destination, publish, stage
from .staging import CONFIG
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
        HubError: it failed. The message ends with the command that goes on, from the staged folder if there is one.
    """
    going_on = source
    try:
        if not os.path.isfile(os.path.join(source, CONFIG)):
            folder = os.path.join(source if os.path.isdir(source) else os.path.dirname(source), 'hub')
            stage(read_best(source), folder)
            going_on = source = folder
        return publish(source, repo_id, private=private, revision=revision, create_pr=create_pr)
    except HubError as error:
        command = command_of(going_on, repo_id, private, revision, create_pr)
        raise HubError(f'{error}. {going_on} stays; to go on: {command}') from error


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
