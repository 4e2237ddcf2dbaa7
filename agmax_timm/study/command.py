"""The study command."""
import os
import shlex
from contextlib import suppress
from dataclasses import replace

from ..base.command import command
from ..base.command_line import Parser
from ..base.errors import OptionError
from ..options.data_kinds import kind_of
from ..options.paths import check_initial_weights
from ..options.recipe_files import STUDIES, ListRecipes, find_recipe
from .cost import epochs_of, updates_and_views
from .definition import Study, read_study
from .plan import Run, check_unchanged, make_runs

PROG = 'python -m agmax_timm.study'


@command(PROG)
def main(argv: list[str] | None = None) -> int:
    """Run the command. Return the exit status: 0 if all runs have a result, else 1."""
    parser = create_parser()
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    if args.jobs < len(args.devices):
        parser.warn(f"--devices names {len(args.devices)}, but --jobs {args.jobs} uses only "
                    f"{', '.join(args.devices[:args.jobs])}: use --jobs {len(args.devices)}")
    study = read_study(find_recipe(args.study, STUDIES))
    name = os.path.splitext(os.path.basename(study.path))[0]
    output = args.output or os.path.join('output', 'study', name)
    runs = make_runs(study, study.data if args.data is None else args.data, output)
    check_unchanged(study, runs)
    if args.dry_run:
        print_plan(runs)
        return 0
    if args.table:
        if not os.path.isdir(output):
            raise OptionError(f"--table: no folder '{output}': train the study first, or name its --output")
        write_results(study, runs, output)
        return 0
    check_files(study, runs)
    os.makedirs(output, exist_ok=True)
    return run_study(study, runs, output, args.jobs, args.devices)


def print_plan(runs: list[Run]) -> None:
    """Print the commands, and the numbers of epochs, updates and views."""
    from .outcome import is_complete
    for run in runs:
        print(f'# {run.name}: {"; ".join(run.cell.sources)}{" (complete)" if is_complete(run) else ""}')
        print(shlex.join(run.command()))
    counts = updates_and_views(runs)
    cost = 'updates and views unknown without the data'
    if counts is not None:
        cost = f'{counts[0]:,} updates, {counts[1]:,} views'
    print(f'{len(runs)} runs, {sum(epochs_of(run.options) for run in runs):,} epochs, {cost}; '
          f'{sum(map(is_complete, runs))} runs are complete')


def check_files(study: Study, runs: list[Run]) -> None:
    """Raise OptionError if data, or initial weights of a run that has not begun, do not exist, before a run fails."""
    for folder in {run.data for run in runs if kind_of(run.options) in ('folder', 'tar')}:
        if not os.path.exists(folder):
            raise OptionError(f"'{study.path}': data: no folder or tar file '{folder}': name another one with --data "
                              'DIR')
    for run in runs:
        if not os.path.isdir(run.folder):
            for problem in check_initial_weights(replace(run.options, resume='')):
                raise OptionError(f"'{study.path}': '{run.name}': {problem}")


def run_study(study: Study, runs: list[Run], output: str, jobs: int, devices: list[str]) -> int:
    """Train the incomplete runs, and write the results of all runs.

    Returns:
        Exit status.

    Raises:
        Interrupted: A signal ended the study.
    """
    from ..base.signals import Interrupted
    from .runner import Runner
    runner = Runner(runs, jobs, devices)
    try:
        stopped = runner.run()
    except KeyboardInterrupt as error:
        raise type(error)('killed with its runs. The same command continues from what they saved') from None
    except Exception:
        with suppress(OSError):  # the first error says more
            write_results(study, runs, output, runner.errors)
        raise
    complete = write_results(study, runs, output, runner.errors)
    if stopped:
        raise Interrupted('asked to end. The same command continues')
    return int(not complete)


def write_results(study: Study, runs: list[Run], output: str, errors: dict[str, str] | None = None) -> bool:
    """Write and print the results of the runs so far.

    Args:
        errors: Error message of each failed run by its folder.

    Returns:
        Whether all runs have a result.
    """
    from ..base.pipes import print_if_read
    from .outcome import read_outcome
    from .tables import write_tables
    outcomes = [read_outcome(run, study.metric, study.epoch, (errors or {}).get(run.folder, '')) for run in runs]
    print_if_read(write_tables(study, outcomes, output))
    return all(outcome.value is not None for outcome in outcomes)


def create_parser() -> Parser:
    parser = Parser(prog=PROG, description='Train every augmentation with every method and seed of a file, and '
                                           'compare the methods. The same command continues where it was stopped.')
    parser.add_argument('study', metavar='STUDY', help='YAML file of the study, or name of a study of the package')
    parser.add_argument('--list-studies', action=ListRecipes, kind=STUDIES, help='list the studies of the package')
    parser.add_argument('--data', metavar='DIR', help='folder of the data; overrides the one in the file')
    parser.add_argument('--output', metavar='DIR', help="folder of the runs and tables (default: output/study/ and the "
                                                        "file's name)")
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time; each gets its share of cores')
    parser.add_argument('--devices', nargs='+', default=[], metavar='DEVICE',
                        help='devices that the jobs take in turn, such as cuda:0 cuda:1 (default: that of train.py)')
    parser.add_argument('--table', action='store_true',
                        help='only write table and figure of the runs that are complete, also while others train')
    parser.add_argument('--dry-run', action='store_true', help='only print the commands and their cost')
    return parser
