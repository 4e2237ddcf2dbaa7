#!/usr/bin/env python3
"""Compare AgMax with a variant for classes of unequal size: the class frequencies in place of a uniform marginal.

Usage: python tools/class_prior_pilot.py --csv class_prior_pilot.csv --seeds 0 1 2 3 4 5 6 7

The classes of the built-in training images keep numbers of images that fall geometrically. The seed draws the order of
the classes and the images. The validation images are the last 200 of each class. A finished run is
one row of the CSV file; rows that exist are not repeated. docs/results.md describes the setting and the results.
"""
import argparse
import math
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from agreement_pilots import Images, append, rows_of
from demo_pairs import DEMO

from agmax_timm import AgMaxTask

BATCH, EPOCHS = 20, 40
RATES = {'AgMax': .1, 'AgMax, class prior': .1, 'two views alone': .1, 'twice the epochs': .05}


def demo_images() -> tuple[Images, Images]:
    """Return the training images and the validation images."""
    with np.load(DEMO, allow_pickle=False) as data:
        (raw, labels), (other, targets) = (
            (torch.from_numpy(np.repeat(data[f'{part}_images'][..., None], 3, -1)),
             torch.from_numpy(data[f'{part}_labels']).long()) for part in ('train', 'val'))
    number = (F.one_hot(targets).cumsum(0) - 1).gather(1, targets[:, None])[:, 0]  # within the class
    held_out = number >= 200
    return Images(raw, labels), Images(other[held_out], targets[held_out])


def prior_term(logits: torch.Tensor, joint: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Return what KL(P || prior) adds to the agreement: minus P ln(prior), mean over the three marginals."""
    marginals = torch.stack([*logits.chunk(2), joint]).softmax(-1).mean(1)
    return -(marginals @ prior.log()).mean()


def long_tailed(images: Images, imbalance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the images that are kept [N], and the class sizes [K].

    The largest class keeps all of its images, the smallest a share of 1 / imbalance.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    sizes, kept = torch.zeros(images.classes, dtype=torch.long), []
    for rank, label in enumerate(torch.randperm(images.classes, generator=generator)):
        found = (images.labels == label).nonzero()[:, 0]
        found = found[torch.randperm(len(found), generator=generator)]
        sizes[label] = round(len(found) * imbalance ** (-rank / (images.classes - 1)))
        kept.append(found[:sizes[label]])
    return torch.cat(kept), sizes


def train(method: str, images: Images, held_out: Images, sizes: torch.Tensor, seed: int) -> dict:
    held_out.normalise_as(images)
    prior = sizes / sizes.sum()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = timm.create_model('test_resnet', num_classes=images.classes).to(memory_format=torch.channels_last)
    task = AgMaxTask(model, verbose=False) if method.startswith('AgMax') else None
    parameters = (task.trainable_module if task else model).parameters()
    optimizer = torch.optim.SGD(
        parameters, lr=RATES[method], momentum=.9, nesterov=True, weight_decay=5e-4, fused=True)
    two_views = method != 'twice the epochs'
    epochs, per_epoch = EPOCHS if two_views else 2 * EPOCHS, len(images.labels) // BATCH
    updates, number = epochs * per_epoch, 0
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(images.labels), generator=generator)[:per_epoch * BATCH].view(-1, BATCH):
            for group in optimizer.param_groups:
                group['lr'] = RATES[method] * (1 + math.cos(math.pi * number / updates)) / 2
            x, target = images.view(indices, generator), images.labels[indices]
            if two_views:
                x, target = torch.cat([x, images.view(indices, generator)]), target.repeat(2)
            if task:
                logits, joint = task.trainable_module(x)
                loss = task.loss(logits, joint, target)['loss']
                if method == 'AgMax, class prior':
                    loss = loss + prior_term(logits, joint, prior)
            else:
                loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1
    recall, order = recalls(model, held_out), sizes.argsort(descending=True)
    accuracies = dict(balanced_top1=recall.mean(), prior_top1=(recall * prior).sum(),
                      largest_top1=recall[order[:3]].mean(), smallest_top1=recall[order[-3:]].mean())
    return dict(images=len(images.labels), epochs=epochs,
                **{name: round(value.item(), 4) for name, value in accuracies.items()})


@torch.inference_mode()
def recalls(model: torch.nn.Module, images: Images) -> torch.Tensor:
    """Return the accuracy of each class, in percent [K]."""
    model.eval()
    found = torch.cat([model(part) for part in images.pixels.split(500)]).argmax(1)
    return 100 * torch.stack([(found[images.labels == k] == k).double().mean() for k in range(images.classes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', required=True)
    parser.add_argument('--methods', nargs='+', choices=RATES, default=list(RATES))
    parser.add_argument('--imbalance', type=int, nargs='+', default=[10, 30])
    parser.add_argument('--csv', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, held_out = demo_images()
    for seed in args.seeds:
        for imbalance in args.imbalance:
            for method in args.methods:
                kept, sizes = long_tailed(images, imbalance, seed)
                key = dict(sizes=f'{sizes.max()} to {sizes.min()}', method=method, rate=RATES[method], seed=seed)
                if not any(all(row[name] == str(value) for name, value in key.items()) for row in rows_of(args.csv)):
                    part = Images(images.raw[kept], images.labels[kept])
                    row = {**key, **train(method, part, held_out, sizes, seed)}
                    append(args.csv, row)
                    print(row, flush=True)


if __name__ == '__main__':
    main()
