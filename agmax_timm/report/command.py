"""One page on a run, for any browser: python -m agmax_timm.report RUN_FOLDER [DATA]"""

from ..base.command_line import Parser, add_weights_flags, as_line, quiet_in_pipes
from ..base.processes import fork_workers, kept_imports


@quiet_in_pipes
def main(argv: list[str] | None = None) -> None:
    """The command. Prints the path of the page, or one line on why there is none: exit status 2, 1 if a worker died."""
    parser = _parser()
    args = parser.parse_args(argv)
    with kept_imports():
        from ..base.command_line import OptionError
        from ..base.data_errors import WorkerError
        from ..base.safe_load import CheckpointError
        from ..data.sources.datasets import DataError
        from ..training.output import log
        from .report import make_report
    log.setup_logging()
    fork_workers()
    try:
        print(make_report(args.folder, args.data, args.device, args.workers, use_ema=args.use_ema))
    except BrokenPipeError:  # see quiet_in_pipes
        raise
    except (OptionError, DataError, CheckpointError, OSError, WorkerError) as error:
        status = 1 if isinstance(error, WorkerError) else 2
        parser.exit(status, f"{parser.prog}: error: {as_line(error)}\n")


def _parser() -> Parser:
    parser = Parser(
        prog='python -m agmax_timm.report',
        description="Evaluate the best weights of a run, and write report.html into its folder: metrics, settings, "
                    'curves, views, classes, mistakes and calibration on a page that needs no other file.')
    parser.add_argument('folder', metavar='RUN_FOLDER', help="a run's folder, with args.yaml and model_best.pth.tar")
    parser.add_argument('data', nargs='?', metavar='DATA', help='folder of its data (default: where it was)')
    parser.add_argument('--device', default='cuda', help='cpu where there is no CUDA')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help="loader processes (default: the run's)")
    add_weights_flags(parser)
    return parser


if __name__ == '__main__':
    main()
