"""Log lines of an evaluation in timm's format, and results as JSON."""
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from ..assembly.console import steps_logger
from ..base.pipes import print_if_read


def log_steps(name: str) -> Callable[[int, int, dict[str, float]], None]:
    """Return a function for `on_log` of evaluate that logs the progress."""
    return lambda batch_index, num_batches, metrics: steps_logger.info(
        f"{name}: [{batch_index:>4d}/{num_batches - 1}]  Loss: {metrics['loss']:>6.3f}{_percentages(metrics)}")


def result_line(name: str, metrics: dict[str, float]) -> str:
    return f"{name}: Loss: {metrics['loss']:.4f}{_percentages(metrics)}"


def _percentages(metrics: dict[str, float]) -> str:
    titles = {'top1': 'Acc@1', 'top5': 'Acc@5', 'map': 'mAP'}
    return ''.join(
        f'  {titles.get(name, name)}: {value:>7.3f}' for name, value in metrics.items() if name != 'loss')


def print_results(results: Any, as_json: bool, text: str = '') -> None:
    """Print results as JSON after timm's marker line, or `text` on a terminal unless `as_json` is set."""
    if as_json or not sys.stdout.isatty():
        print_if_read(f'--result\n{json.dumps(results, indent=4)}')
    elif text:
        print_if_read(text)


def finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
