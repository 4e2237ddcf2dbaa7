"""Options of the data, refused for kinds of data that ignore them. timm ignores them without a message."""
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..base.command_line import flag_of
from .data import DataSet
from .declare import declared
from .quantities import share_of

DATASETS = ('torch', 'hfds', 'hfids', 'tfds', 'wds')  # types in TYPE/NAME
_NUMBERS = {'train_num_samples': 'train_split', 'val_num_samples': 'val_split', 'num_samples': 'split'}


def kind_of(options: DataSet) -> str:
    """Return the kind of data: 'folder', 'tar', 'demo', or the part of the name before the slash, in lower case.

    Other names without a slash mean a folder or a tar file, as in timm.
    """
    kind, slash, _ = options.dataset.partition('/')
    if slash or kind == 'demo':
        return kind.lower()
    return 'tar' if os.path.isfile(options.data_dir or '') else 'folder'


def in_sequence(options: DataSet) -> bool:
    """Whether the data is of a kind that is read in sequence, without an index."""
    return kind_of(options) in ('hfids', 'tfds', 'wds')


def check_source(options: DataSet) -> Iterator[str]:
    """Yield a line, with the remedy, for each option that this kind of data would ignore."""
    kind = kind_of(options)
    data = {'tar': 'a tar file', 'folder': 'a folder'}.get(kind, f"--dataset '{options.dataset}'")
    for name, declaration in declared(type(options)).items():
        value = getattr(options, name)
        if value and declaration.kinds and kind not in declaration.kinds:
            yield f'{flag_of(name)} {value!r} does nothing on {data}: {_remedy(options, name, kind)}'
    for name in ('val_split', 'split'):
        share = share_of(getattr(options, name, None))
        if share is not None and in_sequence(options):
            yield (f'{flag_of(name)} {share:g} is a share of images with an index, and {data} is read in sequence: '
                   'name a split')
        if share is not None and getattr(options, 'task', '') == 'multilabel':
            yield (f'{flag_of(name)} {share:g} is a share of each class, and --task multilabel has several per image: '
                   'name a split')
    repeats = getattr(options, 'epoch_repeats', 0.)
    if 0. < repeats < 1.:
        yield (f'--epoch-repeats {repeats:g} does nothing on {data}, where an epoch is one pass or more: for shorter '
               'epochs, use fewer images, or a smaller --train-num-samples of hfids/')


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


def needs_index(options: DataSet, flag: str) -> Iterator[str]:
    """Yield a line for data that is read in sequence."""
    if in_sequence(options):
        yield (f"{flag} needs data that can be indexed, got --dataset '{options.dataset}': drop it, or use a folder, "
               'torch/ or hfds/')


def needs_classes(options: Any, flag: str) -> Iterator[str]:
    """Yield a line for data whose images of each class cannot be counted before they are read."""
    if options.task == 'multilabel':
        yield f'{flag} is for one class per image: drop it, or drop --task multilabel'
    yield from needs_index(options, flag)


def share_options(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of validate.py for the share that a run held out; {} if it validated on a split."""
    if share_of(saved.get('val_split')) is None or 'val_split_seed' not in saved:
        return {}
    return {'split': saved['val_split'], **{name: saved[name] for name in ('train_split', 'val_split_seed')}}


def split_name(options: Mapping[str, Any], split: Any) -> Any:
    """Return the name of a split for readers, or for a share '0.1 of train'."""
    return split if share_of(split) is None else f"{split} of {options.get('train_split')}"
