"""Evaluation of several models or checkpoints, one after the other. A failed one does not stop the others."""
import gc
import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import is_model, is_model_pretrained, list_models
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key

from ..base.distributed import largest
from ..base.errors import OptionError, as_user_error
from ..base.text import one_line
from ..base.text_file import read_text
from ..options.model import ValidationModel
from ..options.parsers import ValidateOptions
from ..weights.checkpoint import find_file
from .evaluated_model import options_of_run, read_options

# Pretrained weights for other classes than the 1000 of ImageNet. --model all excludes them, as in timm.
_OTHER_CLASSES = ('*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer')
_WEIGHTS = ('*.pth.tar', '*.pth', '*.safetensors')

_logger = logging.getLogger('validate')


@dataclass
class Job:
    """One of several evaluations: a model, its checkpoint, and other names of the checkpoint file."""
    model: str
    checkpoint: str = ''
    aliases: str = ''


class RankError(RuntimeError):
    """Another rank failed. `can_retry`: whether a smaller batch may help."""

    def __init__(self, can_retry: bool):
        super().__init__('another rank failed')
        self.can_retry = can_retry


def list_jobs(options: ValidationModel) -> list[Job] | None:
    """Return the evaluations that the options ask for, or None for a single model.

    --checkpoint FOLDER evaluates every checkpoint of the folder once; a folder of runs, or a pattern of runs, the best
    checkpoint of each; a pattern of files, each of them. --model evaluates several models if it is `all`
    or a pattern of names with pretrained weights, or a text file with one name per line.

    Raises:
        OptionError: The folder or pattern has no checkpoints, the file has no names, or one checkpoint is given for
            several models.
    """
    if names_several(options.checkpoint):
        return [Job(options.model, *names) for names in _checkpoints(options.checkpoint)]
    tagged = '.' in options.model  # timm's is_model ignores the tag, which may be a pattern or the ending of a file
    if ':' in options.model or is_model(options.model) and (not tagged or is_model_pretrained(options.model)):
        return None
    names = list_models(pretrained=True, exclude_filters=_OTHER_CLASSES) if options.model == 'all' else list_models(
        options.model, pretrained=True)
    if not names and os.path.isfile(options.model):
        names = _names_in(options.model)
    if names and options.checkpoint:
        raise OptionError(f"--checkpoint '{options.checkpoint}' contains one model, --model '{options.model}' names "
                          f'{len(names)}: drop one of them')
    return [Job(name) for name in names] or None


def names_several(checkpoint: str) -> bool:
    """Whether --checkpoint is a folder or a pattern. The name of an existing file is not a pattern."""
    return os.path.isdir(checkpoint) or glob.has_magic(checkpoint) and not os.path.exists(checkpoint)


def _checkpoints(place: str) -> Iterator[list[str]]:
    """Yield the path of each checkpoint file in natural order, and the names of its other hard links."""
    if os.path.isdir(place):
        paths = _weights_in(place) or _best_of_runs(glob.glob(os.path.join(glob.escape(place), '*')))
    else:
        matches = glob.glob(place, recursive=True)
        paths = list(filter(os.path.isfile, matches)) + _best_of_runs(matches)
    if not paths:
        kind = 'in this folder or its runs' if os.path.isdir(place) else 'of this pattern'
        raise OptionError(f"--checkpoint '{place}': no {', '.join(_WEIGHTS)} {kind}")
    files: dict[tuple[int, int], list[str]] = {}
    for path in sorted(dict.fromkeys(paths), key=natural_key):
        stat = os.stat(path)
        files.setdefault((stat.st_dev, stat.st_ino), []).append(path)
    return ([first, ' '.join(map(os.path.basename, others))] for first, *others in files.values())


def _weights_in(folder: str) -> list[str]:
    return [path for pattern in _WEIGHTS for path in glob.glob(os.path.join(glob.escape(folder), pattern))
            if not os.path.basename(path).startswith('broken-')]  # data of a skipped update, not weights


def _best_of_runs(paths: Iterable[str]) -> list[str]:
    """Return the best checkpoint of each folder that has one, or its exported weights."""
    return list(filter(os.path.isfile, map(find_file, filter(os.path.isdir, paths))))


def _names_in(path: str) -> list[str]:
    try:
        names = [line.strip() for line in read_text(path).split('\n') if line.strip()]
    except (OSError, ValueError) as error:
        raise OptionError(f"--model '{path}': {error}") from error
    if not names:
        raise OptionError(f"--model '{path}': no name of a model in this file")
    return names


def run_jobs(
        options: ValidateOptions,
        jobs: Iterable[Job],
        validate: Callable,
        device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Yield the results of each job. Each job starts from `options`, so no job affects the next one.

    Args:
        validate: Function from options to results.
    """
    for job in jobs:
        release_memory()  # the previous model may still use it
        results = validate_with_retry(
            replace(options, model=job.model, checkpoint=job.checkpoint), validate, device)
        if job.checkpoint:
            results.update(checkpoint=job.checkpoint, aliases=job.aliases)
        yield results


def validate_with_retry(options: ValidateOptions, validate: Callable, device: torch.device) -> dict[str, Any]:
    """Return the results of an evaluation. Retry with smaller batches after errors that timm regards as retryable.

    Returns:
        The results of `validate`, or 'model' and 'error' if it failed. 'model' is empty if it is not given, and the
        checkpoint that names it cannot be read. If one rank fails, all ranks fail.
    """
    while True:
        adopted, model = options, options.model
        try:
            if options.checkpoint:
                model = options.model if 'model' in options.given else ''  # unknown until the checkpoint is read
                adopted = replace(options, **options_of_run(options, read_options(options)))
                model = adopted.model
            return validate(options)
        except Exception as error:  # models, weights and data raise many types; the results contain the message
            message, can_retry = one_line(as_user_error(error) or error), _can_retry(error, device)
        batch_size = decay_batch_step(adopted.batch_size) if can_retry else 0
        if not batch_size:
            _logger.error(f"'{model or options.checkpoint}' failed: {message}")
            return dict(model=model, error=message)
        _logger.warning(f"'{model or options.checkpoint}': {message}. Retrying with --batch-size {batch_size}.")
        # Marked as given, so that the batch size of the checkpoint does not replace it.
        options = replace(adopted, batch_size=batch_size, given=options.given | {'batch_size'})
        release_memory()


def _can_retry(error: Exception, device: torch.device) -> bool:
    """Return whether a smaller batch may help. The result is the same on all ranks."""
    if isinstance(error, RankError):
        return error.can_retry
    can_retry = isinstance(error, RuntimeError) and check_batch_size_retry(str(error))
    return largest(1 if can_retry else 2, device) == 1


def check_ranks(device: torch.device) -> None:
    """Raise RankError if another rank failed. All ranks must call it, or report their error to _can_retry."""
    worst = largest(0, device)  # 1 is a retryable error, 2 any other error
    if worst:
        raise RankError(can_retry=worst == 1)


def release_memory() -> None:
    """Return unused memory of the GPU to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ranked(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results sorted by top-1, or by mAP for multi-label models, best first. Failed evaluations are last."""
    return sorted(results, key=lambda row: -row.get('top1', row.get('map', -1.)))
