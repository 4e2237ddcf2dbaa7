"""--early-stop: a run ends when its evaluations stop improving.

The decision depends on the results so far, which every checkpoint stores. So a resumed run stops after the same epoch
as an uninterrupted one.
"""
import math
from typing import Any

from ..base.distributed import gather_objects
from ..options.run import Run


def stop_reason(options: Run, metric: str, results: list[dict[str, Any]]) -> str:
    """Return the reason why the run ends after these evaluations, '' if it continues. All ranks must call it.

    Args:
        metric: Metric that ranks the checkpoints, the default of --early-stop-metric.
        results: Results of the evaluations so far, as for --result. NaN and infinity do not improve.
    """
    if not options.early_stop:
        return ''
    metric, least = options.early_stop_metric or metric, options.early_stop_min_delta
    best, since, waited = math.nan, '', 0
    for result in results:
        value = result.get('validation', result['train'])[metric]
        gain = best - value if metric == 'loss' else value - best
        if math.isfinite(value) and (math.isnan(best) or gain > least):
            best, since, waited = value, f" than {value:g} of epoch {result['epoch']}", 0
        else:
            waited += 1
    delta = f' by more than {least:g}' if least else ''
    reason = f'no better {metric}{since}{delta} in {waited} evaluation{"s" if waited > 1 else ""}'
    # The last bits of a metric may differ between ranks.
    return gather_objects(reason if waited >= options.early_stop else '')[0]
