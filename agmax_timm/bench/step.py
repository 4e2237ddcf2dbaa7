"""A training step of AgMax against cross-entropy on the same views."""
import argparse
import copy
from collections.abc import Callable
from statistics import median

import torch

from ..assembly.model import Precision, build_precision, create_named_model, init_device
from ..options.timm_names import REFUSED
from ..task import AgMaxTask
from . import passes
from .report import Result

_PLAIN, _AGMAX = 'cross-entropy', 'AgMax'


def measure(args: argparse.Namespace) -> Result:
    device = find_device(args)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = create_named_model(args.model, num_classes=args.num_classes).to(device).to(memory_format=memory_format)
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
            {name: _steps(loss, Update(module, device, build_precision(args, device)), args.steps)
             for name, (loss, module) in losses.items()}, args.repeats)
    except REFUSED as error:
        raise ValueError(f'--model {args.model}, --img-size {args.img_size}: {error}') from error
    rows = [{
        'step': name,
        'views': 2 * args.batch_size,
        'ms': 1000 * median(one.seconds / one.count for one in measured[name]),
        **passes.ratios(measured, name, _PLAIN, passes.seconds),
    } for name in losses]
    return Result(
        f'ratio: time of a step of {args.model} on {2 * args.batch_size} views of {args.img_size} x {args.img_size}, '
        f'{args.num_classes} classes, against cross-entropy on the same views; {describe(device)}', rows)


def _steps(loss: Callable[[], torch.Tensor], update: 'Update', count: int) -> Callable[[], int]:
    """A pass of so many steps."""
    def run() -> int:
        for _ in range(count):
            update(loss)
        update.synchronize()
        return count
    return run


class Update:
    """A step of SGD by a loss. The learning rate is small: what is measured is not to depend on what is learned.

    Args:
        module: Whose parameters are updated.
        device: Where they are.
        precision: Autocast and scaler.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, precision: Precision):
        self.optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=.9, nesterov=True)
        self.device = device
        self.precision = precision

    def __call__(self, loss: Callable[..., torch.Tensor], *batch: torch.Tensor) -> None:
        with self.precision.autocast():
            value = loss(*batch)
        self.optimizer.zero_grad()
        if self.precision.scaler is not None:
            self.precision.scaler.backward(value)
            self.precision.scaler.step(self.optimizer)
        else:
            value.backward()
            self.optimizer.step()

    def synchronize(self) -> None:
        """Wait for what the device has been told to do."""
        if self.device.type != 'cpu':
            torch.accelerator.synchronize(self.device)


def find_device(args: argparse.Namespace) -> torch.device:
    """The device of the options as a run would have it.

    Raises:
        ValueError: there is none.
    """
    name = args.device
    try:
        device = init_device(args, alone=True)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from error
    return device


def describe(device: torch.device) -> str:
    on = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    return f'{device.type}, {on}'
