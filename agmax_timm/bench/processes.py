"""Benchmarks of whole processes: start of train.py, and runs of train.py against timm's training script."""
import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from functools import partial

from ..base.processes import environment
from ..data.sources.dataset_factory import create_dataset
from . import passes
from .output import Result

TRAIN = 'from agmax_timm.commands.train import main; main()'
FLAGS = ['--dataset', 'demo', '--model', 'test_resnet', '--num-classes', '10', '--img-size', '28', '--agmax',
         '-b', '50', '-j', '0', '--epochs', '1', '--log-interval', '1']
FIRST_STEP = 'Train: 0 ['

# Arguments of Python, and the text in the output that ends the measurement ('' for the end of the process).
COMMANDS = {
    'import torch': (['-c', 'import torch'], ''),
    'import timm': (['-c', 'import timm'], ''),
    'train.py --help': (['-c', TRAIN, '--help'], ''),
    'first training step': (['-c', TRAIN, *FLAGS], FIRST_STEP),
}


def startup(args: argparse.Namespace) -> Result:
    """Measure the time from the start of a command to its first result."""
    with tempfile.TemporaryDirectory() as output:
        measured = passes.interleaved({
            name: partial(_pass, [*argv, *(['--output', output] if mark else [])], mark)
            for name, (argv, mark) in COMMANDS.items()}, args.repeats, warm=not args.quick)
    columns = {'s': passes.seconds, 'ratio': passes.seconds, 'CPU s': passes.cpu}
    rows = passes.rows(measured, 'command', columns, baseline='import timm')
    return Result('ratio: seconds against import timm; the demo data, test_resnet, one step included', rows)


def run(args: argparse.Namespace) -> Result:
    """Measure whole runs of train.py --agmax and of timm's own training script on the same number of views."""
    if not os.path.isfile(args.timm_script):
        raise ValueError(f"--timm-script '{args.timm_script}' is not a file: get train.py of timm's repository")
    from ..base.distributed import describe_device as describe
    from .network import find_device
    device = find_device(args)
    views = 2 * args.epochs * len(create_dataset('', root=args.folder, split=args.split))
    flags = [f'--train-split={args.split}', f'--workers={args.workers}', f'--model={args.model}',
             f'--device={args.device}', *shlex.split(args.flags)]
    with tempfile.TemporaryDirectory() as output:
        flags.append(f'--output={output}')
        measured = passes.interleaved({
            "timm's script": partial(_pass, [args.timm_script, '--data-dir', args.folder, *flags, *_lengths(
                2 * args.batch_size, 2 * args.epochs)]),
            'train.py --agmax': partial(_pass, ['-c', TRAIN, args.folder, '--agmax', *flags, *_lengths(
                args.batch_size, args.epochs)]),
        }, args.repeats, warm=False)
    rows = passes.rows(measured, 'run', {
        'views': lambda one: views, 's': passes.seconds, 'ratio': passes.seconds, 'CPU s': passes.cpu})
    return Result(
        f"ratio: seconds from the command to its end against timm's script with one view, batches of "
        f'{2 * args.batch_size} and twice the epochs; {describe(device)}; {args.model} {args.flags}'.rstrip(), rows)


def _lengths(batch_size: int, epochs: int) -> list[str]:
    """Return the flags of the length of a run that evaluates only after the last epoch."""
    return [f'--batch-size={batch_size}', f'--epochs={epochs}', f'--val-interval={epochs}']


def _pass(argv: list[str], mark: str = '') -> int:
    wait_for(argv, mark)
    return 1


def wait_for(argv: list[str], mark: str) -> str:
    """Start Python, and kill it at the first line of its output that contains `mark`.

    Returns:
        That line; without a mark, the last line of the output.

    Raises:
        ValueError: The process failed, or ended without the mark.
    """
    line = ''
    process = subprocess.Popen(
        [sys.executable, *argv], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if mark and mark in line:
                return line
        if process.wait() or mark:
            raise ValueError(f'a process of python {argv[0]} {argv[1]} ended: {line.strip() or process.returncode}')
        return line
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
