"""Conversion of the position of a ResumableLoader to plain values and tensors for a checkpoint."""
from typing import Any

import torch


def to_tensors(value: Any) -> Any:
    """Convert bytes in nested dicts and lists to uint8 tensors, which torch.load reads with weights_only=True."""
    if isinstance(value, bytes):
        return torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
    if isinstance(value, dict):
        return {key: to_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_tensors(item) for item in value]
    return value


def to_bytes(state: dict[str, Any]) -> dict[str, Any]:
    """Invert to_tensors for a state of ResumableLoader.state_dict."""
    return {
        **state,
        'random': to_random_state(state['random']),
        'before': to_random_state(state['before']),
        'worker_states': {worker: value.numpy().tobytes() for worker, value in state['worker_states'].items()},
        'shuffle': state['shuffle'].numpy().tobytes(),
    }


def to_random_state(value: Any) -> Any:
    """Invert to_tensors for a state of get_random_state, or None."""
    return None if value is None else {**value, 'process': value['process'].numpy().tobytes()}
