"""--dry-run: estimate time, memory and disk use of a run from a few seconds of it. Nothing is written."""
import logging
import os
import resource
import shutil
import sys
import time
from contextlib import suppress
from typing import Any

import torch
from timm.task import TrainingTask, evaluation_sample_limit
from timm.utils import unwrap_model
from tqdm import tqdm

from ..assembly.objective import describe_marginals
from ..assembly.optimizer import mean_lr
from ..base.distributed import is_primary, world_size
from ..data.backend import views_of
from ..data.loading.workers import batches_of
from ..evaluation.evaluate import outputs_of
from ..options.parsers import TrainOptions
from ..options.run import Run
from ..weights.find import checkpoint_names
from .checkpoints.manager import most_files
from .checkpoints.state import Position
from .create_run import TrainingRun
from .epochs import prepare_loader
from .output.run_folder import run_or_parent_folder
from .updates.finite_check import CheckResult, FiniteCheck
from .updates.loop import synchronize, train_one_epoch
from .updates.losses import RunningLosses
from .updates.step import Step

_logger = logging.getLogger('train')
SECONDS = 5.  # of updates after the first one, which waits for data and may compile; and of evaluated batches
EVALUATED = 5  # smallest number of evaluated batches, if there are as many


class _Enough(Exception):
    """Enough was measured."""


def print_plan(run: TrainingRun) -> None:
    """Print the estimate, measured on the first updates of the run. Every rank calls it.

    Raises:
        Interrupted: A signal asked the run to end.
    """
    seconds, rate = time_updates(run)
    run.checkpoints.signals.check_start(run.options.resume, run.device)
    evaluation = time_evaluation(run) if run.loader_eval is not None else 0.
    size = checkpoint_size(run)
    if is_primary():
        lines = plan(run, seconds, rate, evaluation, size)
        width = max(len(title) for title, _ in lines)
        print('\n'.join(f'{title:<{width}}  {text}' for title, text in lines))


def plan(run: TrainingRun, seconds: float, rate: float, evaluation: float, size: int) -> list[tuple[str, str]]:
    """Return the lines of the estimate, each a title and a text.

    Args:
        seconds: Seconds of an update.
        rate: Images of all ranks per second.
        evaluation: Seconds of an evaluation of one set of weights.
        size: Bytes of a checkpoint.
    """
    options = run.options
    todo = max(0, run.stop_epoch * run.updates_per_epoch - run.done_updates)
    views = f', {2 * rate:.1f} views/s' if options.agmax else ''
    memory: Any = getattr(run.task, 'memory', None)
    evaluations = len(run.evaluated_epochs)
    weights = 2 if run.task.has_ema() and not options.model_ema_force_cpu else 1
    return [
        ('epochs', f'{max(0, run.stop_epoch - run.position.epoch)} to go, of {run.num_epochs}'),
        ('updates', f'{run.updates_per_epoch} per epoch, {todo} to go'),
        ('batch', _batch(options)),
        *([('marginals', describe_marginals(options))] if options.agmax and options.agmax_loss == 'mi' else []),
        *([('remembered', f'{memory.extra_repr()} on each rank and in each checkpoint')] if memory is not None else []),
        ('learning rate', _rates(run)),
        ('parameters', _parameters(run.task)),
        ('ranks', f'{world_size()} on {run.device.type}'),
        ('augmentation', f'{views_of(run.loader_train.dataset)}, {_images_in_memory(run.loader_train.dataset)}'),
        ('speed', f'{rate:.1f} images/s{views}, {seconds:.3f} s per update'),
        ('training', tqdm.format_interval(todo * seconds)),
        ('evaluation', f'{tqdm.format_interval(evaluations * weights * evaluation)}, {evaluations} times '
                       f'{weights * evaluation:.1f} s' if run.loader_eval is not None else 'none'),
        ('memory', _memory(run.device)),
        ('checkpoints', _disk(options, size, most_files(options, run.evaluated_epochs))),
    ]


def _batch(options: TrainOptions) -> str:
    """Return the numbers of images and views in a forward pass of one rank. -b counts images, memory follows views."""
    if options.naflex_loader or options.train_img_sizes:
        return 'of several sizes'
    views = 2 if options.agmax else max(1, options.aug_splits)
    return f'{options.batch_size} images, {views * options.batch_size} views on each rank'


def time_updates(run: TrainingRun) -> tuple[float, float]:
    """Return seconds per update, and images of all ranks per second, from a few seconds of training.

    They are those of the epoch that comes next, or of the one after it if at most one update of it is left.
    """
    options, device, epoch = run.options, run.device, run.position.epoch
    prepare_loader(options, run.loader_train, epoch)
    first_batch = 0 if run.position.trained else run.position.batch
    if first_batch and len(run.loader_train) - first_batch <= options.grad_accum_steps:  # at most one update is left
        for _ in batches_of(run.loader_train):
            run.checkpoints.watchdog.beat()
        epoch, first_batch = epoch + 1, 0
        prepare_loader(options, run.loader_train, epoch)
    losses = RunningLosses(device)
    marks = [(time.perf_counter(), 0)]  # after each update: time, and images of this rank so far

    def requests() -> tuple[bool, bool]:
        _, stop = run.checkpoints.requests()
        return False, stop or (len(marks) > 1 and time.perf_counter() - marks[1][0] > SECONDS)

    def on_update(batches: int, checked: CheckResult) -> None:
        if len(marks) == 1:
            synchronize(device)
        marks.append((time.perf_counter(), losses.count))
        if checked.stop:  # on all ranks alike
            raise _Enough

    step = Step(run, FiniteCheck(options, device, requests), run.on_broken)
    with suppress(_Enough):
        train_one_epoch(
            epoch, step, run.loader_train, run.scheduler, on_update=on_update, losses=losses, first_batch=first_batch,
            updates_per_epoch=run.updates_per_epoch)
    synchronize(device)
    updates = len(marks) - 1
    begun, images = marks[1 if updates > 1 else 0]
    seconds = time.perf_counter() - begun
    versions = max(1, options.aug_splits)
    return seconds / max(1, updates - 1), (losses.count - images) / versions * world_size() / seconds


