"""The random state of a process: all that augmentation, mixing and dropout draw from, as plain bytes.

About 8 KB and 0.1 ms a copy, so one can be taken with every batch.
"""
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

_PYTHON = struct.Struct('<625I?d')  # words of the Mersenne Twister with its place in them; the normal number put aside
_NUMPY = struct.Struct('<624IIId')
_PYTHON_VERSION, _NUMPY_NAME = 3, 'MT19937'


def get_generator_state(generator: Any = random) -> bytes:
    """State of a random.Random; by default of Python's global one."""
    _, words, gauss = generator.getstate()
    return _PYTHON.pack(*words, gauss is not None, gauss or 0.)


def set_generator_state(state: bytes, generator: Any = random) -> None:
    """Set what get_generator_state returned."""
    *words, has_gauss, gauss = _PYTHON.unpack_from(state)
    generator.setstate((_PYTHON_VERSION, tuple(words), gauss if has_gauss else None))


def get_process_state() -> bytes:
    """State of the global generators of Python, NumPy and torch's CPU in this process."""
    _, key, position, has_gauss, cached = cast(tuple, np.random.get_state())
    return b''.join((
        get_generator_state(),
        _NUMPY.pack(*key.tolist(), position, has_gauss, cached),
        torch.get_rng_state().numpy().tobytes(),
    ))


def set_process_state(state: bytes) -> None:
    """Set what get_process_state returned."""
    set_generator_state(state)
    *key, position, has_gauss, cached = _NUMPY.unpack_from(state, _PYTHON.size)
    np.random.set_state((_NUMPY_NAME, np.array(key, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch_state(state))


def torch_state(state: bytes) -> torch.Tensor:
    """The part of torch's CPU generator, as torch.set_rng_state takes it."""
    return torch.frombuffer(bytearray(state[_PYTHON.size + _NUMPY.size:]), dtype=torch.uint8)


def get_random_state(device: torch.device | None = None) -> dict[str, Any]:
    """State of the process's generators ('process', bytes) and of an accelerator's.

    That of an accelerator is a uint8 tensor, 'device', beside the type of the accelerator, 'device_type'.
    """
    state: dict[str, Any] = {'process': get_process_state()}
    if device is not None and device.type != 'cpu':
        state['device'] = torch.get_device_module(device).get_rng_state(device)
        state['device_type'] = device.type
    return state


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Set what get_random_state returned; a device's part is left out where it is of another kind of device."""
    set_process_state(state['process'])
    if device is not None and device.type != 'cpu' and is_of_device(state, device):
        torch.get_device_module(device).set_rng_state(state['device'], device)


def is_of_device(state: dict[str, Any], device: torch.device) -> bool:
    """Whether a random state was taken on this kind of device."""
    if device.type == 'cpu' or 'device' not in state:
        return device.type == 'cpu' and 'device' not in state
    present = torch.get_device_module(device).get_rng_state(device)
    return fits_generator(state['device'], state.get('device_type'), present, device)


def fits_generator(state: torch.Tensor, kind: str | None, present: torch.Tensor, device: torch.device) -> bool:
    """Whether a generator of torch can take a state.

    Args:
        state: The state, uint8.
        kind: Type of the device that it is of, None where a former version did not note it: its size tells then.
        present: The state that the generator has now.
        device: Device of the generator.
    """
    return kind in (None, device.type) and len(state) == len(present)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Let nothing that happens inside draw from the process's generators."""
    state = get_process_state()
    try:
        yield
    finally:
        set_process_state(state)
