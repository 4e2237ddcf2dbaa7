"""The bench command. Each sub-command calls the function of its name."""
from importlib import import_module

from ..base.command import command
from ..base.errors import OptionError
from .options import parse

_MODULES = dict(loader='loaders', small='loaders', step='network', training='network', run='processes',
                startup='processes')


@command('python -m agmax_timm.bench')
def main(argv: list[str] | None = None) -> None:
    """Run the command. Print a table, and write it with --output."""
    args = parse(argv)
    from . import output
    machine = output.describe_machine()
    print(machine, flush=True)
    module = import_module(f'.{_MODULES.get(args.command, args.command)}', __package__)
    try:
        result = getattr(module, args.command)(**args.arguments)
    except ValueError as error:  # raised by loaders and models for invalid arguments
        raise OptionError(str(error)) from error
    print(f'{result.caption}\n{output.table(result.rows)}')
    if args.output:
        output.save(result, args.output, args.command, machine)
