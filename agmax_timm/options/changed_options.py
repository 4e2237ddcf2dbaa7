"""The options of a run as people read them: what differs from the defaults, and the command that repeats it."""
import shlex
from typing import Any

from .declare import declared
from .parsers import TrainOptions, ValidateOptions
from .paths import CLASSES_OF_MODEL
from .recipe import portable, recipe


def changed_options(options: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The value and the default of each option that was changed; without those of the machine and its folders.

    Args:
        options: As given, as in args.yaml.
    """
    known = declared(TrainOptions)
    return {name: (value, known[name].default) for name, value in recipe(options).items()
            if value != known[name].default}


def train_command(options: dict[str, Any], processes: int = 1) -> str:
    """The command that makes the run again; DIR stands for the folder of the data.

    Args:
        processes: Of the run, on all machines together.
    """
    script = ['python', 'train.py'] if processes == 1 else ['torchrun', '--nproc-per-node', str(processes), 'train.py']
    words = script + (['DIR'] if options.get('data_dir') else [])
    for name, (value, _) in changed_options(options).items():
        words += declared(TrainOptions)[name].words(value)
    return shlex.join(words)


def validate_command(options: dict[str, Any], model: str) -> str:
    """The command that evaluates an exported model as its run did; DIR stands for the folder of the data.

    Args:
        options: Of the run, resolved.
        model: Name of the exported model, as the shell takes it.
    """
    values = {name: options.get(name) for name, option in declared(ValidateOptions).items()
              if option.evaluation in ('data', 'labels', 'precision', 'compilation')}
    values.update(
        split=options.get('val_split'),
        num_samples=options.get('val_num_samples'),
        batch_size=options.get('validation_batch_size') or options.get('batch_size'),
        class_map=CLASSES_OF_MODEL if options.get('class_map') else None)
    words = []
    for name, option in declared(ValidateOptions).items():
        value = portable(values.get(name))
        if value not in (None, '', option.default):
            words += option.words(value)
    data = 'DIR ' if options.get('data_dir') else ''
    return f'python validate.py {data}--model {model} --pretrained {shlex.join(words)}'.rstrip()
