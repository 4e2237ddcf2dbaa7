"""The options of a run for readers: those that differ from the defaults, and the command that repeats the run."""
import shlex
from typing import Any

from .data_kinds import share_options
from .declare import declared
from .derived import defaults_by_method
from .parsers import TrainOptions, ValidateOptions
from .paths import CLASSES_OF_MODEL
from .recipe import portable, recipe


def changed_options(options: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return value and default of each changed option, without options of the machine and its folders.

    Args:
        options: Options of the user, as in args.yaml.
    """
    defaults = {name: option.default for name, option in declared(TrainOptions).items()}
    agmax = options.get('agmax', False) or options.get('agmax_teacher') == 'memory'
    defaults.update(defaults_by_method(options.get('task', ''), agmax))
    return {name: (value, defaults[name]) for name, value in recipe(options).items() if value != defaults[name]}


def train_script(options: dict[str, Any], processes: int) -> list[str]:
    """Return the first words of a command that repeats the run, without its options. See train_command."""
    script = ['python', 'train.py'] if processes == 1 else ['torchrun', '--nproc-per-node', str(processes), 'train.py']
    return script + (['DIR'] if options.get('data_dir') else [])


def train_command(options: dict[str, Any], processes: int = 1) -> str:
    """Return the command that repeats the run. DIR stands for the folder of the data.

    Args:
        processes: Number of processes of the run, on all machines together.
    """
    words = train_script(options, processes)
    for name, (value, _) in changed_options(options).items():
        words += declared(TrainOptions)[name].words(value)
    return shlex.join(words)


def validate_command(options: dict[str, Any], model: str) -> str:
    """Return the command that evaluates an exported model like its run. DIR stands for the folder of the data.

    Args:
        model: Name of the exported model, quoted for the shell.
    """
    values = {name: options.get(name) for name, option in declared(ValidateOptions).items()
              if option.evaluation in ('data', 'labels', 'precision', 'compilation')}
    values.update(
        {'split': options.get('val_split'), **share_options(options)},
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
