"""The command line of the measurements: a module of each sub-command's name measures, its result is reported here."""
import sys
from importlib import import_module

from ..base.command_line import as_line, quiet_in_pipes
from ..base.processes import fork_workers
from .options import parse


@quiet_in_pipes
def main(argv: list[str] | None = None) -> None:
    """The command. Prints a table; exit status 2, with one line, for what cannot be measured."""
    args = parse(argv)
    from . import report
    from .machine import describe
    machine = describe()
    fork_workers()
    print(machine, flush=True)
    try:
        result = import_module(f'.{args.command}', __package__).measure(args)
        print(f'{result.caption}\n{report.table(result.rows)}')
        if args.output:
            report.save(result, args.output, args.command, machine)
    except BrokenPipeError:  # see quiet_in_pipes
        raise
    except (ValueError, OSError) as error:  # of the data, the options, or a place that cannot be written to
        print(f'python -m agmax_timm.bench {args.command}: error: {as_line(error)}', file=sys.stderr)
        sys.exit(2)
