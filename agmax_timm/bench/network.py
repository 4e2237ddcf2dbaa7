"""Benchmarks of training steps with AgMax against cross-entropy, and of training from files against its parts."""
import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..assembly.model import Precision, build_precision, create_named_model, init_device
from ..base.distributed import describe_device as describe
from ..data.memory.buffers import is_pinned
from ..data.resumption.loader import make_resumable
from ..options.shared_flags import pinning
from ..options.timm_names import REFUSED
from ..task import AgMaxTask
from . import passes
from .output import Result
from .pipelines import TWO_VIEWS, build_prefetched, count_classes, open_images, run, some_images
from .recipes import RECIPES

_STEPS, _TRAINING = 'steps alone', 'training'


def step(args: Any) -> Result:
    """Measure steps on random images."""
    device = find_device(args)
    model = _create_model(args, device, args.num_classes)
    task = _create_task(args, copy.deepcopy(model))
    plain = torch.compile(model) if args.torchcompile else model
    criterion = torch.nn.CrossEntropyLoss()
    views = torch.randn(2 * args.batch_size, 3, args.img_size, args.img_size, device=device)
    views = views.contiguous(memory_format=_memory_format(args))
    target = torch.randint(args.num_classes, (args.batch_size,), device=device).repeat(2)

    def steps(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], int]:
        """Return a pass of args.steps steps."""
        update = Update(module, device, build_precision(args, device))

        def steps_of_a_pass() -> int:
            for _ in range(args.steps):
                update(loss)
            update.synchronize()
            return args.steps
        return steps_of_a_pass

    with _named_errors(args):
        measured = passes.interleaved({
            'cross-entropy': steps(model, lambda: criterion(plain(views), target)),
            'AgMax': steps(task, lambda: task(views, target)['loss']),
        }, args.repeats)
    rows = passes.rows(measured, 'step', {
        'views': lambda one: len(views), 'ms': lambda one: 1000 * one.seconds / one.count, 'ratio': passes.seconds})
    return Result(
        f'ratio: time of a step of {args.model} on {2 * args.batch_size} views of {args.img_size} x {args.img_size}, '
        f'{args.num_classes} classes, against cross-entropy on the same views; {describe(device)}', rows)


def training(args: Any) -> Result:
    """Measure training and its parts: decoding, creation of views, and steps on views in device memory."""
    device = find_device(args)
    with some_images(args.folder, args.split, args.images) as root:
        loaders = {name: _build_loader(name, root, args, device) for name in TWO_VIEWS}
        task = _create_task(args, _create_model(args, device, count_classes(root)))
        update = Update(task, device, build_precision(args, device))

        def agmax_loss(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return task(images, target)['loss']

        def train(batches: Any) -> int:
            views = 0
            for images, target in batches:
                images = images.contiguous(memory_format=_memory_format(args))
                update(partial(agmax_loss, images, target))
                views += len(images)
            update.synchronize()
            return views

        loader = next(iter(loaders.values()))
        batch, decoder = next(iter(loader)), _build_decoder(root, args)
        with _named_errors(args):
            measured = passes.interleaved({
                _STEPS: lambda: train([batch] * len(loader)),
                'images decoded': lambda: 2 * sum(decoder),  # two views per decoded image
                **{name: partial(run, loader) for name, loader in loaders.items()},
                **{f'{_TRAINING}, {name}': partial(train, loader) for name, loader in loaders.items()},
            }, args.repeats)
    rows = passes.rows(measured, 'of', {'views': passes.count, 'views/s': passes.rate, 'ratio': passes.rate})
    for row in rows:
        row['waits %'] = 100 * (1 - row['ratio']) if row['of'].startswith(_TRAINING) else None
    memory = 'pinned memory' if is_pinned(pinning(args), device) else 'memory not pinned'
    return Result(
        f'ratio: views per second against steps of {args.model} on {2 * args.batch_size} views of {args.img_size} x '
        f'{args.img_size} that are at hand; {args.recipe}, {args.workers} workers, {memory}; {describe(device)}', rows)


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


def find_device(args: argparse.Namespace) -> torch.device:
    """Return the device that a run would use.

    Raises:
        ValueError: The device does not exist.
    """
    try:
        device = init_device(args.device, single_process=True)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise ValueError(f"--device '{args.device}': {str(error).splitlines()[0]}") from error
    return device


def _memory_format(args: argparse.Namespace) -> torch.memory_format:
    return torch.channels_last if args.channels_last else torch.contiguous_format


def _create_model(args: argparse.Namespace, device: torch.device, num_classes: int) -> torch.nn.Module:
    model = create_named_model(args.model, num_classes=num_classes)
    return model.to(device).to(memory_format=_memory_format(args))


def _create_task(args: argparse.Namespace, model: torch.nn.Module) -> AgMaxTask:
    task = AgMaxTask(model, verbose=False)
    if args.torchcompile:
        task.compile()
    return task


@contextmanager
def _named_errors(args: argparse.Namespace) -> Iterator[None]:
    """Raise ValueError if the model does not support the images."""
    try:
        yield
    except REFUSED as error:
        raise ValueError(f"--model '{args.model}', --img-size {args.img_size}: {error}") from error


def _build_loader(name: str, root: str, args: argparse.Namespace, device: torch.device) -> Any:
    """Build a loader as train.py does."""
    loader = build_prefetched(
        name, root, (3, args.img_size, args.img_size), args.batch_size, args.workers, RECIPES[args.recipe], device,
        channels_last=args.channels_last, pin_memory=pinning(args))
    return make_resumable(loader, device)[0]


def _build_decoder(root: str, args: argparse.Namespace) -> DataLoader:
    """Build a loader that only decodes files with the fast backend: an upper bound of the speed of loaders."""
    from ..data.arrays.decoding import decode_array
    dataset = open_images(root)
    dataset.decode = decode_array
    dataset.transform = lambda image: None
    return DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers, collate_fn=len, drop_last=True,
                      persistent_workers=args.workers > 0)
