"""Free memory: of the machine, of the control groups of this process, and its share in a job."""
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def memory_limit(amount: str) -> int:
    """Convert an amount of memory to bytes.

    Args:
        amount: Share in [0, 1] of the free memory, or an amount such as '8G' or '500M'. The processes of the job on
            this machine divide a share among them.

    Raises:
        ValueError: The amount has another form.
    """
    unit = {'M': 2 ** 20, 'G': 2 ** 30}.get(str(amount)[-1:].upper())
    number = float(str(amount)[:-1] if unit else amount)
    if not 0. <= number < float('inf') or (not unit and number > 1):
        raise ValueError(f"memory must be a share in [0, 1] of the free memory, or end in G or M, got '{amount}'")
    return int(number * (unit or free_memory() // _processes())) if number else 0


def free_memory() -> int:
    """Return the free memory of the machine in bytes, or of a control group of this process if that is less.

    Memory of the file cache counts as free. 0 if the system does not report it.
    """
    free = 0
    with suppress(OSError):
        free = 1024 * _value(Path('/proc/meminfo'), 'MemAvailable:')
    return max(0, min([free, *_free_in_groups()]))


def _processes() -> int:
    """Return the number of processes of the job on this machine, from torchrun or SLURM ('8(x2)' on two machines)."""
    value = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_STEP_TASKS_PER_NODE') or '1'
    return int(re.findall(r'\d+', value)[0])


def _free_in_groups(mounted: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')) -> Iterator[int]:
    """Iterate over the free bytes of each control group (version 1 or 2) of this process that has a limit."""
    lines = []
    with suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if controllers == '':  # version 2
            root, limit, used, cached = mounted, 'memory.max', 'memory.current', 'inactive_file'
        elif 'memory' in controllers.split(','):
            root, limit, used, cached = (
                mounted / 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
        else:
            continue
        group = Path(path.lstrip('/'))
        for folder in (group, *group.parents):  # in a container, only some of them are visible
            with suppress(OSError, ValueError):  # the limit is 'max' if there is none
                left = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
                yield left + _value(root / folder / 'memory.stat', cached)


def _value(path: Path, name: str) -> int:
    """Return the number after a name in a file such as /proc/meminfo, 0 if it is not there."""
    found = re.search(rf'^{name}\s+(\d+)', path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
