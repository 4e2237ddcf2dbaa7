"""A training step of AgMax against cross-entropy on the same views."""
import argparse
import copy
from functools import partial
from statistics import median
from typing import Callable

import torch
from timm.utils import NativeScaler

from ..run.build import create_named_model
from ..run.flags.names import REFUSED
from ..task import AgMaxTask
from . import passes
from .report import Result

_PLAIN, _AGMAX = 'cross-entropy', 'AgMax'


def measure(args: argparse.Namespace) -> Result:
    device = _device(args.device)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = create_named_model(args.model, num_classes=args.num_classes).to(device, memory_format=memory_format)
    task = AgMaxTask(copy.deepcopy(model), verbose=False)
    if args.torchcompile:
        task.compile()
    plain = torch.compile(model) if args.torchcompile else model
    criterion = torch.nn.CrossEntropyLoss()
    views = torch.randn(2 * args.batch_size, 3, args.img_size, args.img_size, device=device)
    views = views.contiguous(memory_format=memory_format)
    target = torch.randint(args.num_classes, (args.batch_size,), device=device).repeat(2)
    losses = {
        _PLAIN: (lambda: criterion(plain(views), target), model),
        _AGMAX: (lambda: task(views, target)['loss'], task),
    }
    try:
        measured = passes.interleaved(
            {name: _steps(loss, module, device, args.amp, args.steps) for name, (loss, module) in losses.items()},
            args.repeats)
    except REFUSED as error:
        raise ValueError(f'--model {args.model}, --img-size {args.img_size}: {error}') from error
    rows = [{
        'step': name,
        'views': 2 * args.batch_size,
        'ms': 1000 * median(one.seconds / one.count for one in measured[name]),
        **passes.ratios(measured, name, _PLAIN, passes.seconds),
    } for name in losses]
    on = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    return Result(
        f'ratio: time of a step of {args.model} on {2 * args.batch_size} views of {args.img_size} x {args.img_size}, '
        f'{args.num_classes} classes, against cross-entropy on the same views; {device.type}, {on}', rows)


def _steps(
        loss: Callable[[], torch.Tensor],
        module: torch.nn.Module,
        device: torch.device,
        amp: bool,
        count: int,
) -> Callable[[], int]:
    """A pass of so many steps of SGD. The learning rate is small: synthetic images teach nothing."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=.9, nesterov=True)
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    autocast = partial(torch.autocast, device.type, dtype, enabled=amp)
    scaler = NativeScaler(device=device.type) if amp and dtype == torch.float16 else None

    def run() -> int:
        for _ in range(count):
            with autocast():
                value = loss()
            optimizer.zero_grad()
            if scaler is not None:
                scaler(value, optimizer)
            else:
                value.backward()
                optimizer.step()
        if device.type != 'cpu':
            torch.accelerator.synchronize(device)
        return count
    return run


def _device(name: str) -> torch.device:
    try:
        device = torch.device('cpu' if name.startswith('cuda') and not torch.cuda.is_available() else name)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from error
    return device
