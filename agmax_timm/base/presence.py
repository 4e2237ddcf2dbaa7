"""Which processes of a job still run: each of them tells so now and then, in the store that they met at."""
import os
import time
from datetime import timedelta

import torch.distributed as dist

_LEFT = 'left'
_PERIODS = 3  # without a word, until a process counts as silent


class Presence:
    """One process's heartbeat. Runs in the watchdog thread; does nothing without a store.

    Args:
        rank: Number of this process.
        world_size: Number of processes.
        period: Seconds between two calls of tell().
    """

    def __init__(self, rank: int, world_size: int, period: float):
        self.rank = rank
        self.world_size = world_size
        self.period = period
        self._store: dist.TCPStore | None = None  # a connection of its own: the job's may be in use for long
        self._count = 0
        self._works = True

    def tell(self, word: str = '') -> None:
        """Tell that this process runs."""
        if not self._works:
            return
        self._count += 1
        try:
            if self._store is None:
                self._store = dist.TCPStore(
                    os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                    wait_for_workers=False, timeout=timedelta(seconds=max(1., self.period)))
            self._store.set(_key(self.rank), word or str(self._count))
        except (RuntimeError, KeyError, ValueError):
            self._works = False

    def leave(self) -> None:
        """Tell that this process ends, and is not to be taken for one that was stopped."""
        self.tell(_LEFT)

    def silent(self) -> list[int]:
        """The ranks that are not heard of for some periods, which it takes; none where there is no store."""
        before = self._read()
        for _ in range(_PERIODS):
            self.tell()
            time.sleep(self.period)
        after = self._read()
        return [rank for rank, word in enumerate(after) if word == before[rank] and word != _LEFT.encode()]

    def absent(self) -> list[int] | None:
        """The ranks that have sent no heartbeat yet; None without a store."""
        words = self._read()
        return [rank for rank, word in enumerate(words) if not word] if words else None

    def _read(self) -> list[bytes]:
        store = self._store
        if store is None or not self._works:
            return []
        try:
            keys = map(_key, range(self.world_size))
            return [store.get(key) if store.check([key]) else b'' for key in keys]  # else get would wait
        except RuntimeError:  # the store is gone
            self._works = False
            return []


def _key(rank: int) -> str:
    return f'agmax_timm/presence/{rank}'
