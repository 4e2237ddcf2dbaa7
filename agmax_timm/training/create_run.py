"""Create a training run from options: create all objects, and restore them if the run resumes."""
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.task import load_task_ema_checkpoint
from timm.utils import random_seed
from torch.utils.data import Dataset

from ..assembly import datasets, loaders, process_group, sharding
from ..assembly import model as build
from ..assembly import optimizer as optimization
from ..assembly.known_classes import check_teacher, warn_of_other_classes
from ..assembly.objective import build_task
from ..base.distributed import is_distributed, is_primary, rank, world_size
from ..base.errors import CheckpointError, OptionError, UserError
from ..base.random_state import kept_random_state
from ..base.signals import StopSignals
from ..base.silence import silenced
from ..data.backend import views_of
from ..data.resumption.loader import make_resumable
from ..data.sources.classes import class_names, class_to_idx
from ..options import timm_names
from ..options.declare import values
from ..options.derived import ranking_metric
from ..options.parsers import TrainOptions
from ..options.run import Hub
from ..options.surprises import surprises_of_run
from ..weights.base_model import find_base
from ..weights.hub import ChangedError, Destination, HubError, check_destination, check_update
from ..weights.metadata import make_metadata
from ..weights.resume import resume
from ..weights.saved_model import model_of_metadata
from ..weights.staging import try_staging
from .checkpoints import compatibility
from .checkpoints.manager import CheckpointManager
from .checkpoints.resumed_run import ResumedRun, keep_defaults
from .checkpoints.state import Position, RunState
from .guards.nonfinite import BrokenUpdates
from .guards.watchdog import Watchdog
from .output import run_folder
from .output import trackers as tracking
from .updates.finite_check import FiniteCheck
from .updates.losses import RunningLosses
from .updates.step import Training

_logger = logging.getLogger('train')


@dataclass
class TrainingRun(Training):
    """A training run that is ready to start."""
    data_config: dict[str, Any]
    patch_size: tuple[int, int] | None  # for NaFlex models
    dataset_train: Dataset
    loader_train: Any
    loader_eval: Any  # None without validation
    scheduler: Any
    state: RunState
    checkpoints: CheckpointManager
    finite_check: FiniteCheck
    on_broken: BrokenUpdates
    metadata: dict[str, Any]  # see metadata.make_metadata
    data: dict[str, Any]  # see compatibility.describe_data
    resumed: ResumedRun
    position: Position
    losses: RunningLosses | None  # losses of the epoch so far, None between epochs
    updates_per_epoch: int
    done_updates: int
    num_epochs: int
    stop_epoch: int

    @property
    def metric_name(self) -> str:
        """Metric that ranks the checkpoints."""
        return self.metadata['metric_name']

    @property
    def decreasing(self) -> bool:
        """Whether a smaller value of that metric is better."""
        return self.metric_name == 'loss'

    @property
    def evaluated_epochs(self) -> list[int]:
        """Remaining epochs, counted from 1, that are followed by an evaluation."""
        return [done for done in range(self.position.epoch + 1, self.stop_epoch + 1) if self.is_evaluated(done)]

    def is_evaluated(self, done: int) -> bool:
        """Whether epoch number `done`, counted from 1, is evaluated and saved."""
        always = (self.stop_epoch, self.num_epochs, *self.options.save_epochs)
        return done % self.options.val_interval == 0 or done in always


