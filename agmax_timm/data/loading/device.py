"""Copies of batches to the device, for loaders without timm's prefetcher."""
from typing import Any

import torch
from timm.data import Mixup

from ...base.wrapping import Wrapper, passed_on

Input = torch.Tensor | dict[str, torch.Tensor]  # images [B, C, H, W], or a NaFlex dictionary of their patches


def to_device(
        input: Any,
        target: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype | None = None,
) -> tuple[Any, torch.Tensor]:
    """Copy a batch to a device. A copy from pinned memory to CUDA does not block this process.

    Args:
        input: Images [B, C, H, W], or a NaFlex dictionary of their patches.
        dtype: Dtype of the copied images or patches. None keeps their dtype.
    """
    on_cuda = device.type == 'cuda'
    target = target.to(device, non_blocking=on_cuda)
    if not isinstance(input, dict):
        return input.to(device=device, dtype=dtype, non_blocking=on_cuda), target
    moved = {name: value.to(device, non_blocking=on_cuda) for name, value in input.items() if torch.is_tensor(value)}
    return {**input, **moved, 'patches': moved['patches'].to(dtype=dtype)}, target


class DeviceMixupLoader(Wrapper):
    """A loader that moves batches to the device and mixes them there, without timm's prefetcher.

    Args:
        loader: DataLoader of (input, target) on the CPU.
        mixup: Function that mixes (input, target) on the device.
    """
    wraps = 'loader'
    mixup_enabled = passed_on('mixup', 'mixup_enabled')

    def __init__(self, loader, mixup: Mixup, device: torch.device, dtype: torch.dtype = torch.float32):
        self.loader = loader
        self.mixup = mixup
        self.device = device
        self.dtype = dtype

    def __iter__(self):
        for input, target in self.loader:
            yield self.mixup(*to_device(input, target, self.device, self.dtype))
