"""Flags that several commands other than train.py and validate.py share."""
import argparse
from typing import Any

from ..base.command_line import Parser
from .declare import declared
from .key_values import KeyValues
from .parsers import TrainOptions, add_option


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """Add --use-ema and --raw, which set `use_ema` to True and False. None means those that ranked the checkpoints."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--use-ema', action='store_true', default=None,
                       help='use the EMA of the weights (default: the weights that ranked the checkpoints)')
    group.add_argument('--raw', action='store_false', dest='use_ema', default=None,
                       help='use the raw weights')


def add_model_flags(parser: Parser) -> None:
    """Add flags for files of weights that do not name their model; see checkpoint.read_model."""
    parser.add_argument('--model', metavar='NAME', help='name of the model in timm, for files that do not state it')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of outputs, for files that do not state it')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='further arguments of the model, for files that do not state them')


def add_train_flags(parser: Any, *names: str) -> None:
    """Add flags of train.py to a parser or a group of it."""
    for name in names:
        add_option(parser, declared(TrainOptions)[name])


def pinning(pin_mem: bool, no_pin_mem: bool) -> bool | None:
    """Whether the flags ask for pinned memory. None is the default of the device."""
    return False if no_pin_mem else pin_mem or None