def create_run(options: TrainOptions, signals: StopSignals, watchdog: Watchdog) -> TrainingRun:
    """Create all objects of a run. Nothing is written yet.

    Raises:
        OptionError: Options cannot be combined, or do not fit the data, the model or the checkpoint.
        DataError, CheckpointError, UnsupportedModelError, HubError: The data, the checkpoint, the model or the
            repository on the Hub cannot be used.
        Interrupted: A signal asked the run to end.
    """
    options, device = _begin(options, signals, watchdog)
    options, opened = datasets.with_num_classes(options)
    random_seed(options.seed, rank())
    precision = build.build_precision(options, device)
    model, data_config = build.build_model(options, device, precision)
    if options.num_classes is None:
        options = replace(options, num_classes=model.num_classes)
    signals.check_start(options.resume, device)
    dataset_train, dataset_eval = datasets.build_datasets(options, data_config, opened)
    signals.check_start(options.resume, device)
    patch_size = loaders.patch_size(model, options.naflex_patch_sizes) if options.naflex_loader else None
    loader_train = loaders.build_train_loader(options, dataset_train, data_config, device, precision, patch_size)
    loader_train, resumable = make_resumable(loader_train, device, world_size(), rank())
    loader_train = loaders.with_indices(options, loader_train, resumable)
    options = optimization.with_learning_rate(options, loaders.average_batch_size(options, loader_train))
    loader_eval = None
    if dataset_eval is not None:
        loader_eval = loaders.build_eval_loader(
            options, dataset_eval, data_config, device, precision, options.validation_batch_size or options.batch_size,
            patch_size)
    warn_of_other_classes(options, model, dataset_train)
    metadata = _describe(options, model, data_config, dataset_train)
    if options.torchscript:
        model = build.script_model(options, model)
    task = build_task(options, model, device, precision, dataset_train)
    check_teacher(options, task, dataset_train, data_config)
    training = Training(task, optimization.build_optimizer(options, task), options, device, precision)

    data = {**compatibility.describe_data(dataset_train, dataset_eval), 'views': views_of(loader_train.dataset)}
    resumed = ResumedRun.read(options, data) if options.resume else ResumedRun()
    _resume_weights(training, resumed)
    build.compile_and_distribute(options, task, training.optimizer, device)
    updates_per_epoch = math.ceil(len(loader_train) / options.grad_accum_steps)
    scheduler, num_epochs = optimization.build_scheduler(options, training.optimizer, updates_per_epoch)
    timm_names.check_epochs(options, num_epochs)
    state = RunState(training, resumable, loader_eval, scheduler)
    checkpoints = CheckpointManager(training, state, signals, watchdog)
    position, losses, done_updates = _restore(checkpoints, resumed, updates_per_epoch)
    signals.check_start(options.resume, device)
    return TrainingRun(
        **vars(training), data_config=data_config, patch_size=patch_size, dataset_train=dataset_train,
        loader_train=loader_train, loader_eval=loader_eval, scheduler=scheduler, state=state, checkpoints=checkpoints,
        finite_check=FiniteCheck(options, device, checkpoints.requests), on_broken=BrokenUpdates(training, resumable),
        metadata=metadata, data=data, resumed=resumed, position=position, losses=losses,
        updates_per_epoch=updates_per_epoch, done_updates=done_updates, num_epochs=num_epochs,
        stop_epoch=options.stop_epoch or num_epochs)


def warn_of_surprises(run: TrainingRun) -> None:
    """Log warnings about options without effect, or with an unexpected one, in this run."""
    evaluations = sum(map(run.is_evaluated, range(1, run.stop_epoch + 1)))
    for line in surprises_of_run(run.options, run.updates_per_epoch, run.stop_epoch, evaluations, is_distributed()):
        _logger.warning(line)


def open_output(run: TrainingRun, given: TrainOptions) -> tracking.Trackers:
    """Create the folder of a run, its checkpoint saver and its trackers. Only the first rank calls it.

    Args:
        given: Options of the command line and its files, before the checkpoint and the data changed any.
    """
    options, checkpoints, resumed = run.options, run.checkpoints, run.resumed
    branch = run_folder.branch_to_write(options, given.resume == 'auto', resumed.state)
    output_dir, log = run_folder.open_folder(
        options, run.data_config['input_size'][-1], resumed.state if resumed.exact else {})
    same_folder = run_folder.resumes_in(options, output_dir)
    if same_folder and not resumed.state:
        run.state.history.rows = run_folder.take_over(output_dir, run.position.epoch)
    run_folder.write_args(output_dir, replace(
        given, smoothing=options.smoothing, val_split_seed=options.val_split_seed))
    checkpoints.output_dir, checkpoints.log_position = output_dir, log.position
    checkpoints.saver = checkpoints.create_saver(output_dir, run.metadata, run.decreasing)
    if same_folder:
        checkpoints.saver.load_state_dict_from_checkpoint(options.resume, run.position.epoch)
    shift = resumed.shift(run.position, options.grad_accum_steps, run.done_updates) if same_folder else 0
    checkpoints.constants = {
        'data': run.data, 'line': branch, 'steps': {'updates_per_epoch': run.updates_per_epoch, 'shift': shift}}
    trackers = tracking.Trackers(
        options, output_dir, run.updates_per_epoch, run.done_updates, run.state.history.rows, same_folder, shift)
    if run.position.epoch < run.stop_epoch:
        _logger.info(f'Training epochs {run.position.epoch} to {run.stop_epoch - 1} (counted from 0), '
                     f'{run.updates_per_epoch} updates each, into {output_dir}')
    warn_of_surprises(run)
    return trackers


