"""How much memory a process may still take: of its machine, of its control groups, and of its share in a job."""
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def memory_limit(amount: str) -> int:
    """Bytes of an amount of memory: '0.1' of what is free, shared by the processes of this machine, or '8G', '500M'.

    Raises:
        ValueError: neither.
    """
    unit = {'M': 2 ** 20, 'G': 2 ** 30}.get(str(amount)[-1:].upper())
    number = float(str(amount)[:-1] if unit else amount)
    if not 0. <= number < float('inf') or (not unit and number > 1):
        raise ValueError(f'memory is a share of what is free in [0, 1], or ends in G or M, got {amount}')
    return int(number * (unit or free_memory() // _processes())) if number else 0


def free_memory() -> int:
    """Bytes that this process and others may still take: of the machine, or of a control group where that is less.

    What only caches files counts as free. 0 where the system does not say.
    """
    free = 0
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    with suppress(OSError):
        free = 1024 * _value(Path('/proc/meminfo'), 'MemAvailable:', free // 1024)
    return max(0, min([free, *_free_in_groups()]))


def _processes() -> int:
    """Those of the job on this machine, by torchrun or by SLURM, which says '8(x2)' for two machines of eight."""
    said = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_STEP_TASKS_PER_NODE') or '1'
    return int(re.findall(r'\d+', said)[0])


def _free_in_groups(mounted: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')) -> Iterator[int]:
    """Bytes that are left in each control group that this process is in and that has a limit, of both versions."""
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
        for folder in (group, *group.parents):  # the group, unless it is out of a container's sight, and those above it
            with suppress(OSError, ValueError):  # 'max' where there is no limit
                left = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
                yield left + _value(root / folder / 'memory.stat', cached, 0)


def _value(path: Path, name: str, otherwise: int) -> int:
    """The number behind a name in a file of lines, as of /proc/meminfo."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return otherwise
