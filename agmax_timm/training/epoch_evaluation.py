"""The evaluation at the end of an epoch. Ranks agree on a signal or an error, so that all of them leave together."""
import logging
from contextlib import suppress
from functools import partial

from timm.task import evaluation_sample_limit

from ..base.distributed import is_distributed, is_primary, largest
from ..base.errors import UserError
from ..evaluation.evaluate import evaluate
from ..evaluation.log import log_steps, result_line
from ..options.data_kinds import in_sequence
from .batch_norm import distribute_batch_norm
from .create_run import TrainingRun

_logger = logging.getLogger('train')
_CONTINUES, _STOPPED, _FAILED = range(3)  # outcomes on a rank, the worst last
_INTERVAL = 10  # batches from one agreement of the ranks to the next


class EvaluationStopped(Exception):
    """A signal stopped an evaluation."""


class EvaluationFailed(UserError, RuntimeError):
    """Another rank raised an error during an evaluation."""
    exit_status = 1

    def __init__(self):
        super().__init__('the evaluation failed on another rank: see its log')


def evaluate_epoch(run: TrainingRun, epoch: int) -> tuple[dict[str, float], dict[str, float] | None]:
    """Evaluate the model of a run, and its EMA if that is on the device. All ranks must call it.

    Returns:
        Metrics of the model and of its EMA.

    Raises:
        EvaluationStopped: A signal asked any rank to end; raised on all ranks.
        EvaluationFailed: Another rank raised an error.
    """
    raw = _evaluate(run, epoch, ema=False)
    has_ema = run.task.has_ema() and not run.options.model_ema_force_cpu
    return raw, _evaluate(run, epoch, ema=True) if has_ema else None


def _evaluate(run: TrainingRun, epoch: int, ema: bool) -> dict[str, float]:
    options, checkpoints = run.options, run.checkpoints
    name = 'Test (EMA)' if ema else 'Test'
    if ema:
        distribute_batch_norm(options, run.task.get_trainable_module(ema=True))
    evaluator = run.task.create_evaluator(max_samples=evaluation_sample_limit(run.loader_eval))

    def on_batch(batch_index: int) -> None:
        checkpoints.watchdog.beat()
        if is_distributed() and (in_sequence(options) or batch_index % _INTERVAL):
            return  # with data in sequence, ranks may have unequal numbers of batches and agree at the end
        _agree(run, _STOPPED if checkpoints.signals.received is not None else _CONTINUES)

    try:
        metrics = evaluate(
            run.task.get_eval_model(ema=ema), run.loader_eval, options, run.device, run.precision,
            options.log_interval, on_log=log_steps(name) if is_primary() else None, on_batch=on_batch,
            evaluator=evaluator, before_compute=partial(_agree, run, _CONTINUES))
    except (EvaluationStopped, EvaluationFailed):
        raise
    except Exception:
        with suppress(EvaluationFailed):
            _agree(run, _FAILED)
        raise
    _logger.info(result_line(f'{name} {epoch}', metrics))
    return metrics


def _agree(run: TrainingRun, outcome: int) -> None:
    """Exchange the outcomes of all ranks. The worst one counts. All ranks must call it.

    Raises:
        EvaluationStopped, EvaluationFailed: The worst outcome of all ranks.
    """
    if not (run.options.fsdp and outcome == _FAILED):  # with --fsdp others wait in a forward pass
        outcome = largest(outcome, run.device)
    if outcome != _CONTINUES:
        raise EvaluationFailed if outcome == _FAILED else EvaluationStopped
