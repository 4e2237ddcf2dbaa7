"""Benchmarks of whole processes: start of train.py, and runs of train.py against timm's training script."""
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


def startup(repeats: int, warm: bool) -> Result:
    """Measure the time from the start of a command to its first result."""
    with tempfile.TemporaryDirectory() as output:
        measured = passes.interleaved({
            name: partial(_pass, [*argv, *(['--output', output] if mark else [])], mark)
            for name, (argv, mark) in COMMANDS.items()}, repeats, warm)
    columns = {'s': passes.seconds, 'ratio': passes.seconds, 'CPU s': passes.cpu}
    rows = passes.rows(measured, 'command', columns, baseline='import timm')
    return Result('ratio: seconds against import timm; the demo data, test_resnet, one step included', rows)


def run(
        timm_script: str, folder: str, split: str, model: str, batch_size: int, epochs: int, workers: int,
        device: str, flags: str, repeats: int) -> Result:
    """Measure whole runs of train.py --agmax and of timm's own training script on as many views.

    Both leave out the last, smaller batch of an epoch. So the numbers of views can differ by less than a batch of each
    epoch, and the ratio is that of the seconds per view.
    """
    if not os.path.isfile(timm_script):
        raise ValueError(f"--timm-script {timm_script!r} is not a file: get train.py of timm's repository")
    from ..base.distributed import describe_device
    from .network import find_device
    described = describe_device(find_device(device))
    images = len(create_dataset('', root=folder, split=split))
    if images < 2 * batch_size:
        raise ValueError(f'--batch-size {batch_size}: {images} images are no batch of {2 * batch_size} for '
                         f"timm's script: use {images // 2} or less")
    common = [f'--train-split={split}', f'--workers={workers}', f'--model={model}', f'--device={device}',
              *shlex.split(flags)]
    with tempfile.TemporaryDirectory() as output:
        common.append(f'--output={output}')
        measured = passes.interleaved({
            "timm's script": partial(
                _pass, [timm_script, '--data-dir', folder, *common, *_lengths(2 * batch_size, 2 * epochs)],
                count=2 * epochs * _in_batches(images, 2 * batch_size)),
            'train.py --agmax': partial(
                _pass, ['-c', TRAIN, folder, '--agmax', *common, *_lengths(batch_size, epochs)],
                count=2 * epochs * _in_batches(images, batch_size)),
        }, repeats, warm=False)
    rows = passes.rows(measured, 'run', {
        'views': passes.count, 's': passes.seconds, 'ratio': passes.seconds_of_one, 'CPU s': passes.cpu})
    return Result(
        f"ratio: seconds per view from the command to its end against timm's script with one view, batches of "
        f'{2 * batch_size} and twice the epochs; {described}; {model} {flags}'.rstrip(), rows)


def _lengths(batch_size: int, epochs: int) -> list[str]:
    """Return the flags of the length of a run that evaluates only after the last epoch."""
    return [f'--batch-size={batch_size}', f'--epochs={epochs}', f'--val-interval={epochs}']


def _in_batches(images: int, batch_size: int) -> int:
    """Return the number of images in the full batches of an epoch."""
    return images // batch_size * batch_size


def _pass(argv: list[str], mark: str = '', count: int = 1) -> int:
    wait_for(argv, mark)
    return count


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
