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

from ..checkpoint import CheckpointError, one_line
from ..data.backend import views_of
from ..data.datasets import DataError, class_names
from ..data.resumable import make_resumable
from ..hub import HubError, check_destination
from ..publish import command_of, publish_source
from ..resume import resume, resume_ema
from ..saver import RecordSaver, SaveError, create_saver, make_record
from ..task import UnsupportedModelError
from . import build, changes, dry_run, folder, loaders, names, reporting, resuming, sharding, tracking
from .checks import in_sequence, mixing
from .config import OptionError, parse_train_args
from .damaged import DamageReport
from .engine import NonFiniteError, Progress, RunningLosses, evaluate, train_one_epoch
from .interruption import EXIT_STATUS, Interrupted, StopSignals
from .keeping import Keeper, is_evaluated
from .nonfinite import BrokenUpdates
from .objective import build_task
from .pictures import save_views
from .report import report_at_end
from .state import Position, RunState
from .stopping import EarlyStop
from .watch import Verdict, Watch
from .watchdog import Watchdog

EX_IOERR = 74  # as sysexits.h has it


def main(argv: Optional[List[str]] = None) -> None:
    """train.py with a command line of one's own; see run."""
    run(parse_train_args(argv))


def run(args: argparse.Namespace) -> None:
    """train.py. Its exit status is 0, or

    2 for options or data that cannot be used, 1 for a loss or metric that is not finite or a worker that died, 74 if
    the last state could not be written, 75 if the run was asked to end, has saved and can go on.
    """
    with StopSignals() as signals:  # to the last: torchrun sends SIGTERM to those that leave second
        _run(args, signals)


def _run(args: argparse.Namespace, signals: StopSignals) -> None:
    try:
        train(args, signals)
    except (OptionError, DataError, CheckpointError, UnsupportedModelError, HubError) as error:
        reporting.exit_with_error(2, error)
    except NonFiniteError as error:
        reporting.exit_with_error(1, error)
    except Interrupted as error:
        reporting.exit_with_error(EXIT_STATUS, error)
    except SaveError as error:
        reporting.exit_with_error(EX_IOERR, error)
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        reason = one_line(error)[:300]
        reporting.exit_with_error(1, RuntimeError(
            f'a loader worker died: {reason}. Out of memory? Use fewer --workers; --resume auto goes on'))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(args: argparse.Namespace, signals: Optional[StopSignals] = None) -> List[Dict[str, Any]]:
    """Train as the options say.

    Args:
        signals: Those that ask the run to end; none do if None.

    Returns:
        For each epoch that was evaluated, its number and its metrics in training and validation.

    Raises:
        Interrupted: the run was asked to end, and has saved.
        SaveError: the last state could not be written.
    """
    with Watchdog(args) as watchdog:
        return _train(args, signals or StopSignals(), watchdog)


