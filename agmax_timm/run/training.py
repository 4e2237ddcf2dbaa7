"""A training run, from the command line to the last checkpoint."""
import argparse
import json
import logging
import math
import os
from functools import partial
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist
from timm import utils
from timm.task import TrainingTask, evaluation_sample_limit

from ..checkpoint import CheckpointError
from ..data.datasets import DataError, class_names
from ..hub import HubError, check_destination
from ..publish import command_of, publish_source
from ..saver import RecordSaver, SaveError, create_saver, make_record, resume, resume_ema
from ..task import UnsupportedModelError
from . import build, folder, loaders, reporting, sharding, tracking
from .checks import mixing
from .config import OptionError, parse_train_args
from .engine import NonFiniteError, Progress, RunningLosses, evaluate, train_one_epoch
from .objective import build_task
from .pictures import save_views

EX_IOERR = 74  # as sysexits.h has it


def main(argv: Optional[List[str]] = None) -> None:
    """train.py with a command line of one's own; see run."""
    run(parse_train_args(argv))


def run(args: argparse.Namespace) -> None:
    """train.py. Exit status 2 for options or data that cannot be used, 1 for a loss or metric that is not finite, 74
    where the last state of the run could not be written."""
    try:
        train(args)
    except (OptionError, DataError, CheckpointError, UnsupportedModelError, HubError) as error:
        reporting.exit_with_error(2, error)
    except NonFiniteError as error:
        reporting.exit_with_error(1, error)
    except SaveError as error:
        reporting.exit_with_error(EX_IOERR, error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Train as the options say.

    Returns:
        For each epoch that was evaluated, its number and its metrics in training and validation.
    """
    options = dict(vars(args))  # as given, before anything is resolved
    reporting.setup_logging(primary=utils.world_info_from_env()[1] == 0)
    logger = logging.getLogger('train')

    tracking.require_wandb(args)
    auto = args.resume == 'auto'
    folder.resolve_resume(args)
    folder.check_folder(args, auto)
    build.import_device_modules(args)
    device = build.init_device(args)
    primary = utils.is_primary(args)
    if args.fsdp:
        sharding.check_sharding(args)
    if args.push_to_hub and primary:
        check_destination(args.push_to_hub, private=args.hub_private, create_pr=args.hub_pr)
    utils.random_seed(args.seed, args.rank)
    precision = build.build_precision(args, device)
    model, data_config = build.build_model(args, device, precision)
    dataset_train, dataset_eval = loaders.build_datasets(args, data_config)
    patch_size = loaders.patch_size(model) if args.naflex_loader else None
    loader_train = loaders.build_train_loader(args, dataset_train, data_config, device, precision, patch_size)
    build.set_learning_rate(args, loaders.average_batch_size(args, loader_train))
    loader_eval = None
    if dataset_eval is not None:
        loader_eval = loaders.build_eval_loader(
            args, dataset_eval, data_config, device, precision, args.validation_batch_size or args.batch_size,
            patch_size)
    metric_name = args.eval_metric if loader_eval is not None else 'loss'
    record = make_record(model, args.model, data_config, class_names(dataset_train), metric_name)
    if args.torchscript:
        model = torch.jit.script(model)
    task = build_task(args, model, device, precision)
    optimizer = build.build_optimizer(args, task)

    resume_epoch = None
    if args.resume:
        state = (None, None) if args.no_resume_opt else (optimizer, precision.scaler)
        resume_epoch = resume(args.resume, task, *state, verbose=primary, verified=auto)
    folder.check_same_start(args, resume_epoch)
    build.build_ema(args, task)
    if args.resume and args.model_ema:
        resume_ema(args.resume, task)
    build.compile_and_distribute(args, task, optimizer, device)
    whole = sharding.WholeState(task, optimizer, keep=primary) if args.fsdp else None

    updates_per_epoch = math.ceil(len(loader_train) / args.grad_accum_steps)
    scheduler, num_epochs = build.build_scheduler(args, optimizer, updates_per_epoch)
    start_epoch = args.start_epoch if args.start_epoch is not None else resume_epoch or 0
    stop_epoch = args.stop_epoch or num_epochs
    if stop_epoch > num_epochs:
        raise OptionError(f'--stop-epoch {stop_epoch} is past the last epoch: there are {num_epochs}')
    build.advance_scheduler(scheduler, start_epoch, updates_per_epoch if args.sched_on_updates else None)

    decreasing = metric_name == 'loss'
    output_dir = saver = wandb_run = None
    if primary:
        output_dir = folder.open_folder(args, options, data_config['input_size'][-1])
        summary = folder.summary_path(output_dir)
        rows = reporting.read_summary(summary, start_epoch) if folder.goes_on(args, output_dir) else []
        saver = create_saver(
            output_dir, whole or task, whole or optimizer, args, record, precision.scaler, decreasing)
        if folder.goes_on(args, output_dir):
            saver.load_state_dict_from_checkpoint(args.resume)
        wandb_run = tracking.start_wandb(args, os.path.basename(output_dir))
        logger.info(f'Training epochs {start_epoch} to {stop_epoch} of {num_epochs}, {updates_per_epoch} updates each, '
                    f'into {output_dir}')
    reporter = reporting.Reporter(
        num_epochs * updates_per_epoch, start_epoch * updates_per_epoch, num_epochs, primary)

    def on_log(progress: Progress) -> None:
        reporter.train_step(progress, mean_lr(optimizer))
        if args.save_images and primary:
            path = os.path.join(output_dir, f'views-{progress.epoch}-{progress.update_index}.png')
            with reporting.tolerated(path):
                save_views(path, progress.input, progress.target, data_config['mean'], data_config['std'],
                           class_names(dataset_train), views=2 if args.agmax else 1)

    def on_update(update_index: int, losses: RunningLosses) -> None:
        reporter.updated()
        if args.recovery_interval and (update_index + 1) % args.recovery_interval == 0:
            losses.read(f'by update {update_index + 1} of epoch {epoch}')
            check_weights(task)
            if whole is not None:
                whole.gather()
            if primary:
                saver.save_recovery(epoch, batch_idx=update_index)

    results = []
    for epoch in range(start_epoch, stop_epoch):
        set_epoch(loader_train, epoch)
        if mixing(args) and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
            loader_train.mixup_enabled = False
        train_metrics, images_per_second = train_one_epoch(
            epoch, task, loader_train, optimizer, args, device, precision, scheduler, on_log, on_update,
            loaders.build_loss_scale(args, loader_train))
        distribute_batch_norm(args, task.get_trainable_module())
        done = epoch + 1
        if done % args.val_interval and done not in (stop_epoch, num_epochs, *args.save_epochs):
            if scheduler is not None:
                scheduler.step(done, metric=None)
            continue

        raw = ema = None
        if loader_eval is not None:
            measure = partial(evaluate_task, epoch, task, loader_eval, args, device, precision, reporter)
            raw = measure()
            ema = measure(ema=True) if task.has_ema() and not args.model_ema_force_cpu else None
        check_weights(task)
        if whole is not None:
            whole.gather()
        selected = ema or raw or train_metrics
        results.append({'epoch': epoch, 'train': train_metrics, **({'validation': selected} if raw else {})})
        if primary:
            row = reporting.summary_row(epoch, train_metrics, mean_lr(optimizer), raw, ema, images_per_second)
            rows.append(row)
            with reporting.tolerated(summary):
                reporting.write_summary(summary, rows)
            if wandb_run is not None:
                wandb_run.log(row)
            saver.save_checkpoint(epoch, selected[metric_name], raw=raw, ema=ema)
            if done in args.save_epochs:
                saver.save_milestone(done)
        if scheduler is not None:
            scheduler.step(done, selected[metric_name])

    reporter.close()
    if primary:
        saver.wait()
        finish(args, output_dir, saver, wandb_run, trained=bool(results))
        print(f'--result\n{json.dumps(reporting.best_last(results, metric_name, decreasing), indent=4)}')
        saver.close()
        if args.push_to_hub and results:
            publish_run(args, output_dir)
    return results


def finish(args: argparse.Namespace, output_dir: str, saver: RecordSaver, wandb_run: Any, trained: bool) -> None:
    """What a run says at its end."""
    logger = logging.getLogger('train')
    if not trained:
        logger.info(f'Nothing to train: {output_dir} is complete.')
    if saver.best_metric is not None:
        logger.info(f'*** Best metric: {saver.best_metric} (epoch {saver.best_epoch})')
    if trained:
        curves = os.path.join(output_dir, 'curves.png')
        with reporting.tolerated(curves):
            reporting.plot_curves(folder.summary_path(output_dir), curves)
    if wandb_run is not None:
        wandb_run.finish()


def evaluate_task(
        epoch: int,
        task: TrainingTask,
        loader,
        args: argparse.Namespace,
        device: torch.device,
        precision: build.Precision,
        reporter: reporting.Reporter,
        ema: bool = False,
) -> Dict[str, float]:
    """Metrics of the model or of its EMA.

    Raises:
        NonFiniteError: a metric is NaN or infinite.
    """
    name = 'Test (EMA)' if ema else 'Test'
    if ema:
        distribute_batch_norm(args, task.get_trainable_module(ema=True))
    average, limit = max(1, args.tta), evaluation_sample_limit(loader)
    evaluator = task.create_evaluator(max_samples=None if limit is None else limit // average)
    metrics = evaluate(
        task.get_eval_model(ema=ema), loader, args, device, precision, args.log_interval,
        on_log=reporting.log_evaluation_step(name) if utils.is_primary(args) else None,
        evaluator=evaluator, average=average)
    reporter.evaluation(f'{name} {epoch}', metrics)
    broken = [f'{key} is {value}' for key, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteError(f"{name} after epoch {epoch}: {', '.join(broken)}: nothing was saved of it")
    return metrics


def check_weights(task: TrainingTask) -> None:
    """Raise NonFiniteError rather than save weights that are NaN or infinite: a finite loss can leave such behind."""
    state = task.get_trainable_module().state_dict()
    finite = {
        name: sharding.whole(value.isfinite().all()) for name, value in state.items() if value.is_floating_point()}
    if not torch.stack(list(finite.values())).all():
        broken = [name for name, value in finite.items() if not value]
        raise NonFiniteError(f'{broken[0]} and {len(broken) - 1} more of the weights are not finite: nothing was saved '
                             'of them. Try a smaller --lr, --clip-grad or more --warmup-epochs')


def distribute_batch_norm(args: argparse.Namespace, model: torch.nn.Module) -> None:
    if args.distributed and args.dist_bn in ('broadcast', 'reduce'):
        utils.distribute_bn(model, args.world_size, args.dist_bn == 'reduce')


def publish_run(args: argparse.Namespace, output_dir: str) -> None:
    """Publish the best weights. Whatever goes wrong is told, with the command that goes on: the run itself is done."""
    logger = logging.getLogger('train')
    destination = (args.push_to_hub, args.hub_private, args.hub_revision or None, args.hub_pr)
    try:
        logger.info(f'Published: {publish_source(output_dir, *destination)}')
    except HubError as error:
        logger.error(f'Training is complete, but not published: {error}')
    except Exception:
        logger.exception('Training is complete, but not published; to go on: ' + command_of(output_dir, *destination))


def set_epoch(loader, epoch: int) -> None:
    """Tell data set and sampler the epoch, where they want to know."""
    sampler = loader.batch_sampler if hasattr(loader.batch_sampler, 'set_epoch') else loader.sampler
    for part in (loader.dataset, sampler):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    rates = [group['lr'] for group in optimizer.param_groups]
    return sum(rates) / len(rates)
