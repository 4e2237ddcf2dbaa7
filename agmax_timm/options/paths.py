"""Files and folders that options name: those to be read are there, those to be written can be."""
import argparse
import glob
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from ..base.command_line import flag_of

_FILES = ('pretrained_path', 'initial_checkpoint', 'class_stats', 'real_labels', 'valid_labels')
CLASSES_OF_MODEL = 'model'  # for --class-map of validate.py: the names that the model has


def check_paths(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Hand the first path that cannot be to `error`, as a line with its flag."""
    for name, value in vars(args).items():
        if isinstance(value, str) and '\0' in value:
            error(f'{flag_of(name)} must not have a NUL in it, got {value!r}')
    for name in _FILES:
        if timms_labels(name, getattr(args, name, '')):
            continue
        if name != 'pretrained_path' or args.pretrained:
            _check_file(name, getattr(args, name, ''), error)
    if getattr(args, 'resume', '') != 'auto':
        _check_file('resume', getattr(args, 'resume', ''), error)
    # timm looks for it in the folder of the split, too.
    data_dir = glob.escape(args.data_dir or '')
    of_model = 'checkpoint' in args and args.class_map == CLASSES_OF_MODEL
    if args.class_map and not of_model and not any(
            glob.glob(os.path.join(data_dir, folder, glob.escape(args.class_map))) for folder in ('', '*')):
        _check_file('class_map', args.class_map, error)
    if getattr(args, 'experiment', ''):
        _check_experiment(args.experiment, error)
    if 'output' in args:
        _check_folder(os.path.join(args.output or 'output', args.experiment), error)
    if getattr(args, 'report_dir', ''):
        _check_folder(args.report_dir, error, '--report-dir')
    if os.path.isdir(getattr(args, 'results_file', '')):
        error(f'--results-file {args.results_file} is a folder: name a file')
    folder = os.path.dirname(getattr(args, 'results_file', ''))
    if folder and not os.path.isdir(folder):
        error(f'--results-file {args.results_file}: no folder {folder}: make it first')


def timms_labels(name: str, value: str) -> str:
    """The file among timm's own that --real-labels imagenet, or --valid-labels imagenet-a, -r and the like, stand for.

    '' for another value, or where a file of the user's has this name. timm is not imported for it.
    """
    files = {'real_labels': '_real_labels.json', 'valid_labels': '_indices.txt'}
    if name not in files or not value.replace('-', '').isalnum() or os.path.exists(value):
        return ''
    package = os.path.dirname(importlib.util.find_spec('timm').origin)
    path = os.path.join(package, 'data', '_info', value.replace('-', '_') + files[name])
    return path if os.path.isfile(path) else ''


def _check_file(name: str, path: str, error: Callable) -> None:
    if path and not os.path.exists(path):
        error(f'{flag_of(name)} {path}: no such file')
    if path and os.path.isdir(path):
        error(f'{flag_of(name)} {path} is a folder: name a file')


def _check_experiment(name: str, error: Callable) -> None:
    """Within --output, whose folders it may name."""
    parts = name.split('/')
    if os.path.isabs(name) or '..' in parts or name.strip('./ ') == '':
        error(f'--experiment {name!r} is not the name of a folder within --output: drop the way to it')


def _check_folder(path: str, error: Callable, flags: str = '--output, --experiment') -> None:
    """That it is a folder that can be written to, or one can be made."""
    if any(len(os.fsencode(part)) > 200 for part in path.split('/')):
        error(f'{flags}: a folder may have a name of 200 bytes, got {path}')
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        error(f'{flags} {path}: {there} is not a folder: name another one')
    if not os.access(there, os.W_OK | os.X_OK):
        error(f'{flags} {path}: {there} cannot be written to: name another one')
