"""Options of the data, refused for kinds of data that ignore them. timm ignores them in silence."""
import os
from collections.abc import Callable
from typing import Any

from ..base.command_line import flag_of
from .data import DataSet
from .declare import declared

_NUMBERS = {'train_num_samples': 'train_split', 'val_num_samples': 'val_split', 'num_samples': 'split'}


def kind_of(options: DataSet) -> str:
    """Return the kind of data: 'folder', 'tar', 'demo', or the part of the name before the slash, in lower case."""
    kind = options.dataset.partition('/')[0]
    if options.dataset:
        return kind.lower()
    return 'tar' if os.path.isfile(options.data_dir or '') else 'folder'


def check_source(options: DataSet, error: Callable[[str], Any]) -> None:
    """Call `error` with one line, including the remedy, for an option that this kind of data would ignore."""
    kind = kind_of(options)
    data = f'--dataset {options.dataset}' if options.dataset else {'tar': 'a tar file'}.get(kind, 'a folder')
    for name, declaration in declared(type(options)).items():
        value = getattr(options, name)
        if value and declaration.kinds and kind not in declaration.kinds:
            error(f'{flag_of(name)} {value} does nothing on {data}: {_remedy(options, name, kind)}')
    repeats = getattr(options, 'epoch_repeats', 0.)
    if 0. < repeats < 1.:
        error(f'--epoch-repeats {repeats:g} does nothing on {data}: an epoch is one pass or more')


def _remedy(options: DataSet, name: str, kind: str) -> str:
    if name == 'epoch_repeats':
        return 'use --train-num-samples for a longer epoch' if kind == 'wds' else 'use more --epochs'
    if name in _NUMBERS and kind in ('hfds', 'tfds'):
        split = _NUMBERS[name]
        return f"use {flag_of(split)} '{getattr(options, split)}[:{getattr(options, name)}]'"
    if name in _NUMBERS and kind in ('folder', 'tar'):
        return 'its images are counted: drop it, or name a folder with fewer images'
    if name == 'target_key' and kind in ('folder', 'tar'):
        return 'its targets are folders: drop it'
    return 'drop it'
