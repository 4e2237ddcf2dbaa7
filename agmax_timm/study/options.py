"""Flags of the study command. Imports no torch, so that --help is fast."""
import argparse

from ..base.command_line import Parser

PROG = 'python -m agmax_timm.study'


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog=PROG, description='Train every augmentation with every method and seed of a file, and '
                                           'compare the methods. The same command continues where it was stopped.')
    parser.add_argument('study', metavar='STUDY.yaml', help='what is compared, see docs/studies.md')
    parser.add_argument('--data', metavar='DIR', help='folder of the data; wins over the one in the file')
    parser.add_argument('--output', metavar='DIR', help="folder of the runs and tables (default: output/study/ and the "
                                                        "file's name)")
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time; each gets its share of cores')
    parser.add_argument('--devices', nargs='+', default=[], metavar='DEVICE',
                        help='devices that the jobs take in turn, such as cuda:0 cuda:1 (default: that of train.py)')
    parser.add_argument('--table', action='store_true',
                        help='only write table and figure of the runs that are complete, also while others train')
    parser.add_argument('--dry-run', action='store_true', help='only print the commands, and what they cost')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    return args
