"""Benchmarks of training steps with AgMax against cross-entropy, and of training from files against its parts."""
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..assembly.model import Precision, build_precision, create_named_model, init_device
from ..base.distributed import describe_device
from ..data.memory.buffers import is_pinned
from ..data.resumption.loader import make_resumable
from ..options.declare import group
from ..options.device import Device
from ..options.shared_flags import pinning
from ..options.timm_names import REFUSED, check_device
from ..task import AgMaxTask
from . import passes
from .output import Result
from .pipelines import TWO_VIEWS, build_prefetched, count_classes, open_images, run, some_images
from .recipes import RECIPES

_STEPS, _TRAINING = 'steps alone', 'training'


@group
class Network(Device):
    """The network that is measured, its input, and how it runs."""
    model: str = ''
    img_size: int = 0
    torchcompile: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def step(batch_size: int, num_classes: int, steps: int, repeats: int, **network: Any) -> Result:
    """Measure steps on random images."""
    net = Network(**network)
    device = find_device(net.device)
    model = _create_model(net, device, num_classes)
    task = _create_task(net, copy.deepcopy(model))
    # Each number of views gets a graph of its own, as AgMax has one. Otherwise the second one makes the shapes dynamic.
    plain = torch.compile(model, dynamic=False) if net.torchcompile else model
    criterion = torch.nn.CrossEntropyLoss()
    views = torch.randn(2 * batch_size, 3, net.img_size, net.img_size, device=device)
    views = views.contiguous(memory_format=net.memory_format)
    target = torch.randint(num_classes, (batch_size,), device=device).repeat(2)
    first, of_first = views[:batch_size], target[:batch_size]

    def a_pass(module: torch.nn.Module, loss: Callable[[], torch.Tensor], count: int) -> Callable[[], int]:
        update = Update(module, device, build_precision(net, device))

        def run_steps() -> int:
            for _ in range(steps):
                update(loss)
            update.synchronize()
            return count
        return run_steps

    with _named_errors(net):
        measured = passes.interleaved({
            'cross-entropy': a_pass(model, lambda: criterion(plain(views), target), len(views)),
            'AgMax': a_pass(task, lambda: task(views, target)['loss'], len(views)),
            'cross-entropy, one view': a_pass(model, lambda: criterion(plain(first), of_first), batch_size),
        }, repeats)
    rows = passes.rows(measured, 'step', {
        'views': passes.count, 'ms': lambda one: 1000 * one.seconds / steps, 'ratio': passes.seconds})
    return Result(
        f'ratio: time of a step of {net.model} on {2 * batch_size} views of {net.img_size} x {net.img_size}, '
        f'{num_classes} classes, against cross-entropy on these views; {describe_device(device)}', rows)


def training(
        folder: str, split: str, images: int, recipe: str, batch_size: int, workers: int, pin_mem: bool,
        no_pin_mem: bool, repeats: int, **network: Any) -> Result:
    """Measure training and its parts: decoding, creation of views, and steps on views in device memory."""
    net = Network(**network)
    device, pin_memory = find_device(net.device), pinning(pin_mem, no_pin_mem)
    with some_images(folder, split, images) as root:
        loaders = {name: make_resumable(build_prefetched(  # as in train.py
            name, root, (3, net.img_size, net.img_size), batch_size, workers, RECIPES[recipe], device,
            channels_last=net.channels_last, pin_memory=pin_memory), device)[0] for name in TWO_VIEWS}
        task = _create_task(net, _create_model(net, device, count_classes(root)))
        update = Update(task, device, build_precision(net, device))

        def agmax_loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return task(input, target)['loss']

        def train(batches: Any) -> int:
            views = 0
            for input, target in batches:
                input = input.contiguous(memory_format=net.memory_format)
                update(partial(agmax_loss, input, target))
                views += len(input)
            update.synchronize()
            return views

        loader = next(iter(loaders.values()))
        batch, decoder = next(iter(loader)), _build_decoder(root, batch_size, workers)
        with _named_errors(net):
            measured = passes.interleaved({
                _STEPS: lambda: train([batch] * len(loader)),
                'images decoded': lambda: 2 * sum(decoder),  # two views per decoded image
                **{name: partial(run, loader) for name, loader in loaders.items()},
                **{f'{_TRAINING}, {name}': partial(train, loader) for name, loader in loaders.items()},
            }, repeats)
    rows = passes.rows(measured, 'of', {'views': passes.count, 'views/s': passes.rate, 'ratio': passes.rate})
    for row in rows:
        row['waits %'] = 100 * (1 - row['ratio']) if row['of'].startswith(_TRAINING) else None
    memory = 'pinned memory' if is_pinned(pin_memory, device) else 'memory not pinned'
    return Result(
        f'ratio: views per second against steps of {net.model} on {2 * batch_size} views of {net.img_size} x '
        f'{net.img_size} that are at hand; {recipe}, {workers} workers, {memory}; {describe_device(device)}', rows)


class Update:
    """An update by SGD. Its learning rate is small, so that the weights stay almost constant."""

    def __init__(self, module: torch.nn.Module, device: torch.device, precision: Precision):
        self.optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=.9, nesterov=True)
        self.device = device
        self.precision = precision

    def __call__(self, loss: Callable[[], torch.Tensor]) -> None:
        with self.precision.autocast():
            value = loss()
        self.optimizer.zero_grad()
        if self.precision.scaler is not None:
            self.precision.scaler.backward(value)
            self.precision.scaler.step(self.optimizer)
        else:
            value.backward()
            self.optimizer.step()

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type != 'cpu':
            torch.accelerator.synchronize(self.device)


def find_device(name: str) -> torch.device:
    """Return the device that a run would use. Raise OptionError if it does not exist."""
    check_device(name)
    return init_device(name, single_process=True)


def _create_model(net: Network, device: torch.device, num_classes: int) -> torch.nn.Module:
    model = create_named_model(net.model, num_classes=num_classes)
    return model.to(device).to(memory_format=net.memory_format)


def _create_task(net: Network, model: torch.nn.Module) -> AgMaxTask:
    task = AgMaxTask(model, verbose=False)
    if net.torchcompile:
        task.compile()
    return task


@contextmanager
def _named_errors(net: Network) -> Iterator[None]:
    """Raise ValueError if the model does not support the images."""
    try:
        yield
    except REFUSED as error:
        raise ValueError(f'--model {net.model!r}, --img-size {net.img_size}: {error}') from error


def _build_decoder(root: str, batch_size: int, workers: int) -> DataLoader:
    """Build a loader that only decodes files with the fast backend: an upper bound of the speed of loaders."""
    from ..data.arrays.transform import KeepPixels
    dataset = open_images(root)
    dataset.transform = KeepPixels()
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, collate_fn=len, drop_last=True,
                      persistent_workers=workers > 0)
