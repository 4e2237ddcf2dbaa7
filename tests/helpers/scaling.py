"""The loss scaler of float16 on a CPU."""
from contextlib import nullcontext

import torch

from agmax_timm.assembly import model
from agmax_timm.assembly.loss_scaler import LossScaler


def make_scaler(device_type='cpu', **options):
    """A LossScaler with these arguments of torch.amp.GradScaler."""
    scaler = LossScaler(device_type)
    scaler._scaler = torch.amp.GradScaler(device_type, **options)
    return scaler


def scale_float16(monkeypatch, **options):
    """Let runs with --amp in float16 scale their losses, also on a CPU, with these arguments of GradScaler.

    On a CPU they compute in float32: float16 is a hundred times slower there. A scale of 2 ** 126 overflows in it.
    """
    build_precision = model.build_precision

    def with_scaler(args, device):
        precision = build_precision(args, device)
        if args.amp and args.amp_dtype == 'float16':
            precision.scaler = make_scaler(device.type, **options)
            if device.type == 'cpu':
                precision.autocast = nullcontext
        return precision

    monkeypatch.setattr(model, 'build_precision', with_scaler)
