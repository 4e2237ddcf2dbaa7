"""Checks of files and folders in options: inputs exist, and outputs can be written."""
import glob
import importlib.util
import os
from collections.abc import Iterator

from ..base.command_line import flag_of
from .declare import declared
from .model import TrainModel
from .parsers import AnyOptions, TrainOptions, ValidateOptions

CLASSES_OF_MODEL = 'model'  # for --class-map of validate.py: the names that the model has


def check_paths(options: AnyOptions) -> Iterator[str]:
    """Yield a line with its flag for each invalid path."""
    for name, value in vars(options).items():
        if isinstance(value, str) and '\0' in value:
            yield f'{flag_of(name)} must not have a NUL in it, got {value!r}'
    for name, declaration in declared(type(options)).items():
        value = getattr(options, name)
        if declaration.is_file and not timms_labels(name, value) and (name, value) != ('class_stats', 'auto'):
            yield from _check_file(name, value)
    # timm looks for it in the folder of the split, too.
    data_dir = glob.escape(options.data_dir or '')
    of_model = isinstance(options, ValidateOptions) and options.class_map == CLASSES_OF_MODEL
    if options.class_map and not of_model and not any(
            glob.glob(os.path.join(data_dir, folder, glob.escape(options.class_map))) for folder in ('', '*')):
        yield from _check_file('class_map', options.class_map)
    if isinstance(options, TrainOptions):
        yield from check_initial_weights(options)
        if options.resume != 'auto':
            yield from _check_file('resume', options.resume)
        if options.experiment:
            yield from _check_experiment(options.experiment)
        yield from _check_folder(os.path.join(options.output or 'output', options.experiment))
        return
    if options.report_dir:
        yield from _check_folder(options.report_dir, '--report-dir')
    if os.path.isdir(options.results_file):
        yield f"--results-file '{options.results_file}' is a folder: name a file"
    folder = os.path.dirname(options.results_file)
    if folder and not os.path.isdir(folder):
        yield f"--results-file '{options.results_file}': no folder '{folder}': make it first"


def check_initial_weights(options: TrainModel) -> Iterator[str]:
    """Yield a line with its flag for each file of weights that is missing. A run that resumes needs none."""
    if not options.resume:
        yield from _check_file('initial_checkpoint', options.initial_checkpoint)
        if options.pretrained:
            yield from _check_file('pretrained_path', options.pretrained_path or '')


def timms_labels(name: str, value: str) -> str:
    """Return timm's own file for `--real-labels imagenet`, or for `--valid-labels imagenet-a` and similar names.

    '' for other values, and if the user has a file of this name. timm is not imported.
    """
    files = {'real_labels': '_real_labels.json', 'valid_labels': '_indices.txt'}
    if name not in files or not value.replace('-', '').isalnum() or os.path.exists(value):
        return ''
    timm = importlib.util.find_spec('timm')
    path = os.path.join(
        os.path.dirname(timm and timm.origin or ''), 'data', '_info', value.replace('-', '_') + files[name])
    return path if os.path.isfile(path) else ''


def _check_file(name: str, path: str) -> Iterator[str]:
    if path and not os.path.exists(path):
        yield f"{flag_of(name)} '{path}': no such file"
    if path and os.path.isdir(path):
        yield f"{flag_of(name)} '{path}' is a folder: name a file"


def _check_experiment(name: str) -> Iterator[str]:
    """Yield a line unless the name is that of a folder within --output. It may have several parts."""
    parts = name.split('/')
    if os.path.isabs(name) or '..' in parts or name.strip('./ ') == '':
        yield f'--experiment {name!r} is not the name of a folder within --output: give a path below it'


def _check_folder(path: str, flags: str = '--output, --experiment') -> Iterator[str]:
    """Yield a line unless the folder can be written to, or can be created."""
    if any(len(os.fsencode(part)) > 200 for part in path.split('/')):
        yield f"{flags}: the name of a folder must be at most 200 bytes, got '{path}'"
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        yield f"{flags} '{path}': '{there}' is not a folder: name another one"
    if not os.access(there, os.W_OK | os.X_OK):
        yield f"{flags} '{path}': '{there}' cannot be written to: name another one"