def _train(args: argparse.Namespace, signals: StopSignals, watchdog: Watchdog) -> List[Dict[str, Any]]:
    options = dict(vars(args))  # as given, before anything is resolved
    reporting.setup_logging(primary=utils.world_info_from_env()[1] == 0)
    logger = logging.getLogger('train')

    tracking.require_trackers(args)
    loaders.check_roots(args)
    auto = args.resume == 'auto'
    folder.resolve_resume(args)
    folder.check_folder(args, auto, lock=not args.dry_run)
    build.import_device_modules(args)
    names.check_train_names(args)
    device = build.init_device(args)
    signals.check_start(args, device)  # and behind all that takes long: nothing is begun before open_folder
    primary = utils.is_primary(args)
    if args.fsdp:
        sharding.check_sharding(args)
    if args.push_to_hub and primary:
        check_destination(args.push_to_hub, private=args.hub_private, create_pr=args.hub_pr)
    utils.random_seed(args.seed, args.rank)
    precision = build.build_precision(args, device)
    model, data_config = build.build_model(args, device, precision)
    signals.check_start(args, device)
    dataset_train, dataset_eval = loaders.build_datasets(args, data_config)
    signals.check_start(args, device)
    patch_size = loaders.patch_size(model) if args.naflex_loader else None
    loader_train = loaders.build_train_loader(args, dataset_train, data_config, device, precision, patch_size)
    loader_train, resumable = make_resumable(loader_train, device, args.world_size, args.rank)
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

    data = {**changes.describe_data(dataset_train, dataset_eval), 'views': views_of(loader_train.dataset)}
    before = resuming.Before.read(args, data) if args.resume else None
    resume_epoch = None
    if args.resume:
        resumed = (None, None) if args.no_resume_opt else (optimizer, precision.scaler)
        resume_epoch = resume(args.resume, task, *resumed, verbose=primary, verified=auto)
    folder.check_same_start(args, resume_epoch)
    build.build_ema(args, task)
    if args.resume and args.model_ema:
        resume_ema(args.resume, task)
    build.compile_and_distribute(args, task, optimizer, device)
    gathered = sharding.WholeState(task, optimizer, keep=primary) if args.fsdp else None

    updates_per_epoch = math.ceil(len(loader_train) / args.grad_accum_steps)
    scheduler, num_epochs = build.build_scheduler(args, optimizer, updates_per_epoch)
    state = RunState(args, task, optimizer, resumable, loader_eval, device)
    state.scheduler = scheduler
    position, losses = resuming.find_start(args, before, resume_epoch)
    names.check_epochs(args, num_epochs)
    stop_epoch = args.stop_epoch or num_epochs
    num_updates = position.epoch * updates_per_epoch + math.ceil(position.batch / args.grad_accum_steps)
    build.advance_scheduler(scheduler, position.epoch, num_updates if args.sched_on_updates else None)
    keeper = Keeper(args, task, state, signals, watchdog, gathered)
    if before is not None and before.exact:
        position, losses = before.restore(state, primary)
        if keeper.damage is not None:
            keeper.damage.mark(i for i in before.state['damaged'] if i < len(dataset_train))

    decreasing = metric_name == 'loss'
    early_stop = EarlyStop(args, metric_name)
    watch = Watch(args, device, keeper.wishes)
    on_broken = BrokenUpdates(args, task, resumable)
    signals.check_start(args, device)
    if args.dry_run:
        begin_epoch(args, loader_train, position.epoch)
        dry_run.tell_plan(dry_run.Built(
            args, device, precision, task, optimizer, scheduler, loader_train, loader_eval, keeper, on_broken, record,
            position, updates_per_epoch, num_updates, num_epochs, stop_epoch))
        return []
    trackers = None
    if primary:
        line = folder.line_to_write(args, auto, before.state if before is not None else None)
        keeper.constants = {'data': data, 'line': line}
        output_dir, log = folder.open_folder(args, options, data_config['input_size'][-1], before)
        keeper.output_dir, keeper.log_position = output_dir, log.position
        keeper.saver = create_saver(
            output_dir, gathered or task, gathered or optimizer, args, record, precision.scaler, decreasing)
        same_folder = folder.goes_on(args, output_dir)
        if same_folder:
            keeper.saver.load_state_dict_from_checkpoint(args.resume)
        trackers = tracking.Trackers(
            args, output_dir, updates_per_epoch, num_updates, state.history.rows, same_folder)
        logger.info(f'Training epochs {position.epoch} to {stop_epoch} of {num_epochs}, {updates_per_epoch} updates '
                    f'each, into {output_dir}')
    on_broken.folder = folder.share_path(args, keeper.output_dir)
    damaged = DamageReport(dataset_train, device, keeper.output_dir)
    reporter = reporting.Reporter(stop_epoch * updates_per_epoch, num_updates, num_epochs, primary)

    def on_log(progress: Progress) -> None:
        reporter.train_step(progress, build.mean_lr(optimizer))
        if trackers is not None:
            trackers.update(progress)
        if args.save_images and primary:
            path = os.path.join(keeper.output_dir, f'views-{progress.epoch}-{progress.update_index}.png')
            with reporting.tolerated(path):
                save_views(path, progress.input, progress.target, data_config['mean'], data_config['std'],
                           class_names(dataset_train), views=2 if args.agmax else 1)

    def on_update(batches: int, verdict: Verdict) -> None:
        reporter.updated()
        keeper.after_update(epoch, batches, losses, verdict)

    results = state.history.results
    stopped = early_stop.agreed(results)
    trained_here = position.epoch < stop_epoch and not stopped
    for epoch in range(position.epoch, stop_epoch if trained_here else position.epoch):
        if epoch != position.epoch:
            position = Position(epoch)
            losses = None
        losses = losses or RunningLosses(device, args.distributed)
        begin_epoch(args, loader_train, epoch)
        keeper.begin_epoch(position.batch // args.grad_accum_steps)
        if position.trained:
            train_metrics = losses.read(f'in epoch {epoch}')[1]
        else:
            train_metrics, _ = train_one_epoch(
                epoch, task, loader_train, optimizer, args, device, precision, scheduler, on_log, on_update,
                loaders.build_loss_scale(args, loader_train), watch, on_broken, losses, position.batch,
                updates_per_epoch)
            damaged.after_epoch()
            distribute_batch_norm(args, task.get_trainable_module())
        done = epoch + 1
        if not is_evaluated(args, done, stop_epoch, num_epochs):
            if scheduler is not None:
                scheduler.step(done, metric=None)
            continue

        random = state.random_state()
        raw = ema = None
        if loader_eval is not None:
            measure = partial(evaluate_task, epoch, task, loader_eval, args, device, precision, reporter, keeper)
            try:
                raw = measure()
                ema = measure(ema=True) if task.has_ema() and not args.model_ema_force_cpu else None
            except EvaluationStopped:
                keeper.save_within(Position(epoch, len(loader_train), trained=True), losses, random)
                keeper.leave(f'the end of epoch {epoch}, before its evaluation')
            state.evaluated = True
        selected = ema or raw or train_metrics
        results.append({'epoch': epoch, 'train': train_metrics, **({'validation': selected} if raw else {})})
        row = reporting.summary_row(epoch, train_metrics, build.mean_lr(optimizer), raw, ema)
        state.history.rows.append(row)
        if scheduler is not None:
            scheduler.step(done, selected[metric_name])
        if trackers is not None:
            trackers.row(row)
        keeper.save_epoch(epoch, selected[metric_name], raw=raw, ema=ema)
        check_finite(args, epoch, selected)
        stopped = early_stop.agreed(results)
        if stopped:
            break

    reporter.close()
    damaged.at_end()
    if primary:
        keeper.saver.wait()
        if stopped:
            logger.info(f"Stopped after epoch {results[-1]['epoch']} by --early-stop {args.early_stop}: {stopped}.")
        finish(keeper.output_dir, keeper.saver, trackers, trained=trained_here)
        best = reporting.best_last(results, metric_name, decreasing)
        if stopped:
            best[-1] = {**best[-1], 'early_stop': stopped}
        print(f'--result\n{json.dumps(reporting.finite(best), indent=4)}')
        keeper.saver.close()
        if args.push_to_hub and results:
            publish_run(args, keeper.output_dir)
        if args.report and results:
            report_at_end(keeper.output_dir, args.device, watchdog.beat)
    return results


def finish(output_dir: str, saver: RecordSaver, trackers: tracking.Trackers, trained: bool) -> None:
    """What a run says at its end."""
    logger = logging.getLogger('train')
    if not trained:
        logger.info(f'Nothing to train: {output_dir} is complete.')
    if saver.best_metric is not None:
        logger.info(f'*** Best metric: {saver.best_metric} (epoch {saver.best_epoch})')
    curves = os.path.join(output_dir, 'curves.png')
    if os.path.exists(folder.summary_path(output_dir)) and (trained or not os.path.exists(curves)):
        with reporting.tolerated(curves):
            reporting.plot_curves(folder.summary_path(output_dir), curves)
    trackers.finish()


class EvaluationStopped(Exception):
    """An evaluation that was asked to end."""


def evaluate_task(
        epoch: int,
        task: TrainingTask,
        loader,
        args: argparse.Namespace,
        device: torch.device,
        precision: build.Precision,
        reporter: reporting.Reporter,
        keeper: Keeper,
        ema: bool = False,
) -> Dict[str, float]:
    """Metrics of the model or of its EMA.

    Raises:
        EvaluationStopped: on all ranks, where a signal asks one of them to end.
    """
    name = 'Test (EMA)' if ema else 'Test'
    if ema:
        distribute_batch_norm(args, task.get_trainable_module(ema=True))
    average, limit = max(1, args.tta), evaluation_sample_limit(loader)
    evaluator = task.create_evaluator(max_samples=None if limit is None else limit // average)

    def on_batch(batch_index: int) -> None:
        keeper.watchdog.beat()
        if args.distributed and (in_sequence(args) or batch_index % args.log_interval):
            return  # ranks may have unequal numbers of batches; they agree at intervals
        if keeper.signals.agreed(args, device):
            raise EvaluationStopped

    metrics = evaluate(
        task.get_eval_model(ema=ema), loader, args, device, precision, args.log_interval,
        on_log=reporting.log_evaluation_step(name) if utils.is_primary(args) else None,
        on_batch=on_batch, evaluator=evaluator, average=average)
    reporter.evaluation(f'{name} {epoch}', metrics)
    return metrics


def check_finite(args: argparse.Namespace, epoch: int, metrics: Dict[str, float]) -> None:
    """
    Raises:
        NonFiniteError: a metric is NaN or infinite, and the run is to stop at such. The weights, which are finite, are
            saved by then.
    """
    broken = [f'{name} is {value}' for name, value in metrics.items() if not math.isfinite(value)]
    if not broken:
        return
    message = f"the evaluation after epoch {epoch}: {', '.join(broken)}"
    if args.nan_policy == 'stop':
        raise NonFiniteError(f'{message}. The epoch was saved, but not as the best')
    logging.getLogger('train').warning(f'{message}: it does not count as the best.')


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


def begin_epoch(args: argparse.Namespace, loader, epoch: int) -> None:
    """Make the training loader ready for an epoch."""
    set_epoch(loader, epoch)
    if mixing(args) and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        loader.mixup_enabled = False


def set_epoch(loader, epoch: int) -> None:
    """Tell data set and sampler the epoch, where they want to know."""
    sampler = loader.batch_sampler if hasattr(loader.batch_sampler, 'set_epoch') else loader.sampler
    for part in (loader.dataset, sampler):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
