"""From a run or a checkpoint to a folder of timm's: python -m agmax_timm.export SOURCE FOLDER"""
import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .base.atomic_write import scratch_folder
from .base.command import command
from .base.command_line import Parser, add_dataset_flag, add_model_flags, add_weights_flags
from .base.errors import OptionError
from .base.licences import add_license_flag, check_license
from .base.safe_load import read_file
from .evaluation.published import compare_on_data
from .weights.checkpoint import METADATA, SavedModel, choose_ema, read_model
from .weights.hub import check_dataset
from .weights.measured import measured
from .weights.onnx_export import FILE as ONNX
from .weights.onnx_export import require_onnx, write_onnx
from .weights.staging import stage

PROG = 'python -m agmax_timm.export'


@command(PROG)
def main(argv: list[str] | None = None) -> None:
    """The command. Write the folder, and print what it holds."""
    args = _parser().parse_args(argv)
    check_empty(args.folder)
    check_license(args.license)
    check_dataset(args.hub_dataset)
    if args.onnx:
        require_onnx()
    saved = read_source(args).with_dataset(args.hub_dataset)
    difference = _write(saved, args.folder, args.onnx, args.license)
    classes = f'{saved.num_classes} classes' + (', named' if saved.class_names else '')
    metrics = ''.join(f', {name} {value:g}' for name, value in measured(saved).items() if name in ('top1', 'top5'))
    print(f'{saved.source}: {saved.weights}\n'
          f'{saved.architecture}, {classes}{metrics}\n'
          f"Reloaded with equal logits: timm.create_model('local-dir:{args.folder}', pretrained=True)")
    if args.onnx:
        print(f'{os.path.join(args.folder, ONNX)}: the logits of ONNX Runtime differ by up to {difference:.1g} of the '
              'largest')


def _write(saved: SavedModel, folder: str, onnx: bool, license: str) -> float:
    """Stage a model and, if asked for, write it in ONNX; both or nothing. Returns as write_onnx."""
    if not onnx:
        stage(saved, folder, license, partial(compare_on_data, saved))
        return 0.
    os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
    with scratch_folder(os.path.abspath(folder)) as scratch:
        difference = write_onnx(saved, scratch)
        stage(saved, folder, license, partial(compare_on_data, saved))
        for name in os.listdir(scratch):
            os.replace(os.path.join(scratch, name), os.path.join(folder, name))
    return difference


def read_source(args: argparse.Namespace) -> SavedModel:
    """The model that the options name.

    Raises:
        CheckpointError: as read_model.
        OptionError: as average_models.
    """
    if args.average is None:
        which = 'last' if args.last else 'best'
        return read_model(args.source, args.use_ema, which, args.model, args.num_classes, args.model_kwargs)
    if args.last:
        raise OptionError(f'--average {args.average} is of the best checkpoints: drop --last')
    return average_models(args.source, args.average, args.use_ema, args.model)


def check_empty(folder: str) -> None:
    """Raise OptionError where something would be overwritten."""
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise OptionError(f'{folder} is there and not an empty folder: name a new one')


def average_models(
        run_dir: str,
        count: int,
        use_ema: bool | None = False,
        architecture: str | None = None,
) -> SavedModel:
    """The mean of the weights of the best checkpoints of a run, as timm's avg_checkpoints takes it: in float64.

    Each epoch counts once, though `last` and `model_best` are among its files. What is not floating-point, such as a
    count of batches, is that of the best checkpoint. Nobody has measured the mean: it has no metrics. `use_ema` is as
    in read_model.

    Raises:
        CheckpointError: as read_model.
        OptionError: no folder, fewer than `count` ranked checkpoints, or not all of one model.
    """
    paths = best_checkpoints(run_dir, count)
    best = read_model(paths[0], use_ema, architecture=architecture)
    use_ema = choose_ema(best.options, use_ema)
    sums = {name: value.to(torch.float64, copy=True) for name, value in best.state_dict.items()
            if value.is_floating_point()}
    for path in paths[1:]:
        tensors = read_model(path, use_ema, architecture=architecture).state_dict
        if _shapes(tensors) != _shapes(best.state_dict):
            raise OptionError(f'{path} is of another model than {paths[0]}: their tensors differ')
        for name, total in sums.items():
            total += tensors[name]
    tensors = dict(best.state_dict)
    for name, total in sums.items():
        limits = torch.finfo(tensors[name].dtype)
        tensors[name] = (total / count).clamp(limits.min, limits.max).to(tensors[name].dtype)
    weights = f'the mean of {count} checkpoints: {best.weights}'
    return replace(best, state_dict=tensors, metrics={}, weights=weights, source=' + '.join(paths))


def best_checkpoints(run_dir: str, count: int) -> list[str]:
    """Paths of the `count` best `checkpoint-N` of a run's folder, the best first, of equals the earlier one.

    Raises:
        CheckpointError: one of them cannot be read.
        OptionError: as average_models.
    """
    if count < 1:
        raise OptionError(f'--average must be 1 or more, got {count}')
    if not os.path.isdir(run_dir):
        raise OptionError(f'--average {count} needs the folder of a run, {run_dir} is none')
    ranked = []
    for path in map(str, Path(run_dir).glob('checkpoint-*.pth.tar')):
        checkpoint = read_file(path, mmap=True)
        if checkpoint.get('metric') is not None:
            cost = checkpoint['metric'] if _lower_is_better(checkpoint) else -checkpoint['metric']
            ranked.append((cost, checkpoint['epoch'], path))
    if len(ranked) < count:
        raise OptionError(f'--average {count}: {run_dir} holds {len(ranked)} checkpoints with a metric')
    return [path for _, _, path in sorted(ranked)[:count]]


def _lower_is_better(checkpoint: dict[str, Any]) -> bool:
    """By the metadata of ours, by the options of timm's."""
    name = checkpoint.get(METADATA, {}).get('metric_name') or getattr(checkpoint.get('args'), 'eval_metric', None)
    return name == 'loss'


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description="Write a trained classifier as timm keeps one: timm.create_model('local-dir:FOLDER', "
                    'pretrained=True) loads it, with nothing else installed, and did so before this says done.')
    parser.add_argument('source', metavar='SOURCE', help="a run's folder, a checkpoint, or weights as .safetensors")
    parser.add_argument('folder', metavar='FOLDER', help='a new or empty one')
    add_weights_flags(parser)
    parser.add_argument('--last', action='store_true', help="the last epoch of a run, not the best")
    parser.add_argument('--average', type=int, metavar='N', help="the mean of the N best checkpoints of a run's folder")
    add_dataset_flag(parser)
    parser.add_argument('--onnx', action='store_true', help='write model.onnx too, for any number of images, compared '
                        "in ONNX Runtime (needs the extra 'onnx')")
    add_license_flag(parser)
    add_model_flags(parser)
    return parser


if __name__ == '__main__':
    main()
