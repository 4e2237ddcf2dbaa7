"""Log lines, progress bar, summary.csv and curves.png of a run."""
import csv
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ...assembly.console import steps_logger
from ...base.distributed import is_primary
from ...base.output_files import save_figure
from ..updates.loop import Progress

_logger = logging.getLogger('train')


@contextmanager
def tolerated(path: str) -> Iterator[None]:
    """Turn an OSError about a file that training does not need into a warning."""
    try:
        yield
    except OSError as error:
        _logger.warning(f"cannot write '{error.filename or path}': {error.strerror or error}: training continues")


class ProgressLog:
    """Logs training in timm's format, and shows a progress bar with ETA on a terminal.

    Args:
        done_updates: Updates done before, in a resumed run.
    """

    def __init__(self, total_updates: int, done_updates: int = 0, num_epochs: int = 0):
        self.num_epochs = num_epochs
        self.total_updates = total_updates
        self.done_updates = done_updates
        self.start = time.perf_counter()
        self.bar = tqdm(
            total=total_updates, initial=done_updates, unit='update', file=sys.stderr, dynamic_ncols=True,
            disable=not (is_primary() and sys.stderr.isatty()))

    def train_step(self, progress: Progress, lr: float) -> None:
        steps_logger.info(f'{train_line(progress, lr)}  ETA: {self._eta(progress)}')
        self.bar.set_description(f'Epoch {progress.epoch}/{self.num_epochs - 1}', refresh=False)
        self.bar.set_postfix({name: f'{value:.3g}' for name, value in progress.mean.items()}, refresh=False)

    def _eta(self, progress: Progress) -> str:
        """Return the time to the end of the run, from the mean time of an update with its share of the evaluations."""
        done = progress.epoch * progress.updates_per_epoch + progress.update_index + 1
        seconds = (time.perf_counter() - self.start) / max(1, done - self.done_updates)
        return tqdm.format_interval(seconds * max(0, self.total_updates - done))


def train_line(progress: Progress, lr: float) -> str:
    """Return timm's log line, with the parts of the loss. Rates count images, not views."""
    done = progress.update_index + 1
    lap, total = progress.lap, progress.total
    losses = '  '.join(
        f"{_title(name)}: {value:#.3g} ({progress.mean[name]:#.3g})" for name, value in progress.last.items())
    return (
        f'Train: {progress.epoch} [{progress.update_index:>4d}/{progress.updates_per_epoch} '
        f'({100. * done / progress.updates_per_epoch:>3.0f}%)]  '
        f'{losses}  '
        f'Time: {lap.seconds / max(1, lap.updates):.3f}s, {lap.images / lap.seconds:>7.2f}/s  '
        f'({total.seconds / total.updates:.3f}s, {total.images / total.seconds:>7.2f}/s)  '
        f'LR: {lr:.3e}  '
        f'Data: {lap.data_seconds / max(1, lap.updates):.3f} ({total.data_seconds / total.updates:.3f})'
    )


def summary_row(
        epoch: int,
        train: dict[str, float],
        lr: float,
        raw: dict[str, float] | None,
        ema: dict[str, float] | None,
) -> dict[str, Any]:
    """Return a row of summary.csv: timm's columns, then ours. `eval_` columns are those of the EMA with --model-ema."""
    selected = ema or raw or {}
    row = {'epoch': epoch, 'train_loss': train['loss']}
    row.update({f'eval_{name}': value for name, value in selected.items()})
    row['lr'] = lr
    row.update({f'train_{name}': value for name, value in train.items() if name != 'loss'})
    if raw and ema:
        row.update({f'raw_{name}': value for name, value in raw.items()})
        row.update({f'ema_{name}': value for name, value in ema.items()})
    return row


def read_rows(path: str) -> list[dict[str, Any]]:
    """Return the rows of a summary.csv, with a warning about lines that are no rows of numbers.

    timm's script may repeat the header and epochs when it continues a run. The last row of an epoch counts.
    """
    names: list[str] = []
    rows: dict[int, dict[str, Any]] = {}
    damaged, lines = 0, []
    if os.path.isfile(path):
        with open(path, encoding='utf-8-sig', errors='replace') as f:
            lines = f.read().splitlines()
    for line in filter(None, lines):
        try:
            cells = next(csv.reader([line]))
            if 'epoch' in cells:
                names = cells
                continue
            row = dict(zip(names, cells, strict=True))
            epoch = int(row.pop('epoch'))
            rows[epoch] = {'epoch': epoch, **{name: float(value) for name, value in row.items() if value}}
        except (ValueError, csv.Error):
            damaged += 1
    if damaged:
        _logger.warning(f"'{path}': lines that are no row of an epoch are left out: {damaged}")
    return list(rows.values())


def plot_curves(summary_path: str, output_path: str) -> None:
    """Draw losses, terms of the loss, metric and learning rate of a summary.csv. Needs the extra `plot`."""
    panels = {title: lines for title, lines in read_curves(summary_path).items() if any(lines.values())}
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)

    def draw(figure) -> None:
        for number, (title, lines) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            for name, points in lines.items():
                axes.plot(*zip(*points), marker='.' if len(points) < 50 else '', label=name)
            axes.set(title=title, xlabel='epoch')
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color='0.9')
            if len(lines) > 1:
                axes.legend()

    save_figure(output_path, draw, figsize=(4 * columns, 3.2 * rows))


def read_curves(summary_path: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the curves in a summary.csv: by panel and name, points (epoch, value).

    The cross-entropy of training and validation is one panel. Each further term of the training loss has its own.
    """
    rows = read_rows(summary_path)
    filled = list(dict.fromkeys(name for row in rows for name in row))
    metric, title = ('map', 'mAP (%)') if 'eval_map' in filled else ('top1', 'top-1 (%)')
    terms = [name for name in filled if name.startswith('train_')][1:]
    classification = next((name for name in ('train_ce', 'train_task_loss') if name in terms), 'train_loss')
    panels = {
        'classification loss': {'training': classification, 'validation': 'eval_loss'},
        title: {'validation': f'raw_{metric}' if f'raw_{metric}' in filled else f'eval_{metric}',
                'validation of the EMA': f'ema_{metric}'},
        **{name.removeprefix('train_').replace('_', ' '): {'training': name} for name in terms
           if name != classification},
        'learning rate': {'learning rate': 'lr'},
    }
    return {panel: {
        name: [(row['epoch'], row[column]) for row in rows if column in row]
        for name, column in columns.items() if column in filled} for panel, columns in panels.items()}


def _title(name: str) -> str:
    return 'CE' if name == 'ce' else name.capitalize()


def best_last(results: list[dict[str, Any]], metric: str, decreasing: bool) -> list[dict[str, Any]]:
    """Return the ten best epochs, as timm prints them after --result: the best one is last.

    NaN ranks below every number.
    """
    values = [(result.get('validation', result['train'])[metric], result) for result in results]
    ranked = sorted(values, key=lambda pair: (not math.isnan(pair[0]), -pair[0] if decreasing else pair[0]))
    return [result for _, result in ranked[-10:]]
