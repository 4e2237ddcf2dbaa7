"""List of the commands, and their completion in a shell: python -m agmax_timm"""
from importlib import import_module

from .base.command import command
from .base.command_line import Parser

# What each command does, and the function that creates its parser.
COMMANDS = {
    'agmax-train': ('train a model, with AgMax or without', '.options.parsers:train_parser'),
    'agmax-validate': ('evaluate a model, a checkpoint or many of them', '.options.parsers:validate_parser'),
    'agmax-predict': ('classify images', '.predict:create_parser'),
    'agmax-report': ('write the report of a run', '.report.command:create_parser'),
    'agmax-export': ('write a model in the formats of timm and ONNX', '.export:create_parser'),
    'agmax-publish': ('publish a model on the Hugging Face Hub', '.publish:create_parser'),
    'agmax-convert': ('convert a checkpoint of the original AgMax', '.convert:create_parser'),
    'agmax-study': ('train and compare several methods', '.study.command:create_parser'),
    'agmax-bench': ('measure speed and memory', '.bench.options:create_parser'),
}


@command('python -m agmax_timm')
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='python -m agmax_timm', description='List the commands. Each of them has --help.')
    parser.add_argument('--completion', metavar='SHELL', choices=('bash', 'zsh', 'tcsh'),
                        help='print the completion of all commands for a shell: bash, zsh or tcsh (needs shtab)')
    args = parser.parse_args(argv)
    if args.completion:
        print(*(completion(name, args.completion) for name in COMMANDS), sep='\n')
        return
    for name, (title, _) in COMMANDS.items():
        print(f'{name:16}{title}')


def completion(name: str, shell: str) -> str:
    """Return the completion of a command as text for a shell."""
    import shtab
    module, _, function = COMMANDS[name][1].partition(':')
    parser = getattr(import_module(module, __package__), function)()
    parser.prog = name
    return shtab.complete(parser, shell)


if __name__ == '__main__':
    main()
