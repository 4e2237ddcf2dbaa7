"""Files of tensors read back as hostile: verified by the sums in them, tensors and plain values alone."""
import argparse
import os
import pickle
import re
import warnings
import zipfile
from typing import Any

import safetensors.torch
import torch

from .errors import CheckpointError
from .text import one_line

# Of a part of a zip file; torch leaves the tensors of such a part as the memory happened to be.
_IS_FOLDER = 0x10


def read_file(path: str, mmap: bool = False) -> dict[str, Any]:
    """All that a file holds, as long as that is tensors and plain values.

    Args:
        mmap: Read tensors only when they are used, while the file must not change, and without verifying it.

    Raises:
        CheckpointError: the file is missing, damaged (see verify), or holds anything else.
    """
    if mmap:
        _check_there(path)
    else:
        verify(path)
    try:
        if path.endswith('.safetensors'):
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # on what then fails in one line
            mmap = mmap and _is_zip(path)
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        if found is None:
            raise CheckpointError(f'{path} is damaged or not a checkpoint') from error
        raise CheckpointError(f'{path} holds {found[1]}, which is neither a tensor nor a plain value: refused, '
                              'nothing of it was executed') from error
    except Exception as error:  # torch raises what its parsers stumble over
        reason = one_line(error).split('. ')[0]
        raise CheckpointError(f'{path} is damaged or not a checkpoint: {reason}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    return checkpoint


def verify(path: str) -> None:
    """Check a file against the sums in it: torch.save writes a CRC32 of every part, and torch.load does not look.

    What torch wrote before its zip format has no sums, nor has safetensors: there only what does not parse is found.

    Raises:
        CheckpointError: the file is missing, empty or damaged.
    """
    _check_there(path)
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip() or next(
                (part.filename for part in parts.infolist() if part.external_attr & _IS_FOLDER), None)
    except Exception as error:  # zipfile raises what its parsers stumble over
        raise CheckpointError(f'{path} is damaged: {one_line(error)}') from error
    if damaged is not None:
        raise CheckpointError(f'{path} is damaged: {damaged} is not what was written')


def _is_zip(path: str) -> bool:
    """As torch decides it; zipfile would look at the end of the file, which may be damaged."""
    with open(path, 'rb') as f:
        return f.read(4) == b'PK\x03\x04'


def _check_there(path: str) -> None:
    if not os.path.isfile(path):
        raise CheckpointError(f'no such checkpoint: {path}')
    if not os.path.getsize(path):
        raise CheckpointError(f'{path} is empty')
