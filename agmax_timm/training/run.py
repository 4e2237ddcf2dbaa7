"""A training run, from its options to the last checkpoint."""
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from ..assembly.console import begin_log
from ..assembly.process_group import end_process_group
from ..base.distributed import is_primary
from ..base.pipes import print_if_read
from ..base.signals import StopSignals
from ..evaluation.log import finite
from ..options.parsers import TrainOptions
from . import dry_run
from .create_run import TrainingRun, create_run, open_output, warn_of_surprises
from .epochs import Epochs, begin_epoch
from .guards.watchdog import Watchdog
from .output import log, run_folder
from .output import trackers as tracking


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
    with Watchdog(options.hang_timeout) as watchdog:
        return _train(options, signals or StopSignals(), watchdog, on_complete)


def _train(
        options: TrainOptions,
        signals: StopSignals,
        watchdog: Watchdog,
        on_complete: Callable[[str, Watchdog], None] | None,
) -> list[dict[str, Any]]:
    begin_log()
    training_run = create_run(options, signals, watchdog)
    if options.dry_run:
        if is_primary():
            warn_of_surprises(training_run)
        begin_epoch(options, training_run.loader_train, training_run.position.epoch)
        dry_run.print_plan(training_run)
        return []
    primary = is_primary()
    trackers = open_output(training_run, options) if primary else None
    epochs = Epochs(training_run, trackers, run_folder.share_path(options, training_run.checkpoints.output_dir))
    epochs.train()
    end_process_group()  # the other ranks need not wait for a report or an upload
    if primary:
        finish(training_run, epochs, trackers)
        if on_complete is not None and epochs.results:
            on_complete(training_run.checkpoints.output_dir or '', watchdog)
    return epochs.results


def finish(training_run: TrainingRun, epochs: Epochs, trackers: tracking.Trackers | None) -> None:
    """Wait until everything is on disk, and log the summary of the run."""
    logger = logging.getLogger('train')
    saver, output_dir, results = training_run.checkpoints.saver, training_run.checkpoints.output_dir, epochs.results
    assert saver is not None and output_dir is not None and trackers is not None  # as on any first rank
    saver.wait()
    if epochs.stopped:
        logger.info(f"Stopped after epoch {results[-1]['epoch']} by --early-stop {training_run.options.early_stop}: "
                    f'{epochs.stopped}.')
    if not epochs.trained:
        logger.info(f'Nothing to train: {output_dir} is complete.')
    if saver.best_metric is not None:
        logger.info(f'*** Best metric: {saver.best_metric} (epoch {saver.best_epoch})')
    curves = os.path.join(output_dir, 'curves.png')
    if os.path.exists(run_folder.summary_path(output_dir)) and (epochs.trained or not os.path.exists(curves)):
        with log.tolerated(curves):
            log.plot_curves(run_folder.summary_path(output_dir), curves)
    trackers.finish()
    best = log.best_last(results, training_run.metric_name, training_run.decreasing)
    if epochs.stopped:
        best[-1] = {**best[-1], 'early_stop': epochs.stopped}
    print_if_read(f'--result\n{json.dumps(finite(best), indent=4)}')
    saver.close()
