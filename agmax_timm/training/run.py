"""A training run, from its options to the last checkpoint."""
import logging
import os
import shlex
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ..assembly.job_start import begin_job
from ..assembly.process_group import end_process_group
from ..base.distributed import gather_objects, is_primary
from ..base.signals import StopSignals
from ..evaluation.log import finite, print_results
from ..options.data_kinds import split_name
from ..options.parsers import TrainOptions
from ..weights.checkpoint import choose_ema
from . import dry_run
from .create_run import TrainingRun, create_run, open_output, warn_of_surprises
from .epochs import Epochs
from .guards.watchdog import Watchdog
from .output import log, run_folder
from .output.trackers import Trackers

_logger = logging.getLogger('train')


def train(
        options: TrainOptions,
        signals: StopSignals | None = None,
        on_complete: Callable[[str, Watchdog], None] | None = None,
) -> list[dict[str, Any]]:
    """Run a training.

    Args:
        signals: Signals that ask the run to end.
        on_complete: Function that the first rank calls after the last save, with the folder of the run and the
            watchdog, which is still active.

    Returns:
        Number, training metrics and validation metrics of each evaluated epoch.

    Raises:
        UserError: options, data or a checkpoint cannot be used.
        Interrupted: A signal asked the run to end, and it has saved.
        SaveError: The last state could not be written.
    """
    begin_job()
    with Watchdog(options.hang_timeout) as watchdog:
        run = create_run(options, signals or StopSignals(), watchdog)
        if options.dry_run:
            if is_primary():
                warn_of_surprises(run)
            dry_run.print_plan(run)
            return []
        trackers = open_output(run, options) if is_primary() else None
        run.on_broken.folder = gather_objects(run.checkpoints.output_dir)[0]  # which the first rank created
        epochs = Epochs(run, trackers)
        try:
            epochs.train()
        except BaseException:
            # The launcher ends the other ranks by SIGTERM if one failed. `signals` still handles it here.
            if run.checkpoints.saver is not None:
                run.checkpoints.saver.wait()
            raise
        end_process_group()  # the other ranks need not wait for a report or an upload
        if trackers is not None:
            _finish(run, epochs, trackers)
            try:
                if on_complete is not None and epochs.results:
                    on_complete(run.checkpoints.output_dir, watchdog)
            finally:
                _log_end(run)
        return epochs.results


def _finish(run: TrainingRun, epochs: Epochs, trackers: Trackers) -> None:
    """Wait until everything is on disk. Draw the curves, and print the results for programs."""
    saver, output_dir = run.checkpoints.saver, run.checkpoints.output_dir
    assert saver is not None  # as on any first rank
    saver.wait()
    if epochs.stopped:
        _logger.info(f"Stopped after epoch {epochs.comparable[-1]['epoch']} by --early-stop {run.options.early_stop}: "
                     f'{epochs.stopped}.')
    if not epochs.any_left:
        _logger.info(f'Nothing to train: {output_dir} is complete.')
    curves = os.path.join(output_dir, 'curves.png')
    if os.path.exists(run_folder.summary_path(output_dir)) and (epochs.any_left or not os.path.exists(curves)):
        with log.tolerated(curves):
            log.plot_curves(run_folder.summary_path(output_dir), curves)
    trackers.finish()
    best = log.best_last(epochs.comparable, run.metric_name, run.decreasing)
    if epochs.stopped:
        best[-1] = {**best[-1], 'early_stop': epochs.stopped}
    print_results(finite(best), run.options.result_json)
    saver.close()


def _log_end(run: TrainingRun) -> None:
    """Log the best metric, the folder, the time, and the commands that come next."""
    options, saver, state = run.options, run.checkpoints.saver, run.state
    assert saver is not None
    folder = shlex.quote(saver.checkpoint_dir)
    measured = 'of training' if run.loader_eval is None else (
        f'on the split {split_name(vars(options), options.val_split)}')
    weights = ' of the EMA' if run.loader_eval is not None and choose_ema(vars(options)) else ''
    best = 'none, no epoch has a finite one' if saver.best_metric is None else (
        f'{saver.best_metric:.6g} (epoch {saver.best_epoch}): {run.metric_name}{weights} {measured}')
    _logger.info(f'*** Best metric: {best}')
    _logger.info(f'Folder: {folder}')
    speed = f', {state.images_per_second:.0f} images/s in the last epoch' if state.images_per_second else ''
    _logger.info(f'Time: {tqdm.format_interval(state.seconds)}{speed}')
    _logger.info(f'Report: python -m agmax_timm.report {folder}')
    _logger.info(f'Predict: python -m agmax_timm.predict {folder} IMAGES')
