"""Publish a run, or a folder that is staged already: python -m agmax_timm.publish RUN_OR_FOLDER OWNER/NAME"""
import logging

from .base.command import command
from .base.command_line import Parser
from .base.errors import OptionError
from .base.licences import check_license
from .base.processes import imports_without_gc
from .options.declare import declared
from .options.run import Hub
from .options.shared_flags import add_train_flags, add_weights_flags

PROG = 'python -m agmax_timm.publish'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """Run the command. Print the address of the commit or pull request."""
    args = create_parser().parse_args(argv)
    with imports_without_gc():  # imports take seconds, so --help does without them
        from .evaluation.compare_staged import compare_on_data
        from .options.hub_names import check_dataset, check_revision
        from .weights.hub import Destination, check_destination
        from .weights.publishing import publish_source
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    to = Destination(args.repo_id, args.private, args.revision, args.pr, args.replace_card, args.replace_files,
                     args.license)
    check_license(args.license)
    check_dataset(args.hub_dataset)
    try:
        check_revision(args.revision)
    except OptionError as problem:
        raise OptionError(f"--revision '{args.revision}': {problem}") from None
    check_destination(to)
    print(publish_source(args.source, to, args.use_ema, args.hub_dataset, compare_on_data))


def create_parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__.split(':')[0] + '.')
    parser.add_argument('source', metavar='RUN_OR_FOLDER',
                        help="a run's folder, a checkpoint, or a staged folder")
    parser.add_argument('repo_id', metavar='OWNER/NAME', help='repository; it is created if it does not exist')
    parser.add_argument('--private', action='store_true', help='make the repository private')
    parser.add_argument('--revision', metavar='R', help='branch; it is created if it does not exist (default: main)')
    parser.add_argument('--pr', action='store_true', help='open a pull request instead of writing to the branch')
    of_train = declared(Hub)
    parser.add_argument('--replace-card', action='store_true', help=of_train['hub_replace_card'].help)
    parser.add_argument('--replace-files', action='store_true', help=of_train['hub_replace_files'].help)
    add_weights_flags(parser)
    add_train_flags(parser, 'hub_dataset', 'license')
    return parser


if __name__ == '__main__':
    main()
