"""Safe reading of checkpoints: checksums are verified, and only tensors and plain values are accepted."""
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

# Attribute of a folder in a zip file. torch would read uninitialised memory from a tensor with this attribute.
_IS_FOLDER = 0x10


def read_file(path: str, mmap: bool = False) -> dict[str, Any]:
    """Read a file of tensors and plain values.

    Args:
        path: Path of a file of torch.save, or of a .safetensors file.
        mmap: Whether to read a tensor only when it is used. The file is not verified, and must not change meanwhile.

    Raises:
        CheckpointError: The file is missing, is damaged (see verify), or holds anything else.
    """
    if mmap:
        _check_exists(path)
    else:
        verify(path)
    try:
        if path.endswith('.safetensors'):
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the error below suffices
            mmap = mmap and _is_zip(path)
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, LookupError) as error:  # the text of a LookupError is a bare key
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        if found is None:
            raise CheckpointError(f"'{path}' is damaged or not a checkpoint") from error
        raise CheckpointError(f"'{path}' holds '{found[1]}', which is neither a tensor nor a plain value: refused, "
                              'nothing of it was executed. Ask its author for a file of weights only') from error
    except Exception as error:  # a damaged file can make torch's parsers raise anything
        reason = one_line(error).split('. ')[0]
        raise CheckpointError(f"'{path}' is damaged or not a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"'{path}' is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def verify(path: str) -> None:
    """Verify the checksums in a file: torch.save writes a CRC32 of every part, which torch.load does not check.

    Files of safetensors and of torch's format before zip have no checksums. They are only checked when they are parsed.

    Raises:
        CheckpointError: The file is missing, empty or damaged.
    """
    _check_exists(path)
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip() or next(
                (part.filename for part in parts.infolist() if part.external_attr & _IS_FOLDER), None)
    except Exception as error:  # a damaged file can make zipfile raise anything
        raise CheckpointError(f"'{path}' is damaged: {one_line(error)}") from error
    if damaged is not None:
        raise CheckpointError(f"'{path}' is damaged: {damaged} is not what was written")


def _is_zip(path: str) -> bool:
    """Test the first bytes, as torch does. zipfile would test the end of the file, which may be damaged."""
    with open(path, 'rb') as f:
        return f.read(4) == b'PK\x03\x04'


def _check_exists(path: str) -> None:
    if not os.path.isfile(path):
        raise CheckpointError(f"no such checkpoint: '{path}'")
    if not os.path.getsize(path):
        raise CheckpointError(f"'{path}' is empty")
