"""The position of a ResumableLoader as a checkpoint holds it: plain values and tensors."""
from typing import Any

import torch


def to_tensors(value: Any) -> Any:
    """Bytes as uint8 tensors, which torch reads back without trusting the file; random states may be shared."""
    if isinstance(value, bytes):
        return torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
    if isinstance(value, dict):
        return {key: to_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_tensors(item) for item in value]
    return value


def to_bytes(state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of to_tensors, for what ResumableLoader.state_dict returns."""
    def random(value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else {**value, 'process': value['process'].numpy().tobytes()}
    workers = {worker: value.numpy().tobytes() for worker, value in state['worker_states'].items()}
    return {**state, 'random': random(state['random']), 'before': random(state['before']), 'worker_states': workers,
            'shuffle': state['shuffle'].numpy().tobytes()}
