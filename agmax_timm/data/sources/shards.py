"""Data in shards (wds/, hfids/): checks before training, and evaluation that reads each sample once.

timm gives whole shards to each loader worker of each rank. In training, a worker starts its shards again until it has
its part of the epoch, in whole batches. In evaluation on several ranks, timm does the same, so it repeats some samples
and leaves out others. share_evaluation() corrects this.
"""
import logging
import math
import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException
from importlib.util import find_spec
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from timm.data import IterableImageDataset
from torch.utils.data import Dataset

from ...base.distributed import is_primary, sum_of_ranks
from ...base.errors import DataError, SampleError
from .dataset_factory import create_dataset
from .decoding import UndecodableError, read_sample

_logger = logging.getLogger(__name__)

URL_TIMEOUT = 10.  # seconds
_TAR_BLOCK = 512  # bytes; the last block of a tar file is zero


def open_dataset(
        name: str,
        root: str | None = None,
        split: str = 'validation',
        workers: int = 0,
        samples_flag: str = '--num-samples',
        **kwargs,
) -> Any:
    """Open a data set by create_dataset, and check data in shards.

    Args:
        name: Kind of data set as in timm, such as 'wds/NAME'.
        root: Folder or URL of the data.
        workers: Number of loader workers of each rank that will read the data.
        samples_flag: Flag for the number of samples of this split, for messages.
        **kwargs: Further arguments of create_dataset.

    Raises:
        DataError: The root is missing, the host does not answer, shards are missing or incomplete, training has fewer
            shards than readers, or the number of samples is unknown.
    """
    kind = name.partition('/')[0].lower() if '/' in name else ''
    if kind == 'wds':
        _check_source(root)
    package = {'wds': 'webdataset', 'hfds': 'datasets', 'hfids': 'datasets'}.get(kind)
    if package and find_spec(package) is None:
        raise DataError(f"--dataset '{name}' needs a package that is not installed: pip install {package}")
    try:
        dataset = create_dataset(name, root=root, split=split, **kwargs)
    except DataError as error:
        if 'num_samples' not in str(error):
            raise
        raise _unknown_length(name, split, samples_flag) from error
    if kind in ('wds', 'hfids'):
        if not dataset.reader.num_samples:
            raise _unknown_length(name, split, samples_flag)
        if kind == 'wds':
            _check_shards(root or '', split, dataset.reader.split_info.filenames)
    if package:
        # A new data set, because a reader in sequence belongs to the process that uses it first.
        probe = create_dataset(name, root, split, **{**kwargs, 'is_training': False}) if kind != 'hfds' else dataset
        _check_first_sample(probe, f"--dataset '{name}': the first sample of split '{split}'")
    if kind in ('wds', 'hfids') and kwargs.get('is_training'):
        _check_readers(dataset.reader, name, split, max(1, workers))
    return dataset


def share_evaluation(dataset: Dataset, batch_size: int) -> None:
    """Change a wds/ data set in place, so that it gives each sample once over all ranks and workers of a loader."""
    if isinstance(dataset, IterableImageDataset) and _in_shards(dataset.reader):
        dataset.reader = EvaluationShards(dataset.reader, batch_size)


class EvaluationShards:
    """A reader of this rank's shards. timm's reader is set to one rank, because it then adds no samples.

    Args:
        reader: timm's ReaderWds of the whole split, changed in place.
    """

    def __init__(self, reader, batch_size: int):
        info, rank, ranks = reader.split_info, reader.dist_rank, reader.dist_num_replicas
        self.reader = reader
        self.batch_size = batch_size
        self.num_samples = reader.num_samples  # of all ranks
        self.num_workers = 1
        self.class_to_idx = reader.class_to_idx
        lengths = list(info.shard_lengths)
        if len(lengths) != len(info.filenames):  # unknown lengths are assumed to be equal
            lengths = [self.num_samples / len(info.filenames)] * len(info.filenames)
        self.shard_lengths = lengths[rank::ranks]
        reader.split_info = replace(info, filenames=tuple(info.filenames[rank::ranks]))
        reader.dist_rank, reader.dist_num_replicas = 0, 1

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        self.num_workers = max(1, num_workers or 0)
        self.reader.set_loader_cfg(num_workers=num_workers)

    def set_epoch(self, count: int) -> None:
        self.reader.set_epoch(count)

    def __iter__(self) -> Iterator:
        return iter(self.reader if self.shard_lengths else ())

    def __len__(self) -> int:
        """Return the samples of this rank. Each worker's are rounded up to whole batches, as the loader counts them."""
        shares = (sum(self.shard_lengths[worker::self.num_workers]) for worker in range(self.num_workers))
        return sum(math.ceil(share / self.batch_size) * self.batch_size for share in shares)


def shuffle_generator(dataset: Dataset) -> random.Random | None:
    """Return the generator that shuffles the training samples of wds/ in this process, None for other data.

    timm seeds it once for all epochs, so its state is needed to read an epoch again.
    """
    reader: Any = dataset.reader if isinstance(dataset, IterableImageDataset) else None
    if not _in_shards(reader) or not reader.is_training:
        return None
    if reader.ds is None:
        reader._lazy_init()
    return next(stage.kw['rng'] for stage in reader.ds.pipeline if 'rng' in getattr(stage, 'kw', ()))


def warn_of_loss(loader, count: int, device: torch.device) -> None:
    """Log a warning if the evaluation of an iterable data set had more or fewer samples than the split has.

    Args:
        count: Number of samples that this rank evaluated. All ranks call this function.
    """
    if not isinstance(getattr(loader, 'dataset', None), IterableImageDataset):
        return
    expected = getattr(loader.dataset.reader, 'num_samples', None)
    total = sum_of_ranks(torch.tensor(count, device=device)).item()
    if expected and total != expected and is_primary():
        _logger.warning(f'Evaluated {total} samples where the split should have {expected}: shards or samples '
                        'could not be read, or that number is wrong')


