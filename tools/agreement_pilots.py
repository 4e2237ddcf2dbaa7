#!/usr/bin/env python3
"""Compare forms of agreement that cost less than two views, at equal cost, on small images that fit in memory.

Usage: python tools/agreement_pilots.py DATA --epochs 120 --split val --seeds 0 1 2 --csv pilots.csv \\
           --arm 'plain batch=25' --arm 'memory batch=25 weight=1'
       python tools/agreement_pilots.py --csv pilots.csv --summary 'plain batch=25'

DATA has folders train, tune and val, such as tools/image_folders.py writes. Choose batch, rate and weight on tune, and
compare on val with other seeds. Forms, and the cost of their epoch in views that are seen forward and backward:

plain     cross-entropy of one view                                                          1
views     cross-entropy of two views                                                         2
agmax     AgMax                                                                              2
interval  AgMax in every N-th update, otherwise plain                                        1 + 1 / N
late      plain in the first share S of the updates, AgMax in the others                     2 - S
memory    plain + KL(remembered || predicted). An image's remembered prediction is the
          running mean of what the network predicted for it in earlier epochs                1
ema       plain + KL(teacher || predicted). The teacher is the moving average of the
          weights. It sees another view, without a backward pass                             4/3
tokens    (vision transformers) plain + cross-entropy of the same view with half of its
          tokens, to the prediction for all tokens (AugSub, arXiv 2306.11339)                3/2

--epochs are those of plain. Other forms train for epochs / cost, so that all arms cost the same. The weight of the
second term grows linearly from 0 over a share `ramp` of the updates. A finished arm is one row of the CSV file; rows
that exist are not repeated.
"""
import argparse
import csv
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torchvision.datasets import ImageFolder

from agmax_timm import AgMaxTask
from agmax_timm.study.results import paired_difference

FORMS = ('plain', 'views', 'agmax', 'interval', 'late', 'memory', 'ema', 'tokens')
USED = {'memory': ('weight', 'ramp', 'momentum'), 'ema': ('weight', 'ramp', 'decay'), 'interval': ('interval',),
        'late': ('start',)}


@dataclass(frozen=True)
class Arm:
    form: str
    model: str = 'test_resnet'
    batch: int = 50
    rate: float = 0.1
    weight: float = 1.0
    ramp: float = 0.2
    momentum: float = 0.8
    decay: float = 0.99
    interval: int = 2
    start: float = 0.5

    @property
    def cost(self) -> float:
        return {'views': 2, 'agmax': 2, 'interval': 1 + 1 / self.interval, 'late': 2 - self.start, 'ema': 4 / 3,
                'tokens': 3 / 2}.get(self.form, 1)

    def has_two_views(self, number: int, updates: int) -> bool:
        """Whether update `number` of `updates` sees two views of its images."""
        if self.form == 'late':
            return number >= self.start * updates
        return self.form in ('views', 'agmax') or self.form == 'interval' and number % self.interval == 0

    def __str__(self) -> str:
        used = ('batch', 'rate', *USED.get(self.form, ()))
        model = [] if self.model == 'test_resnet' else [f'model={self.model}']
        return ' '.join([self.form, *model, *(f'{name}={getattr(self, name):g}' for name in used)])


def parse_arm(text: str) -> Arm:
    form, *words = text.split()
    types = {field.name: field.type for field in fields(Arm)}
    try:
        if form not in FORMS:
            raise ValueError('no such form')
        return Arm(form, **{name: types[name](value) for name, value in (word.split('=') for word in words)})
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"'{text}': {error}; use FORM NAME=VALUE ... of --help") from None


