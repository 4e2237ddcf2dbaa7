"""What processes of this package need to know: where it is, and how many cores there are for them."""
import os
from pathlib import Path
from typing import Dict

_HOME = str(Path(__file__).parents[1])


def environment() -> Dict[str, str]:
    """This process's environment, in which Python finds this package wherever it is."""
    paths = [_HOME, *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
