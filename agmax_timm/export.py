"""Export a run or a checkpoint in timm's format: python -m agmax_timm.export SOURCE FOLDER"""
import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .base.command import command
from .base.command_line import Parser
from .base.errors import OptionError
from .base.licences import check_license
from .base.output_files import check_empty
from .base.processes import imports_without_gc
from .options.shared_flags import add_model_flags, add_train_flags, add_weights_flags

if TYPE_CHECKING:
    from .weights.saved_model import SavedModel

PROG = 'python -m agmax_timm.export'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """Run the command. Write the folder, and print a summary."""
    args = create_parser().parse_args(argv)
    with imports_without_gc():  # imports take seconds, so --help does without them
        from .evaluation.compare_staged import compare_on_data
        from .options.hub_names import check_dataset
        from .weights.measured import measured
        from .weights.onnx_export import FILE as ONNX
        from .weights.onnx_export import require_onnx, write_onnx
        from .weights.staging import loading_code, stage
    check_empty(args.folder)
    check_license(args.license)
    check_dataset(args.hub_dataset)
    if args.onnx:
        require_onnx()
    saved = read_source(args).with_dataset(args.hub_dataset)
    differences: list[float] = []

    def check(staged: Path) -> None:
        compare_on_data(saved, staged)
        if args.onnx:
            differences.append(write_onnx(saved, str(staged)))

    stage(saved, args.folder, args.license, check)
    classes = f'{saved.num_classes} classes' + (', named' if saved.class_names else '')
    metrics = ''.join(f', {name} {value:g}' for name, value in measured(saved).items() if name in ('top1', 'top5'))
    print(f'{saved.source}: {saved.weights}\n'
          f'{saved.architecture}, {classes}{metrics}\n'
          f'Reloaded with equal logits: {loading_code(saved, args.folder)}')
    for difference in differences:
        print(f'{os.path.join(args.folder, ONNX)}: the logits of ONNX Runtime differ by up to {difference:.1g} of the '
              'largest')


def read_source(args: argparse.Namespace) -> 'SavedModel':
    """Read the model that the options name.

    Raises:
        CheckpointError: raised by read_model.
        OptionError: raised by average_models.
    """
    from .weights.averaging import average_models
    from .weights.saved_model import read_model
    model = dict(architecture=args.model, num_classes=args.num_classes, model_kwargs=args.model_kwargs)
    if args.average is None:
        return read_model(args.source, args.use_ema, 'last' if args.last else 'best', **model)
    if args.last:
        raise OptionError(f'--average {args.average} averages the best checkpoints: drop --last')
    return average_models(args.source, args.average, args.use_ema, **model)


def create_parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description="Write a trained classifier in timm's format. timm.create_model('local-dir:FOLDER', "
                    'pretrained=True) loads the folder, which is tested first. Models that this package adds to timm '
                    'need `import agmax_timm` before.')
    parser.add_argument('source', metavar='SOURCE', help="a run's folder, a checkpoint, or weights as .safetensors")
    parser.add_argument('folder', metavar='FOLDER', help='new or empty folder')
    add_weights_flags(parser)
    parser.add_argument('--last', action='store_true', help='use the last epoch of a run instead of the best')
    parser.add_argument('--average', type=int, metavar='N', help='average the N best checkpoints of a run')
    parser.add_argument('--onnx', action='store_true', help='write model.onnx too, for any number of images, compared '
                        "in ONNX Runtime (needs the extra 'onnx')")
    add_train_flags(parser, 'hub_dataset', 'license')
    add_model_flags(parser)
    return parser


if __name__ == '__main__':
    main()
