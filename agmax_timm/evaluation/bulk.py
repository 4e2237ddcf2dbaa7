"""Many models or checkpoints in one go: which ones, one after the other, and what becomes of those that fail."""
import gc
import glob
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from timm.models import is_model, list_models
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key

from ..base.distributed import is_distributed
from ..base.errors import OptionError, as_user_error
from ..base.text import one_line
from ..base.text_file import read_text
from ..options.model import ValidationModel
from ..options.parsers import ValidateOptions
from ..weights.checkpoint import saved_options
from .inference import adopt_options

# Pretrained weights whose outputs are not the thousand classes of ImageNet: left out of --model all, as timm does.
_OTHER_CLASSES = ('*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer')
_WEIGHTS = ('*.pth.tar', '*.pth', '*.safetensors')

_logger = logging.getLogger('validate')


@dataclass
class Job:
    """One evaluation of several: a model, a checkpoint of it, and other names of the same file."""
    model: str
    checkpoint: str = ''
    aliases: str = ''


class RankError(RuntimeError):
    """Another rank has failed, so this one has no result either; `again`: a smaller batch may help it."""

    def __init__(self, again: bool):
        super().__init__('another rank failed')
        self.again = again


def list_jobs(options: ValidationModel) -> list[Job] | None:
    """The evaluations that the options ask for; None for one model.

    --checkpoint FOLDER: every checkpoint in it, once. --model all, a pattern or a text file: every model of that name
    that has pretrained weights, or on a line.

    Raises:
        OptionError: a folder without checkpoints, a file without names, several models for one checkpoint.
    """
    if os.path.isdir(options.checkpoint):
        return [Job(options.model, *names) for names in _checkpoints(options.checkpoint)]
    if ':' in options.model or is_model(options.model):
        return None
    names = list_models(pretrained=True, exclude_filters=_OTHER_CLASSES) if options.model == 'all' else list_models(
        options.model, pretrained=True)
    if not names and os.path.isfile(options.model):
        names = _names_in(options.model)
    if names and options.checkpoint:
        raise OptionError(f'--checkpoint {options.checkpoint} is of one model, --model {options.model} names '
                          f'{len(names)}: drop one of them')
    return [Job(name) for name in names] or None


def _checkpoints(folder: str) -> Iterator[list[str]]:
    """Each file of weights in natural order, and behind it the other names that are hard links of it."""
    paths = [path for pattern in _WEIGHTS for path in glob.glob(os.path.join(glob.escape(folder), pattern))
             if not os.path.basename(path).startswith('broken-')]  # an update that was left out, no weights
    if not paths:
        raise OptionError(f"--checkpoint {folder}: no {', '.join(_WEIGHTS)} in this folder")
    files: dict[tuple[int, int], list[str]] = {}
    for path in sorted(paths, key=natural_key):
        stat = os.stat(path)
        files.setdefault((stat.st_dev, stat.st_ino), []).append(path)
    return ([first, ' '.join(map(os.path.basename, others))] for first, *others in files.values())


def _names_in(path: str) -> list[str]:
    try:
        names = [line.strip() for line in read_text(path).split('\n') if line.strip()]
    except (OSError, ValueError) as error:
        raise OptionError(f'--model {path}: {error}') from error
    if not names:
        raise OptionError(f'--model {path}: no name of a model in this file')
    return names


def run_jobs(
        options: ValidateOptions,
        jobs: Iterable[Job],
        validate: Callable,
        device: torch.device,
) -> Iterator[dict[str, Any]]:
    """The results of each job, made from the options as they were given: nothing passes from one to the next.

    Args:
        validate: Function of options that returns results.
    """
    for job in jobs:
        _free_memory()  # of the model before
        results = validate_with_retry(
            replace(options, model=job.model, checkpoint=job.checkpoint), validate, device)
        if job.checkpoint:
            results.update(checkpoint=job.checkpoint, aliases=job.aliases)
        yield results


def validate_with_retry(options: ValidateOptions, validate: Callable, device: torch.device) -> dict[str, Any]:
    """Results, with a smaller batch as often as timm.utils.check_batch_size_retry sees a chance in it.

    Returns:
        What `validate` returns, or 'model' and 'error' where it failed. With several ranks, all of them fail together.
    """
    while True:
        try:
            if options.checkpoint:
                options = adopt_options(options, saved_options(options.checkpoint))
            return validate(options)
        except Exception as error:  # whatever a model, its weights or its data have wrong is to be in its results
            message, again = one_line(as_user_error(error) or error), _try_again(error, device)
        batch_size = decay_batch_step(options.batch_size) if again else 0
        if not batch_size:
            _logger.error(f'{options.model} failed: {message}')
            return OrderedDict(model=options.model, error=message)
        _logger.warning(f'{options.model}: {message}. Once more with --batch-size {batch_size}.')
        # As if it were given: a checkpoint's own is not to replace it.
        options = replace(options, batch_size=batch_size, given=options.given | {'batch_size'})
        _free_memory()


def _try_again(error: Exception, device: torch.device) -> bool:
    """Whether a smaller batch may help. All ranks answer the same."""
    if isinstance(error, RankError):
        return error.again
    again = isinstance(error, RuntimeError) and check_batch_size_retry(str(error))
    return _worst(device, 1 if again else 2) == 1


class TogetherEvaluator:
    """An evaluator of several ranks whose compute raises RankError where another rank has failed on its way to it."""

    def __init__(self, evaluator: Any, device: torch.device):
        self.update, self.summary = evaluator.update, evaluator.summary
        self.evaluator, self.device = evaluator, device

    def compute(self, distributed: bool = True) -> dict[str, float]:
        worst = _worst(self.device, 0)
        if worst:
            raise RankError(again=worst == 1)
        return self.evaluator.compute(distributed)


def _worst(device: torch.device, outcome: int) -> int:
    """The largest outcome of all ranks: 0 for success, 1 for what may be tried again, 2 for the rest."""
    if not is_distributed():
        return outcome
    value = torch.tensor(outcome, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ranked(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first, by top-1 or, of several labels an image, by mAP; behind them, in their order, those that failed."""
    return sorted(results, key=lambda row: -row.get('top1', row.get('map', -1.)))
