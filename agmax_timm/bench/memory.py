"""Memory of the loading processes over several epochs, each loader in a process of its own."""
import argparse
import json
import random
from statistics import median
from typing import Any

from . import fresh
from .images import some_images
from .pipelines import IN_MEMORY, TIMM, TWO_VIEWS
from .report import Result, Row

_TWICE = f'{TIMM}, twice the batch'  # as many views in a batch as two views have


def measure(args: argparse.Namespace) -> Result:
    names = [TIMM, _TWICE, *TWO_VIEWS, *(IN_MEMORY if args.memory else ())]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with some_images(args.folder, args.split, args.images) as root:
        for repeat in range(args.repeats):
            for name in random.Random(repeat).sample(names, len(names)):
                found[name].append(read_epochs(
                    name=TIMM if name == _TWICE else name, root=root, size=(3, args.img_size, args.img_size),
                    batch_size=args.batch_size * (2 if name == _TWICE else 1), workers=args.workers, recipe={},
                    epochs=args.epochs))
    kind = found[TIMM][0]['kind']
    rows = [_row(name, found[name], found[TIMM], kind) for name in names]
    return Result(
        f"ratio: peak {kind} of the main process and {args.workers} workers against timm's own loader with one view, "
        f'{args.epochs} epochs', rows)


def read_epochs(**options) -> dict[str, Any]:
    """What epochs.py prints of a loader, in a fresh process: views, and peaks of memory in MiB, of each epoch."""
    return json.loads(fresh.wait_for(['-m', 'agmax_timm.bench.epochs', json.dumps(options)], '"peaks"'))


def _row(name: str, own: list[dict[str, Any]], base: list[dict[str, Any]], kind: str) -> Row:
    pairs = [max(one['peaks']) / max(other['peaks']) for one, other in zip(own, base)]
    epochs = [median(peaks) for peaks in zip(*(one['peaks'] for one in own))]
    return {
        'loader': name,
        'views': own[0]['views'],
        f'peak {kind} MiB': max(epochs),
        'ratio': median(pairs),
        'least': min(pairs),
        'most': max(pairs),
        **{f'epoch {number} MiB': mib for number, mib in enumerate(epochs, 1)},
        'growth MiB/epoch': (epochs[-1] - epochs[1]) / (len(epochs) - 2) if len(epochs) > 2 else None,
    }
