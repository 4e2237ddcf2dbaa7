"""The loss scaler of float16 on a CPU."""
from contextlib import nullcontext

from agmax_timm.run import build
from agmax_timm.run.scaler import LossScaler


def cpu_scaler(**options):
    """A LossScaler for a CPU. Options: arguments of torch.amp.GradScaler."""
    scaler = LossScaler('cpu')
    scaler._scaler = type(scaler._scaler)('cpu', **options)
    return scaler


def scale_float16(monkeypatch, **options):
    """Let runs on a CPU scale their losses where --amp is float16.

    They compute in float32: float16 is a hundred times slower there. A scale of 2 ** 127 overflows in it.
    """
    build_precision = build.build_precision

    def with_scaler(args, device):
        precision = build_precision(args, device)
        if args.amp and args.amp_dtype == 'float16' and device.type == 'cpu':
            precision.autocast, precision.scaler = nullcontext, cpu_scaler(**options)
        return precision

    monkeypatch.setattr(build, 'build_precision', with_scaler)
