"""--early-stop: a run ends when its evaluations stop improving.

The decision depends on the results so far, which every checkpoint stores. So a resumed run stops after the same epoch
as an uninterrupted one.
"""
import math
from typing import Any

import torch.distributed as dist

from ..base.distributed import is_distributed
from ..options.parsers import TrainOptions


class EarlyStop:
    """Decides whether a run stops early.

    Args:
        options: Options of the run.
        metric: Metric that ranks the checkpoints, the default of --early-stop-metric.
    """

    def __init__(self, options: TrainOptions, metric: str):
        self.options = options
        self.metric = options.early_stop_metric or metric

    def reason(self, results: list[dict[str, Any]]) -> str:
        """Return the reason why the run ends after these evaluations, '' if it continues.

        Args:
            results: Results of the evaluations so far, as for --result. NaN and infinity are no improvement.
        """
        if not self.options.early_stop:
            return ''
        best, since, waited = math.nan, '', 0
        for result in results:
            value = result.get('validation', result['train']).get(self.metric, math.nan)
            if self._improves(value, best):
                best, since, waited = value, f" than {value:g} of epoch {result['epoch']}", 0
            else:
                waited += 1
        if waited < self.options.early_stop:
            return ''
        delta = f' by more than {self.options.early_stop_min_delta:g}' if self.options.early_stop_min_delta else ''
        return f'no better {self.metric}{since}{delta} in {waited} evaluation{"s" if waited > 1 else ""}'

    def agreed(self, results: list[dict[str, Any]]) -> str:
        """Return the reason of the first rank, on all ranks. All ranks must call it."""
        reasons = [self.reason(results)]
        if self.options.early_stop and is_distributed():
            dist.broadcast_object_list(reasons, 0)
        return reasons[0]

    def _improves(self, value: float, best: float) -> bool:
        if not math.isfinite(value) or math.isnan(best):
            return math.isfinite(value)
        gain = best - value if self.metric == 'loss' else value - best
        return gain > self.options.early_stop_min_delta
