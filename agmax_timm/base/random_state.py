"""Save and restore the random state of a process as plain bytes. create_run.py sets the seed of a run.

Augmentation, mixing and dropout draw from this state. A copy takes about 8 KB and 0.1 ms, so one can be taken with
every batch.
"""
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

# Words and position of the Mersenne Twister, then the cached normal number.
_PYTHON = struct.Struct('<625I?d')
_NUMPY = struct.Struct('<624IIId')
_PYTHON_VERSION, _NUMPY_NAME = 3, 'MT19937'


def get_generator_state(generator: Any = random) -> bytes:
    """Return the state of a random.Random, by default of Python's global one."""
    _, words, gauss = generator.getstate()
    return _PYTHON.pack(*words, gauss is not None, gauss or 0.)


def set_generator_state(state: bytes, generator: Any = random) -> None:
    """Set a state of get_generator_state."""
    *words, has_gauss, gauss = _PYTHON.unpack_from(state)
    generator.setstate((_PYTHON_VERSION, tuple(words), gauss if has_gauss else None))


def get_process_state() -> bytes:
    """Return the state of the global generators of Python, NumPy and torch's CPU in this process."""
    _, key, position, has_gauss, cached = cast(tuple, np.random.get_state())
    return b''.join((
        get_generator_state(),
        _NUMPY.pack(*key.tolist(), position, has_gauss, cached),
        torch.get_rng_state().numpy().tobytes(),
    ))


def set_process_state(state: bytes) -> None:
    """Set a state of get_process_state."""
    set_generator_state(state)
    *key, position, has_gauss, cached = _NUMPY.unpack_from(state, _PYTHON.size)
    np.random.set_state((_NUMPY_NAME, np.array(key, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch_state(state))


def torch_state(state: bytes) -> torch.Tensor:
    """Return the state of torch's CPU generator, for torch.set_rng_state, from a state of get_process_state."""
    return torch.frombuffer(bytearray(state[_PYTHON.size + _NUMPY.size:]), dtype=torch.uint8)


def get_random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the state of the generators of this process and its accelerator.

    Returns:
        Dictionary of 'process' (bytes) and, for an accelerator, 'device' (its state, a uint8 tensor) and 'device_type'.
    """
    state: dict[str, Any] = {'process': get_process_state()}
    if device is not None and device.type != 'cpu':
        state['device'] = torch.get_device_module(device).get_rng_state(device)
        state['device_type'] = device.type
    return state


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Set a state of get_random_state. The state of another type of accelerator is ignored."""
    set_process_state(state['process'])
    if device is not None and device.type != 'cpu' and is_of_device(state, device):
        torch.get_device_module(device).set_rng_state(state['device'], device)


def is_of_device(state: dict[str, Any], device: torch.device) -> bool:
    """Whether a state of get_random_state was taken on this type of device."""
    if device.type == 'cpu' or 'device' not in state:
        return device.type == 'cpu' and 'device' not in state
    present = torch.get_device_module(device).get_rng_state(device)
    return fits_generator(state['device'], state.get('device_type'), present, device)


def fits_generator(state: torch.Tensor, kind: str | None, present: torch.Tensor, device: torch.device) -> bool:
    """Whether a generator of torch accepts a state.

    Args:
        state: State of a generator, uint8.
        kind: Type of the device of the state; None in a checkpoint of a former version, which is checked by size.
        present: Present state of the generator, uint8.
        device: Device of the generator.
    """
    return kind in (None, device.type) and len(state) == len(present)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random state of the process at the end."""
    state = get_process_state()
    try:
        yield
    finally:
        set_process_state(state)