def _begin(options: TrainOptions, signals: StopSignals, watchdog: Watchdog) -> tuple[TrainOptions, torch.device]:
    """Check what can be checked before anything is built, then create the process group and return the device."""
    tracking.require_trackers(options)
    datasets.check_roots(options, options.train_split, options.val_split)
    auto = options.resume == 'auto'  # until the file is found
    options = run_folder.resolve_resume(options)
    run_folder.check_folder(options, auto, lock=not options.dry_run)
    build.import_device_modules(options)
    timm_names.check_train_names(options)
    device = watchdog.device = build.init_device(options.device, signals)
    if is_distributed() and options.hang_timeout:
        process_group.outlast(options.hang_timeout)
    signals.check_start(options.resume, device)  # also after each slow step; nothing is written before open_folder
    if options.fsdp:
        sharding.check_sharding(options)
    if options.push_to_hub and is_primary():
        try:
            check_destination(destination_of(options))
        except UserError as error:
            raise HubError(f"--push-to-hub '{options.push_to_hub}': {error}") from error
    return keep_defaults(options), device


def destination_of(options: Hub) -> Destination:
    """Return the destination of --push-to-hub."""
    return Destination(options.push_to_hub, options.hub_private, options.hub_revision, options.hub_pr,
                       options.hub_replace_card, options.hub_replace_files, options.license)


def _describe(
        options: TrainOptions,
        model: torch.nn.Module,
        data_config: dict[str, Any],
        dataset: Dataset,
) -> dict[str, Any]:
    """Return the metadata of the checkpoints. The first rank tries --push-to-hub and --report with the untrained model.

    Raises:
        OptionError: One of them would fail with this model at the end of the run.
    """
    metadata = make_metadata(
        model, options.model, data_config, class_names(dataset), ranking_metric(options),
        class_to_idx(dataset) if options.class_map else None, find_base(options, model) if is_primary() else None)
    if not is_primary():
        return metadata
    saved = model_of_metadata(metadata, model, values(options))
    try:
        if options.push_to_hub:
            flag = f"--push-to-hub '{options.push_to_hub}'"
            try_staging(saved, lambda staged: check_update(staged, destination_of(options)))
        elif options.report:
            flag = '--report'
            with kept_random_state(), silenced():
                saved.create_model()
    except ChangedError as error:
        raise OptionError(f"{flag}: {str(error).replace('--replace-', '--hub-replace-')}") from error
    except (HubError, CheckpointError) as error:
        raise OptionError(f'{flag}: {error}: leave the flag out, or choose another --model') from error
    return metadata


def _resume_weights(training: Training, resumed: ResumedRun) -> None:
    """Load weights, optimizer and EMA of --resume. The EMA is created after the weights are loaded."""
    options, task = training.options, training.task
    if options.resume:
        restored: dict[str, Any] = {} if options.no_resume_opt else dict(
            optimizer=training.optimizer, scaler=training.precision.scaler)
        resume(options.resume, task, **restored, verbose=is_primary())
    run_folder.check_same_start(options, resumed.epoch, resumed.state)
    optimization.build_ema(options, task)
    if options.resume and options.model_ema:
        load_task_ema_checkpoint(task, options.resume)


def _restore(
        checkpoints: CheckpointManager,
        resumed: ResumedRun,
        updates_per_epoch: int,
) -> tuple[Position, RunningLosses | None, int]:
    """Restore the state of a run. Call it when everything is built.

    Returns:
        Where training starts, the losses of the epoch so far (None between epochs), and the number of updates before.
    """
    options, state = checkpoints.training.options, checkpoints.state
    if resumed.exact:
        position, losses = state.load_state_dict(resumed.state)
        if checkpoints.damage is not None:
            checkpoints.damage.restore(resumed.state['damaged'])
    else:
        position, losses = Position((resumed.epoch or 0) if options.start_epoch is None else options.start_epoch), None
        if resumed.state:
            resumed.keep_history(state, position)
    done_updates = position.updates(updates_per_epoch, options.grad_accum_steps)
    state.start_schedule(
        position.epoch, done_updates, resumed.state['lr'] if resumed.exact and resumed.same_schedule else None)
    return position, losses, done_updates
