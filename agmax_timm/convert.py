"""A checkpoint of the original AgMax as a folder in timm's layout, ready for the Hub.

    python -m agmax_timm.convert imagenet-standard-ResNet50-cutmix-auto_augment-78.5.pth FOLDER --model resnet50
"""
import os
from typing import TYPE_CHECKING, Any

from .base.command import command
from .base.command_line import Parser
from .base.errors import CheckpointError
from .base.licences import check_license
from .base.output_files import check_empty
from .options.shared_flags import add_train_flags

if TYPE_CHECKING:
    from .weights.saved_model import SavedModel

PROG = 'python -m agmax_timm.convert'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """Run the command. The exit status is 2 if the checkpoint is invalid, or the folder has files or is read-only."""
    args = create_parser().parse_args(argv)
    check_empty(args.folder)
    check_license(args.license)
    from .weights.card_text import marked
    from .weights.staging import CARD, loading_code, stage
    saved = read_original(args.checkpoint, args.model, args.img_size)
    stage(saved, args.folder, args.license)
    origin = (f'## Origin\n\nConverted from `{os.path.basename(args.checkpoint)}`, a checkpoint of the [original AgMax]'
              '(https://github.com/roatienza/agmax).')
    with open(os.path.join(args.folder, CARD), 'a', encoding='utf-8') as card:
        card.write(f"\n{marked('origin', origin)}\n")
    print(f'{args.folder}: load it with {loading_code(saved, args.folder)}')


def create_parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the original (.pth)')
    parser.add_argument('folder', metavar='FOLDER',
                        help='new or empty folder, for safetensors, config.json and a model card')
    parser.add_argument('--model', required=True, metavar='NAME', help='name of its network in timm, such as resnet101')
    parser.add_argument('--img-size', type=int, metavar='N',
                        help='crop to evaluate at (default: as published, 224 for ResNet, 32 for WideResNet, else 256)')
    add_train_flags(parser, 'license')
    return parser


def read_original(path: str, model: str, img_size: int | None = None) -> 'SavedModel':
    """Read the classifier of a checkpoint of the original AgMax, with its data configuration.

    Args:
        img_size: Size of the evaluation crop; None for the published size.

    Raises:
        CheckpointError: the file is missing or damaged, or is not a checkpoint of the original AgMax for this model.
    """
    from timm.models import create_model, is_model

    from .base.safe_load import read_file
    from .weights.original import filter_checkpoint, is_original, original_options
    from .weights.released import timm_architecture
    from .weights.saved_model import SavedModel
    architecture = timm_architecture(model)
    if not is_model(architecture):
        raise CheckpointError(f"--model '{model}': timm has no such model")
    checkpoint = read_file(path)
    if not is_original(checkpoint):
        raise CheckpointError(f"'{path}' is not a checkpoint of the original AgMax: "
                              'python -m agmax_timm.export takes those of timm and of agmax_timm')
    options = original_options(checkpoint, img_size)
    num_classes = options.pop('num_classes') or 1000  # the error then reports the missing head
    try:
        state_dict = filter_checkpoint(checkpoint, create_model(architecture, num_classes=num_classes))
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    return SavedModel(
        architecture=architecture,
        state_dict=state_dict,
        num_classes=num_classes,
        data_config=dict(options, crop_mode='center'),
        metrics=_metrics(checkpoint),
        source=path,
    )


def _metrics(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Return the epoch, counted from 0, and the accuracies in percent if they belong to these weights."""
    epoch = checkpoint.get('epoch')
    values = dict(epoch=epoch - 1 if isinstance(epoch, int) else None)
    if epoch == checkpoint.get('best_epoch'):
        values.update(top1=checkpoint.get('best_top1'), top5=checkpoint.get('best_top5'))
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


if __name__ == '__main__':
    main()
