"""train.py and agmax-train: train, publish and write the report."""
import logging
from functools import partial
from typing import Any

from ..base.command import command
from ..base.errors import UserError, WorkerError, as_user_error
from ..base.processes import imports_without_gc
from ..options.parse import parse_train_args
from ..options.parsers import TrainOptions
from ..options.run import Hub

_logger = logging.getLogger('train')


class NotPublishedError(UserError, RuntimeError):
    """A complete run could not be published."""
    exit_status = 69  # EX_UNAVAILABLE of sysexits.h


@command()
def main(argv: list[str] | None = None) -> int | None:
    """Run the command. docs/reliability.md lists the exit statuses."""
    options = parse_train_args(argv)
    with imports_without_gc():  # imports take seconds, so --help does without them
        from ..assembly.process_group import ending_process_group
        from ..base.signals import StopSignals
        from ..training.run import train
        from .check_data import check
    if options.check_data:
        return check(options)
    # Signals are handled to the end: torchrun sends SIGTERM to the other processes when the first one ends.
    with StopSignals() as signals, ending_process_group():
        try:
            train(options, signals, partial(_publish_and_report, options))
        except Exception as error:
            known = as_user_error(error)
            if isinstance(known, WorkerError):
                raise WorkerError(f'{known}; --resume auto continues') from error
            raise
    return None


def _publish_and_report(options: TrainOptions, output_dir: str, watchdog: Any) -> None:
    """Publish a complete run with --push-to-hub, and write its report with --report.

    Raises:
        NotPublishedError: Publishing failed. The report is still written.
    """
    from ..report.report import report_at_end
    failure = ''
    if options.push_to_hub:
        watchdog.end()
        failure = publish_run(options, output_dir)
    if options.report:
        report_at_end(output_dir, str(watchdog.device), watchdog.beat)
    if failure:
        raise NotPublishedError(f'training is complete, but not published: {failure}')


def publish_run(options: Hub, output_dir: str) -> str:
    """Publish the best weights. Return the reason of a failure, or ''."""
    from ..evaluation.compare_staged import compare_on_data
    from ..training.create_run import destination_of
    from ..weights.publishing import publish_command, publish_source
    what = (output_dir, destination_of(options), None, options.hub_dataset)
    try:
        _logger.info(f'Published: {publish_source(*what, partial(compare_on_data, in_run=True))}')
        return ''
    except UserError as error:
        return str(error)
    except Exception as error:
        _logger.exception('Not published')
        return f'{type(error).__name__}; to continue: {publish_command(*what)}'