@torch.inference_mode()
def time_evaluation(run: TrainingRun) -> float:
    """Return the seconds of an evaluation of one set of weights, estimated from its first batches.

    Metrics are not computed: ranks would wait for each other, and each rank leaves the loop by its own clock.
    """
    options, device, loader = run.options, run.device, run.loader_eval
    model: Any = run.task.get_eval_model()
    evaluator = run.task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    marks = [time.perf_counter()]
    for _, output, target in outputs_of(model, loader, options, device, run.precision):
        evaluator.update(output, target)
        run.checkpoints.watchdog.beat()
        synchronize(device)
        marks.append(time.perf_counter())
        late = options.fsdp or marks[-1] - marks[1] > SECONDS  # with --fsdp ranks compute each batch together
        if len(marks) > EVALUATED and late:
            break
    if len(marks) > 2:
        del marks[0]
    return (marks[-1] - marks[0]) / max(1, len(marks) - 1) * len(loader)


def checkpoint_size(run: TrainingRun) -> int:
    """Return the bytes of a checkpoint with the optimizer's present state, on the first rank. A collective."""
    state = run.checkpoints.gather(Position(run.position.epoch))
    return 0 if state is None else run.checkpoints.create_saver('', run.metadata).measure(run.position.epoch, state)


def _rates(run: TrainingRun) -> str:
    """Return the learning rates at the start of the next epoch, of the last one, and where it is largest."""
    options, scheduler = run.options, run.scheduler
    if scheduler is None:
        return f'{mean_lr(run.optimizer):.3g} throughout'
    if options.sched == 'plateau':
        return (f'plateau, {mean_lr(run.optimizer):.3g} in epoch {run.position.epoch}, lower if {run.metric_name} gets '
                'no better')
    first, last = run.position.epoch, max(run.position.epoch, run.stop_epoch - 1)
    rates = {}
    for epoch in sorted({*range(first, last, max(1, (last - first) // 1000)), last}):
        if options.sched_on_updates:
            scheduler.step_update(epoch * run.updates_per_epoch)
        else:
            scheduler.step(epoch)
        rates[epoch] = mean_lr(run.optimizer)
    top = max(rates, key=lambda epoch: rates[epoch])
    shown = ', '.join(f'{rates[epoch]:.3g} in epoch {epoch}' for epoch in sorted({first, top, last}))
    return f'{options.sched}, {shown}'


def _parameters(task: TrainingTask) -> str:
    model = sum(parameter.numel() for parameter in unwrap_model(task.get_eval_model()).parameters())
    module: Any = task.get_trainable_module()
    trained = sum(parameter.numel() for parameter in module.parameters())
    in_training = f', and {trained - model} used in training only' if trained > model else ''
    return f'{model}{in_training}'


def _images_in_memory(dataset: Any) -> str:
    memory = getattr(dataset, 'memory', None)
    if memory is None:
        return 'images are not kept in memory'
    return f'images are kept in memory, {_size(memory.num_bytes)}'


def _memory(device: torch.device) -> str:
    """Return the peak of this process so far."""
    if device.type == 'cuda':
        total = _size(torch.cuda.get_device_properties(device).total_memory)
        return (f'{_size(torch.cuda.max_memory_reserved(device))} reserved at most, of {total} of '
                f'{torch.cuda.get_device_name(device)}; tensors took {_size(torch.cuda.max_memory_allocated(device))}')
    unit = 1 if sys.platform == 'darwin' else 1024
    return f'{_size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} of host memory at most, without workers'


def _disk(options: Run, size: int, files: int) -> str:
    """Compare the size of the checkpoints with the free space. Warn if they will not fit."""
    path = run_or_parent_folder(options)
    there = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (
        os.stat(os.path.join(path, name)) for name in checkpoint_names(path))}
    place = os.path.abspath(path)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free + sum(there.values())
    if files * size > free:
        _logger.warning(f'{files} checkpoints of {_size(size)} will not fit into the {_size(free)} that are free in '
                        f"'{place}': use a smaller --checkpoint-hist, or another --output")
    return f"{_size(size)} each, {files} at most: {_size(files * size)}, and {_size(free)} are free in '{place}'"


def _size(num_bytes: int) -> str:
    return f'{num_bytes / 2 ** 30:.2f} GiB' if num_bytes >= 2 ** 30 else f'{num_bytes / 2 ** 20:.2f} MiB'