def check_delivered(num_batches: int, announced: int) -> None:
    """Raise DataError if an iterable training set gave fewer batches than its length. Ranks would wait forever."""
    if num_batches < announced:
        raise DataError(f'the training data ended after {num_batches} of {announced} batches: shards or samples '
                        'could not be read, see the warnings above; check the shards, --input-key and --target-key')


def _in_shards(reader) -> bool:
    """Return whether a reader is timm's reader of wds/. Its module imports webdataset if it is installed."""
    return type(reader).__name__ == 'ReaderWds'


def _unknown_length(name: str, split: str, samples_flag: str) -> DataError:
    hint = " or SPLIT|N" if name.lower().startswith('wds/') else ''
    return DataError(f"--dataset '{name}': the number of samples of split '{split}' is unknown, which is the length of "
                     f'an epoch: give {samples_flag} N{hint}')


def _check_first_sample(dataset: Any, where: str) -> None:
    """Raise DataError unless the first sample can be read with --input-key and --target-key."""
    reader = dataset.reader
    try:
        if not isinstance(dataset, IterableImageDataset):
            with suppress(UndecodableError, OSError):
                read_sample(reader, 0)
                return
            if any(row[reader.image_key] for row in reader.dataset.select_columns([reader.image_key])):
                return  # the first image is damaged, and --max-damaged decides
            raise ValueError('there are no images')  # timm adds an empty column if --input-key is wrong
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        if _in_shards(reader):
            reader.split_info = replace(reader.split_info, filenames=tuple(reader.split_info.filenames[:1]))
        next(iter(dataset))
    except StopIteration:
        raise DataError(f'{where} cannot be read, see the warnings above: check --input-key, --target-key') from None
    except SampleError:
        raise
    except Exception as error:  # a missing key can make timm raise anything
        raise DataError(f'{where} cannot be read: {error}: check split, --input-key, --target-key') from error


def _check_readers(reader, name: str, split: str, workers: int) -> None:
    """Raise DataError if a worker would have no shard. It would give no batch, and the other ranks would wait."""
    ranks = reader.dist_num_replicas
    if hasattr(reader, 'builder'):  # hfids/: ranks share shards if these do not divide evenly, workers never do
        if reader.download:
            return
        shards = reader.builder.as_streaming_dataset(split=split).num_shards
        most = shards // ranks if shards % ranks == 0 else shards
        remedy = f"more files, or --dataset {name.replace('hfids/', 'hfds/', 1)!r}"
    else:
        shards = len(reader.split_info.filenames)
        most = shards // ranks
        remedy = f'{ranks * workers} shards or more'
    if workers <= most:
        return
    fewer = f'--workers {most}' if most else f'{shards} process(es) at most'
    raise DataError(f"--dataset '{name}': split '{split}' has {shards} shard(s) for {ranks} rank(s) x {workers} "
                    f'worker(s), and none can be shared: use {fewer}, or {remedy}')


def _is_url(path: str) -> bool:
    return path.startswith(('http://', 'https://'))


def _check_source(root: str | None) -> None:
    """Raise DataError if the folder is missing or the host does not answer. timm would wait for 15 minutes."""
    if not root:
        raise DataError('no data: give the folder or URL of the shards, as DIR or --data-dir DIR')
    if _is_url(root):
        if not shutil.which('curl'):
            raise DataError(f"webdataset reads '{root}' with curl, which is not installed: install it with the package "
                            'manager of your system')
        try:
            urlopen(Request(os.path.join(root, '_info.json'), method='HEAD'), timeout=URL_TIMEOUT).close()
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                return  # the host answers, and the file may be missing
            raise DataError(f"--data-dir '{root}' does not answer: {error}") from error
    elif '://' not in root and not root.startswith('pipe:') and not os.path.isdir(root):
        raise DataError(f'no such folder: {root!r}: give the folder or URL of the shards, as DIR or --data-dir DIR')


def _check_shards(root: str, split: str, filenames) -> None:
    """Raise DataError for a shard that is missing or incomplete."""
    paths = [os.path.join(root, name) for name in filenames]
    with ThreadPoolExecutor(16) as pool:
        for path, problem in zip(paths, pool.map(_shard_problem, paths)):
            if problem:
                pool.shutdown(cancel_futures=True)
                raise DataError(f"split '{split}', shard '{path}': {problem}")


def _shard_problem(path: str) -> str | None:
    """Return what is wrong with a shard, from its size and last block. None if nothing, or if it cannot be checked."""
    try:
        if _is_url(path):
            with urlopen(Request(path, headers={'Range': f'bytes=-{_TAR_BLOCK}'}), timeout=URL_TIMEOUT) as response:
                no_ranges = response.status == 200  # the server ignores the Range header
                length = response.headers.get('Content-Length' if no_ranges else 'Content-Range', '').split('/')[-1]
                size = int(length) if length.isdigit() else None
                end = None if no_ranges else response.read()
        elif '://' in path or path.startswith('pipe:'):
            return None
        else:
            with open(path, 'rb') as f:
                size = f.seek(0, os.SEEK_END)
                f.seek(max(0, size - _TAR_BLOCK))
                end = f.read()
    except (OSError, HTTPException, ValueError) as error:
        return f'{error}' if _is_url(path) else f'{getattr(error, "strerror", None) or error}'
    if path.split('?')[0].endswith('.tar') and (size == 0 or (size or 0) % _TAR_BLOCK or (end and any(end))):
        return f'incomplete, {size} bytes without the zeros that end a tar file: copy or create it again'
    return None
