"""Seconds from a command to what it is for, in fresh processes."""
import argparse
import tempfile
from functools import partial
from statistics import median

from . import fresh, passes
from .report import Result, Row

TRAIN = 'from agmax_timm.commands.train import main; main()'
FLAGS = ['--dataset', 'demo', '--model', 'test_resnet', '--num-classes', '10', '--img-size', '28', '--agmax',
         '-b', '50', '-j', '0', '--epochs', '1', '--log-interval', '1']
FIRST_STEP = 'Train: 0 ['

_BASE = 'import timm'
# Arguments of Python, and what its output shows when it is there: nothing for its end.
COMMANDS = {
    'import torch': (['-c', 'import torch'], ''),
    _BASE: (['-c', 'import timm'], ''),
    'train.py --help': (['-c', TRAIN, '--help'], ''),
    'first training step': (['-c', TRAIN, *FLAGS], FIRST_STEP),
}


def measure(args: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as output:
        configurations = {
            name: partial(_run, [*argv, *(['--output', output] if mark else [])], mark)
            for name, (argv, mark) in COMMANDS.items()}
        measured = passes.interleaved(configurations, args.repeats, warm=not args.quick)
    rows: list[Row] = [{
        'command': name,
        's': median(map(passes.seconds, measured[name])),
        **passes.ratios(measured, name, _BASE, passes.seconds),
        'CPU s': median(one.cpu_seconds for one in measured[name]),
    } for name in configurations]
    return Result('ratio: seconds against import timm; the demo data, test_resnet, one step included', rows)


def _run(argv: list[str], mark: str) -> int:
    fresh.wait_for(argv, mark)
    return 1