class Images:
    """Images in memory, normalised by their own statistics or by those of the training images.

    Args:
        raw: uint8 images [N, H, W, 3].
        labels: Class indices [N].
        train: Training images.
    """

    def __init__(self, raw: torch.Tensor, labels: torch.Tensor, train: 'Images | None' = None):
        self.raw, self.labels, self.classes = raw, labels, int(labels.max()) + 1
        self.normalise_as(train or self)

    @classmethod
    def of_folder(cls, folder: Path, train: 'Images | None' = None) -> 'Images':
        data = ImageFolder(str(folder))
        raw = torch.from_numpy(np.stack([np.asarray(image) for image, _ in data]))
        return cls(raw, torch.tensor(data.targets), train)

    def normalise_as(self, train: 'Images') -> None:
        pixels, others = (images.raw.permute(0, 3, 1, 2).float() / 255 for images in (self, train))
        mean, std = others.mean((0, 2, 3), keepdim=True), others.std((0, 2, 3), keepdim=True)
        self.pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        self.padded = ((F.pad(pixels, [4] * 4) - mean) / std).permute(0, 2, 3, 1).contiguous()

    def view(self, indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a random crop of each image padded by 4 pixels, flipped with probability 1/2."""
        n, size = len(indices), self.pixels.shape[-1]
        top, left = torch.randint(9, (2, n, 1), generator=generator)
        rows, columns = top + torch.arange(size), left + torch.arange(size)
        flip = torch.rand(n, generator=generator) < .5
        columns[flip] = columns[flip].flip(1)
        return self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def create_model(arm: Arm, images: Images) -> torch.nn.Module:
    shape = {}
    if 'vit' in arm.model:
        shape = dict(img_size=images.pixels.shape[-1], patch_size=4, patch_drop_rate=.5 if arm.form == 'tokens' else 0)
    return timm.create_model(arm.model, num_classes=images.classes, **shape).to(memory_format=torch.channels_last)


class Step:
    """The loss of an update: the form of agreement, with what it remembers."""

    def __init__(self, arm: Arm, model: torch.nn.Module, images: Images, generator: torch.Generator):
        self.arm, self.model, self.images, self.generator = arm, model, images, generator
        self.task = AgMaxTask(model, verbose=False) if arm.form in ('agmax', 'interval', 'late') else None
        self.ema = ModelEmaV3(model, decay=arm.decay, use_warmup=True) if arm.form == 'ema' else None
        self.memory = torch.zeros(len(images.labels), images.classes)
        self.seen = torch.zeros(len(images.labels), dtype=torch.bool)
        self.parameters = (self.task.trainable_module if self.task else model).parameters()

    def loss(self, indices: torch.Tensor, two_views: bool, weight: float) -> torch.Tensor:
        form, x, target = self.arm.form, self.view(indices), self.images.labels[indices]
        if two_views:
            x, target = torch.cat([x, self.view(indices)]), torch.cat([target, target])
            return self.task(x, target)['loss'] if self.task else F.cross_entropy(self.model(x).float(), target)
        if form == 'tokens':
            self.model.patch_drop.prob = 0.
        logits = self.model(x).float()
        loss = F.cross_entropy(logits, target)
        if form == 'memory':
            loss = loss + weight * self.agree_with_memory(indices, logits)
        elif form == 'ema':
            with torch.no_grad():
                teacher = self.ema.module.eval()(self.view(indices)).float().softmax(1)
            loss = loss + weight * F.kl_div(logits.log_softmax(1), teacher, reduction='batchmean')
        elif form == 'tokens':
            self.model.patch_drop.prob = .5
            loss = (loss + F.cross_entropy(self.model(x).float(), logits.detach().softmax(1))) / 2
        return loss

    def view(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images.view(indices, self.generator)

    def agree_with_memory(self, indices: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        kl = F.kl_div(logits.log_softmax(1), self.memory[indices], reduction='none').sum(1)
        agreement = (kl * self.seen[indices]).mean()
        kept = self.arm.momentum * self.seen[indices].float()[:, None]
        self.memory[indices] = kept * self.memory[indices] + (1 - kept) * logits.detach().softmax(1)
        self.seen[indices] = True
        return agreement

    def updated(self, number: int) -> None:
        if self.ema:
            self.ema.update(self.model, step=number)


def train(arm: Arm, images: Images, held_out: Images, seed: int, budget: float, dtype: str) -> dict:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = create_model(arm, images)
    step = Step(arm, model, images, generator)
    if 'vit' in arm.model:
        optimizer = torch.optim.AdamW(step.parameters, lr=arm.rate, weight_decay=.05)
    else:
        optimizer = torch.optim.SGD(step.parameters, lr=arm.rate, momentum=.9, nesterov=True, weight_decay=5e-4)
    n, epochs = len(images.labels), round(budget / arm.cost)
    per_epoch = n // arm.batch
    updates, number = epochs * per_epoch, 0
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(n, generator=generator)[:per_epoch * arm.batch].view(-1, arm.batch):
            for group in optimizer.param_groups:
                group['lr'] = arm.rate * (1 + math.cos(math.pi * number / updates)) / 2
            weight = arm.weight * min(1., number / max(1., arm.ramp * updates))
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype == 'bfloat16'):
                loss = step.loss(indices, arm.has_two_views(number, updates), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1
            step.updated(number)
    return dict(epochs=epochs, updates=number, **evaluate(model, held_out))


@torch.inference_mode()
def evaluate(model: torch.nn.Module, images: Images) -> dict:
    model.eval()
    logits = torch.cat([model(part) for part in images.pixels.split(500)])
    top1 = 100 * (logits.argmax(1) == images.labels).float().mean().item()
    return dict(top1=round(top1, 3), loss=round(F.cross_entropy(logits, images.labels).item(), 5))


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict) -> None:
    rows = rows_of(path)
    if rows and list(rows[0]) != list(row):
        raise SystemExit(f"'{path}' has other columns: name a new --csv")
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        if not rows:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def summarise(path: Path, base: str) -> None:
    """Print mean top-1 of each arm, and its difference from `base`, paired by seed.

    Raises:
        SystemExit: No row has the arm `base`.
    """
    values: dict[tuple, dict[str, dict[int, float]]] = {}
    for row in rows_of(path):
        group = row['data'], row['split'], row['epochs_of_plain'], row.get('dtype')
        values.setdefault(group, {}).setdefault(row['arm'], {})[int(row['seed'])] = float(row['top1'])
    if not any(base in arms for arms in values.values()):
        raise SystemExit(f"'{path}' has no rows of '{base}': name one of its arms")
    for group, arms in values.items():
        print(*group)
        for arm, top1 in arms.items():
            line = f'  {arm:58} n={len(top1):2} {sum(top1.values()) / len(top1):.2f}'
            if arm != base and base in arms:
                difference = paired_difference(top1, arms[base])
                if difference.low is not None:  # two pairs or more
                    line += f'  {difference.mean:+.2f} ({difference.low:.2f} to {difference.high:.2f})'
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, nargs='?', help='folder with train, tune and val')
    parser.add_argument('--epochs', type=float, default=120.)
    parser.add_argument('--split', choices=('tune', 'val'), default='tune')
    parser.add_argument('--seeds', type=int, nargs='+', default=[100, 101])
    parser.add_argument('--arm', type=parse_arm, action='append', default=[], metavar="'FORM NAME=VALUE ...'")
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16',
                        help='precision of the forward pass; float32 is faster on a CPU without bfloat16 instructions')
    parser.add_argument('--csv', type=Path, required=True)
    parser.add_argument('--summary', type=parse_arm, metavar='ARM',
                        help='print the results in --csv, with differences from ARM')
    args = parser.parse_args()
    if args.summary:
        return summarise(args.csv, str(args.summary))
    if args.data is None or not args.arm:
        parser.error('name the folder of the data and at least one --arm')
    torch.set_num_threads(1)
    images = Images.of_folder(args.data / 'train')
    held_out = Images.of_folder(args.data / args.split, images)
    for seed in args.seeds:
        for arm in args.arm:
            key = dict(data=args.data.name, split=args.split, epochs_of_plain=args.epochs, dtype=args.dtype,
                       arm=str(arm), seed=seed)
            if any(all(row.get(name) == str(value) for name, value in key.items()) for row in rows_of(args.csv)):
                continue
            found = train(arm, images, held_out, seed, args.epochs, args.dtype)
            append(args.csv, {**key, **found})
            print(f'{arm}, seed {seed}: {found}', flush=True)


if __name__ == '__main__':
    main()
