"""The report command: python -m agmax_timm.report RUN_FOLDER ... [DATA]"""
import os
from typing import Any

from ..base.command import command
from ..base.command_line import Parser
from ..base.errors import OptionError
from ..base.processes import imports_without_gc
from ..options.shared_flags import add_weights_flags

PROG = 'python -m agmax_timm.report'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """Run the command. Print the path of the page. Several runs give one page that compares them."""
    parser = create_parser()
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 0:
        parser.error(f'--workers must be 0 or more, got {args.workers}')
    with imports_without_gc():
        from ..assembly.console import setup_logging
        from .comparison import compare_runs
        from .report import make_report
    setup_logging()
    folders, data = args.folders, None
    if len(folders) > 1 and not os.path.isfile(os.path.join(folders[-1], 'args.yaml')):
        *folders, data = folders
        if not os.path.exists(data) and '://' not in data:
            raise OptionError(f"'{data}': no such folder: give folders of runs, and then the folder of their data")
    how: dict[str, Any] = dict(data_dir=data, device=args.device, workers=args.workers, use_ema=args.use_ema)
    if args.output and not os.path.isdir(os.path.dirname(args.output) or '.'):
        raise OptionError(f"--output '{args.output}': there is no such folder: create it first")
    if len(folders) == 1:
        print(make_report(folders[0], **how, path=args.output))
    else:
        print(compare_runs(folders, args.output or 'comparison.html', **how))


def create_parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description="Evaluate the best weights of a run, and write a report: metrics, settings, "
                    'curves, views, classes, mistakes and calibration on a page that needs no other file. Several '
                    'runs: write a page that compares them.')
    parser.add_argument('folders', nargs='+', metavar='RUN_FOLDER',
                        help='folders of runs, with args.yaml and model_best.pth.tar; a last folder that is not a run '
                             'is that of their data (default: where it was)')
    parser.add_argument('--output', metavar='FILE',
                        help="page to write (default: report.html in the run's folder, comparison.html for several)")
    parser.add_argument('--device', default='cuda', help='device; the CPU is used without CUDA')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help="loader processes (default: the run's)")
    add_weights_flags(parser)
    return parser
