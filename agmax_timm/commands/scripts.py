"""The commands. Options are parsed first: torch and timm take seconds to import, --help need not wait for them."""

from ..base.command_line import quiet_in_pipes
from ..base.processes import fork_workers, kept_imports
from ..options.parse import parse_train_args, parse_validate_args


@quiet_in_pipes
def train(argv: list[str] | None = None) -> None:
    """train.py, agmax-train."""
    args = parse_train_args(argv)
    fork_workers()
    with kept_imports():
        if args.check_data:
            from .check_data import run_train as run
        else:
            from ..training.run import run
    run(args)


@quiet_in_pipes
def validate(argv: list[str] | None = None) -> None:
    """validate.py, agmax-validate."""
    args = parse_validate_args(argv)
    fork_workers()
    with kept_imports():
        if args.check_data:
            from .check_data import run_validate as run
        else:
            from ..evaluation.validation import run
    run(args)
