"""The report command: python -m agmax_timm.report RUN_FOLDER [DATA]"""

from ..base.command import command
from ..base.command_line import Parser
from ..base.processes import imports_without_gc
from ..options.shared_flags import add_weights_flags

PROG = 'python -m agmax_timm.report'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """Run the command. Print the path of the page."""
    args = _parser().parse_args(argv)
    with imports_without_gc():
        from ..assembly.console import setup_logging
        from .report import make_report
    setup_logging()
    print(make_report(args.folder, args.data, args.device, args.workers, use_ema=args.use_ema))


def _parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description="Evaluate the best weights of a run, and write report.html into its folder: metrics, settings, "
                    'curves, views, classes, mistakes and calibration on a page that needs no other file.')
    parser.add_argument('folder', metavar='RUN_FOLDER', help="a run's folder, with args.yaml and model_best.pth.tar")
    parser.add_argument('data', nargs='?', metavar='DATA', help='folder of its data (default: where it was)')
    parser.add_argument('--device', default='cuda', help='device; the CPU is used without CUDA')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help="loader processes (default: the run's)")
    add_weights_flags(parser)
    return parser


if __name__ == '__main__':
    main()
