"""The options of a run as people read them: what differs from the defaults, and the command that repeats it."""
import argparse
import shlex
from typing import Any

from .kinds import OF_ARITHMETIC, OF_EVALUATION
from .parsers import train_parser, validate_parser
from .paths import CLASSES_OF_MODEL
from .recipe import portable, recipe


def changed_options(options: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The value and the default of each option that was changed; without those of the machine and its folders.

    Args:
        options: As given, as in args.yaml.
    """
    parser = train_parser()
    return {name: (value, parser.get_default(name)) for name, value in recipe(options).items()
            if value != parser.get_default(name)}


def train_command(options: dict[str, Any], processes: int = 1) -> str:
    """The command that makes the run again; DIR stands for the folder of the data.

    Args:
        processes: Of the run, on all machines together.
    """
    script = ['python', 'train.py'] if processes == 1 else ['torchrun', '--nproc-per-node', str(processes), 'train.py']
    words = script + (['DIR'] if options.get('data_dir') else [])
    actions = _actions(train_parser())
    for name, (value, _) in changed_options(options).items():
        words += _words(actions[name], value)
    return shlex.join(words)


def validate_command(options: dict[str, Any], model: str) -> str:
    """The command that evaluates an exported model as its run did; DIR stands for the folder of the data.

    Args:
        options: Of the run, resolved.
        model: Name of the exported model, as the shell takes it.
    """
    told = {name: options.get(name) for name in ('dataset', 'naflex_loader', *OF_EVALUATION, *OF_ARITHMETIC)}
    told.update(
        split=options.get('val_split'),
        num_samples=options.get('val_num_samples'),
        batch_size=options.get('validation_batch_size') or options.get('batch_size'),
        class_map=CLASSES_OF_MODEL if options.get('class_map') else None)
    words = []
    for name, action in _actions(validate_parser()).items():
        value = portable(told.get(name))
        if value not in (None, '', action.default):
            words += _words(action, value)
    data = 'DIR ' if options.get('data_dir') else ''
    return f'python validate.py {data}--model {model} --pretrained {shlex.join(words)}'.rstrip()


def _words(action: argparse.Action, value: Any) -> list[str]:
    flag = next(flag for flag in action.option_strings if flag.startswith('--'))
    if isinstance(action, argparse._StoreTrueAction):
        return [flag]
    if isinstance(value, dict):
        return [flag, *(f'{key}={item!r}' for key, item in value.items())]
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    value = str(value)
    return [f'{flag}={value}'] if value.startswith('-') else [flag, value]


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions}
