"""--early-stop: a run ends where its evaluations get no better.

What decides is what the run has told so far, and every checkpoint holds that: a run that continues stops where the
uninterrupted one would have.
"""
import math
from typing import Any

import torch.distributed as dist

from ..base.distributed import is_distributed
from ..options.parsers import TrainOptions


class EarlyStop:
    """
    Args:
        options: Options.
        metric: That ranks the checkpoints: it is watched where --early-stop-metric names no other.
    """

    def __init__(self, options: TrainOptions, metric: str):
        self.options = options
        self.metric = options.early_stop_metric or metric

    def reason(self, results: list[dict[str, Any]]) -> str:
        """Why the run ends after these evaluations, in words; '' where it continues.

        Args:
            results: Of each evaluation so far, as for --result. A metric that is not finite is no improvement.
        """
        if not self.options.early_stop:
            return ''
        best, since, waited = math.nan, '', 0
        for result in results:
            value = result.get('validation', result['train']).get(self.metric, math.nan)  # of a run by another metric
            if self._improves(value, best):
                best, since, waited = value, f" than {value:g} of epoch {result['epoch']}", 0
            else:
                waited += 1
        if waited < self.options.early_stop:
            return ''
        delta = f' by more than {self.options.early_stop_min_delta:g}' if self.options.early_stop_min_delta else ''
        return f'no better {self.metric}{since}{delta} in {waited} evaluation{"s" * (waited > 1)}'

    def agreed(self, results: list[dict[str, Any]]) -> str:
        """The first rank's reason, on all ranks. A collective where there are several."""
        reasons = [self.reason(results)]
        if self.options.early_stop and is_distributed():
            dist.broadcast_object_list(reasons, 0)
        return reasons[0]

    def _improves(self, value: float, best: float) -> bool:
        if not math.isfinite(value) or math.isnan(best):
            return math.isfinite(value)
        gain = best - value if self.metric == 'loss' else value - best
        return gain > self.options.early_stop_min_delta
