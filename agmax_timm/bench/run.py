"""Whole runs of train.py --agmax against timm's own training script on the same number of views."""
import argparse
import os
import shlex
import tempfile
from functools import partial
from statistics import median

from ..data.sources.datasets import create_dataset
from . import fresh, passes
from .report import Result
from .startup import TRAIN
from .step import describe, find_device

_TIMM, _OURS = "timm's script", 'train.py --agmax'


def measure(args: argparse.Namespace) -> Result:
    if not os.path.isfile(args.timm_script):
        raise ValueError(f"--timm-script {args.timm_script} is no file: get train.py of timm's repository")
    device = find_device(args)
    images = len(create_dataset('', root=args.folder, split=args.split))
    flags = [f'--train-split={args.split}', f'--workers={args.workers}', f'--model={args.model}',
             f'--device={args.device}', *shlex.split(args.flags)]
    with tempfile.TemporaryDirectory() as output:
        measured = passes.interleaved({
            _TIMM: partial(_run, [args.timm_script, '--data-dir', args.folder, *flags, f'--output={output}',
                                  *_lengths(2 * args.batch_size, 2 * args.epochs)]),
            _OURS: partial(_run, ['-c', TRAIN, args.folder, '--agmax', *flags, f'--output={output}',
                                  *_lengths(args.batch_size, args.epochs)]),
        }, args.repeats, warm=False)
    rows = [{
        'run': name,
        'views': 2 * args.epochs * images,
        's': median(map(passes.seconds, measured[name])),
        **passes.ratios(measured, name, _TIMM, passes.seconds),
        'CPU s': median(one.cpu_seconds for one in measured[name]),
    } for name in measured]
    return Result(
        f"ratio: seconds from the command to its end against timm's script with one view, batches of "
        f'{2 * args.batch_size} and twice the epochs; {describe(device)}; {args.model} {args.flags}'.rstrip(), rows)


def _lengths(batch_size: int, epochs: int) -> list[str]:
    """Both evaluate once, after the last epoch."""
    return [f'--batch-size={batch_size}', f'--epochs={epochs}', f'--val-interval={epochs}']


def _run(argv: list[str]) -> int:
    fresh.wait_for(argv, '')
    return 1
