"""The command line of the measurements: a module of each sub-command's name measures, its result is reported here."""
from importlib import import_module

from ..base.command import command
from ..base.errors import OptionError
from .options import parse


@command('python -m agmax_timm.bench')
def main(argv: list[str] | None = None) -> None:
    """The command. Print a table, and write it if --output is given."""
    args = parse(argv)
    from . import report
    from .machine import describe
    machine = describe()
    print(machine, flush=True)
    try:
        result = import_module(f'.{args.command}', __package__).measure(args)
    except ValueError as error:  # arguments that the loaders or the model refuse
        raise OptionError(str(error)) from error
    print(f'{result.caption}\n{report.table(result.rows)}')
    if args.output:
        report.save(result, args.output, args.command, machine)
