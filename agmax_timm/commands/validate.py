"""validate.py and agmax-validate: evaluate one model or several, print and write the results."""
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from typing import Any, cast

from ..base import atomic_write
from ..base.command import command
from ..base.errors import as_user_error
from ..base.output_files import write_rows
from ..base.processes import imports_without_gc
from ..options.parse import parse_validate_args
from ..options.parsers import ValidateOptions

_logger = logging.getLogger('validate')
Results = dict[str, Any] | list[dict[str, Any]]


@command()
def main(argv: list[str] | None = None) -> int | None:
    """Run the command. The results are a dict for one model, and a list for several models, best first.

    Exit status 2: invalid options, data or checkpoint of a single model. 1: all of several models failed, an
    evaluation with --retry failed, results could not be written, or a loader worker died. 130: interrupted.
    """
    options = parse_validate_args(argv)
    cast(TextIOWrapper, sys.stdout).reconfigure(errors='backslashreplace')  # file names may contain any bytes
    with imports_without_gc():  # imports take seconds, so --help does without them
        from ..assembly.process_group import ending_process_group
        from ..evaluation import bulk
        from ..evaluation.validation import start, validate_model
        from .check_data import check
    if options.check_data:
        return check(options)
    with ending_process_group():
        device = start(options)
        evaluate_one = partial(validate_model, device=device)
        jobs = bulk.list_jobs(options)
        if jobs is not None:
            return _run_jobs(options, jobs, evaluate_one, device)
        try:
            results = (bulk.validate_with_retry(options, evaluate_one, device) if options.retry
                       else evaluate_one(options))
        except KeyboardInterrupt as error:
            raise type(error)(f'{as_user_error(error)}: the evaluation is not complete, there is no result') from None
        written = _write(options, results)
        _show(results, options.result_json or not written)
        return int(not written or 'error' in results)


def _run_jobs(options: ValidateOptions, jobs: list[Any], evaluate_one: Callable, device: Any) -> int:
    """Evaluate the jobs in turn, and write the results after each. Return the exit status."""
    from ..evaluation import bulk
    _logger.info(f'Evaluating {len(jobs)}: ' + ', '.join(job.checkpoint or job.model for job in jobs))
    results: list[dict[str, Any]] = []
    interruption, written = None, True
    try:
        for row in bulk.run_jobs(options, jobs, evaluate_one, device):
            results = bulk.ranked([*results, row])
            written = _write(options, results)
    except KeyboardInterrupt as error:
        interruption = error
    failed = sum('error' in row for row in results)
    if failed:
        _logger.warning(f'{failed} of {len(results)} failed: see their "error".')
    _show(results, options.result_json or not written)
    if interruption is not None:
        raise type(interruption)(f'{as_user_error(interruption)}: {len(results)} of {len(jobs)} were evaluated')
    return int(not written or failed == len(results))


def _write(options: ValidateOptions, results: Results) -> bool:
    """Write --results-file and --report-dir, if given. Return whether writing succeeded."""
    from ..base.distributed import is_primary
    from ..evaluation.robustness.table import write_comparison
    if not is_primary():
        return True
    try:
        if options.results_file:
            write_results(options.results_file, results, options.results_format)
        if options.report_dir:
            write_comparison(options.report_dir, results if isinstance(results, list) else [results])
    except OSError as error:
        path = error.filename or options.results_file or options.report_dir
        _logger.error(f"cannot write '{path}': {error.strerror or error}: the results are on stdout")
        return False
    return True


def _show(results: Results, as_json: bool) -> None:
    """Print the results: JSON for scripts, or a line per model on a terminal."""
    from ..base.distributed import is_primary
    from ..evaluation.log import print_results
    from ..evaluation.robustness.table import text
    if is_primary():
        print_results(results, as_json, text(results if isinstance(results, list) else [results]))


def write_results(path: str, results: Results, format: str = 'csv') -> None:
    """Write results to a CSV or JSON file. The file is replaced atomically."""
    rows = results if isinstance(results, list) else [results]
    special = os.path.exists(path) and not os.path.isfile(path)  # a device or a pipe
    text: Any = dict(mode='w', newline='', encoding='utf-8', errors='surrogateescape')  # names may contain any bytes
    with open(path, **text) if special else atomic_write.replacing(path, **text) as f:
        if format == 'json':
            json.dump(results, f, indent=4)
            return
        write_rows(f, rows)
