"""A training run, from the command line to the last checkpoint."""
import argparse
import json
import logging
import os
from functools import partial
from typing import Any

from timm import utils

from ..assembly.process_group import end_process_group, ending_process_group
from ..base.command_line import OptionError, print_if_read
from ..base.data_errors import WorkerError
from ..base.safe_load import CheckpointError
from ..base.signals import EXIT_STATUS, Interrupted, StopSignals
from ..data.sources.datasets import DataError
from ..data.workers import names_dead_workers
from ..evaluation.published import compare_on_data
from ..options.parse import parse_train_args
from ..report.report import report_at_end
from ..task import UnsupportedModelError
from ..weights.hub import HubError
from ..weights.publishing import publish_command, publish_source
from . import dry_run
from .checkpoints.saver import SaveError
from .create_run import Built, build_run, destination_of, open_output, warn_of_surprises
from .epochs import Epochs, EvaluationFailed, begin_epoch
from .guards.watchdog import Watchdog
from .losses import NonFiniteError
from .output import log, run_folder
from .output import trackers as tracking

EX_UNAVAILABLE, EX_IOERR = 69, 74  # as sysexits.h has them


class NotPublishedError(RuntimeError):
    """A run is complete and was to be published, but was not; the message says why."""


def main(argv: list[str] | None = None) -> None:
    """train.py with a command line of one's own; see run."""
    run(parse_train_args(argv))


def run(args: argparse.Namespace) -> None:
    """train.py. Its exit status is 0, or

    2 for options or data that cannot be used, 1 for a loss or metric that is not finite or a worker that died, 69 if
    the run is complete but not published, 74 if the last state could not be written, 75 if the run was asked to end,
    has saved and can go on.
    """
    # Signals are handled to the end: torchrun sends SIGTERM to the processes that outlive the first.
    with StopSignals() as signals, ending_process_group():
        _run(args, signals)


def _run(args: argparse.Namespace, signals: StopSignals) -> None:
    try:
        train(args, signals)
    except (OptionError, DataError, CheckpointError, UnsupportedModelError, HubError) as error:
        log.exit_with_error(2, error)
    except (NonFiniteError, EvaluationFailed) as error:
        log.exit_with_error(1, error)
    except Interrupted as error:
        log.exit_with_error(EXIT_STATUS, error)
    except NotPublishedError as error:
        log.exit_with_error(EX_UNAVAILABLE, error)
    except SaveError as error:
        log.exit_with_error(EX_IOERR, error)
    except WorkerError as error:
        log.exit_with_error(1, WorkerError(f'{error}; --resume auto goes on'))


@names_dead_workers
def train(args: argparse.Namespace, signals: StopSignals | None = None) -> list[dict[str, Any]]:
    """Train as the options say.

    Args:
        signals: Those that ask the run to end; none do if None.

    Returns:
        For each epoch that was evaluated, its number and its metrics in training and validation.

    Raises:
        Interrupted: the run was asked to end, and has saved.
        NotPublishedError: the run is complete, but --push-to-hub failed.
        SaveError: the last state could not be written.
        WorkerError: a loader worker died.
    """
    with Watchdog(args) as watchdog:
        return _train(args, signals or StopSignals(), watchdog)


def _train(args: argparse.Namespace, signals: StopSignals, watchdog: Watchdog) -> list[dict[str, Any]]:
    options = dict(vars(args))  # as given, before anything is resolved
    log.begin()
    built = build_run(args, signals, watchdog)
    if args.dry_run:
        if utils.is_primary(args):
            warn_of_surprises(built)
        begin_epoch(args, built.loader_train, built.position.epoch)
        dry_run.tell_plan(built)
        return []
    trackers = open_output(built, options) if utils.is_primary(args) else None
    epochs = Epochs(built, trackers, run_folder.share_path(args, built.keeper.output_dir))
    epochs.run()
    end_process_group()  # the other ranks need not wait for a report or an upload
    if utils.is_primary(args):
        finish(built, epochs, trackers)
        failure = ''
        if args.push_to_hub and epochs.results:
            watchdog.end()
            failure = publish_run(args, built.keeper.output_dir)
        if args.report and epochs.results:
            report_at_end(built.keeper.output_dir, args.device, watchdog.beat)
        if failure:
            raise NotPublishedError(failure)
    return epochs.results


def finish(built: Built, epochs: Epochs, trackers: tracking.Trackers) -> None:
    """Wait until all is on disk, and say what a run says at its end."""
    logger = logging.getLogger('train')
    saver, output_dir, results = built.keeper.saver, built.keeper.output_dir, epochs.results
    saver.wait()
    if epochs.stopped:
        logger.info(f"Stopped after epoch {results[-1]['epoch']} by --early-stop {built.args.early_stop}: "
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
    best = log.best_last(results, built.metric_name, built.decreasing)
    if epochs.stopped:
        best[-1] = {**best[-1], 'early_stop': epochs.stopped}
    print_if_read(f'--result\n{json.dumps(log.finite(best), indent=4)}')
    saver.close()


def publish_run(args: argparse.Namespace, output_dir: str) -> str:
    """Publish the best weights.

    Returns:
        '', or the reason why they are not published. Raises nothing: the report of the run is still to be written.
    """
    logger = logging.getLogger('train')
    what = (output_dir, destination_of(args), None, args.hub_dataset)
    try:
        logger.info(f'Published: {publish_source(*what, partial(compare_on_data, in_run=True))}')
        return ''
    except (HubError, CheckpointError) as error:
        return f'training is complete, but not published: {error}'
    except Exception as error:
        logger.exception('Not published')
        return (f'training is complete, but not published: {type(error).__name__}; to go on: '
                + publish_command(*what))
