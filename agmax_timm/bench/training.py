"""Training from files against its parts: images decoded, views made, steps on views that are at hand."""
import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..assembly.model import build_precision, create_named_model
from ..base.command_line import pinning
from ..data.memory.buffers import is_pinned
from ..data.resumption.loader import make_resumable
from ..data.sources.datasets import create_dataset
from ..options.timm_names import REFUSED
from ..task import AgMaxTask
from . import passes
from .images import some_images
from .pipelines import TWO_VIEWS, build_prefetched, run
from .recipes import RECIPES
from .report import Result
from .step import Update, describe, find_device

_STEPS, _DECODED = 'steps alone', 'images decoded'
_TRAINING = 'training'


def measure(args: argparse.Namespace) -> Result:
    device = find_device(args)
    with some_images(args.folder, args.split, args.images) as root:
        loaders = {name: _loader(name, root, args, device) for name in TWO_VIEWS}
        train = _trainer(args, device, classes=len(create_dataset('', root=root, split='train').reader.class_to_idx))
        loader = next(iter(loaders.values()))
        batch = next(iter(loader))
        configurations: dict[str, Callable[[], int]] = {
            _STEPS: lambda: train([batch] * len(loader)),
            _DECODED: partial(_decode, _decoder(root, args)),
            **{name: partial(run, loader) for name, loader in loaders.items()},
            **{f'{_TRAINING}, {name}': partial(train, loader) for name, loader in loaders.items()},
        }
        try:
            measured = passes.interleaved(configurations, args.repeats)
        except REFUSED as error:
            raise ValueError(f'--model {args.model}, --img-size {args.img_size}: {error}') from error
    rows = []
    for name in configurations:
        ratios = passes.ratios(measured, name, _STEPS, passes.rate)
        rows.append({
            'of': name,
            'views': measured[name][0].count,
            'views/s': median(map(passes.rate, measured[name])),
            **ratios,
            'waits %': 100 * (1 - ratios['ratio']) if name.startswith(_TRAINING) else None,
        })
    memory = 'pinned memory' if is_pinned(pinning(args), device) else 'memory not pinned'
    return Result(
        f'ratio: views a second against steps of {args.model} on {2 * args.batch_size} views of {args.img_size} x '
        f'{args.img_size} that are at hand; {args.recipe}, {args.workers} workers, {memory}; {describe(device)}', rows)


def _loader(name: str, root: str, args: argparse.Namespace, device: torch.device) -> Any:
    """As train.py has it."""
    loader = build_prefetched(
        name, root, (3, args.img_size, args.img_size), args.batch_size, args.workers, RECIPES[args.recipe], device,
        channels_last=args.channels_last, pin_memory=pinning(args))
    return make_resumable(loader, device)[0]


def _trainer(args: argparse.Namespace, device: torch.device, classes: int) -> Callable[[Any], int]:
    """A function that trains on batches, and returns how many views it had when the device is done."""
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = create_named_model(args.model, num_classes=max(2, classes)).to(device).to(memory_format=memory_format)
    task = AgMaxTask(model, verbose=False)
    if args.torchcompile:
        task.compile()
    update = Update(task, device, build_precision(args, device))

    def loss(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return task(images, target)['loss']

    def train(batches: Any) -> int:
        views = 0
        for images, target in batches:
            update(loss, images.contiguous(memory_format=memory_format), target)
            views += len(images)
        update.synchronize()
        return views
    return train


def _decoder(root: str, args: argparse.Namespace) -> DataLoader:
    """What no loader can be faster than: files read and decoded, by the fast backend's decoder, and no more."""
    from ..data.arrays.decoding import decode_array
    dataset = create_dataset('', root=root, split='train')
    dataset.decode = decode_array
    dataset.transform = lambda image: None
    return DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers, collate_fn=len, drop_last=True,
                      persistent_workers=args.workers > 0)


def _decode(decoder: DataLoader) -> int:
    """Views that could be made of it."""
    return 2 * sum(decoder)
