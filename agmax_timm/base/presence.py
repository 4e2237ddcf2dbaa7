"""Heartbeats of the processes of a job, in the store of their process group."""
import os
import time
from datetime import timedelta

import torch.distributed as dist

_LEFT = 'left'
_PERIODS = 3  # periods without a heartbeat after which a process counts as silent


class Presence:
    """Heartbeat of one process. Runs in the watchdog thread; does nothing without a store.

    Args:
        period: Seconds between two heartbeats.
    """

    def __init__(self, rank: int, world_size: int, period: float):
        self.rank = rank
        self.world_size = world_size
        self.period = period
        self._store: dist.TCPStore | None = None  # a separate connection, because a collective can block the job's
        self._count = 0
        self._works = True

    def beat(self, word: str = '') -> None:
        """Send a heartbeat."""
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
        """Report the regular end of this process, so that it does not count as silent."""
        self.beat(_LEFT)

    def silent(self) -> list[int]:
        """Wait for some periods, and return the ranks that sent no heartbeat. Empty without a store."""
        before = self._read()
        for _ in range(_PERIODS):
            self.beat()
            time.sleep(self.period)
        after = self._read()
        return [rank for rank, word in enumerate(after) if word == before[rank] and word != _LEFT.encode()]

    def absent(self) -> list[int] | None:
        """Return the ranks that have sent no heartbeat yet. None without a store."""
        words = self._read()
        return [rank for rank, word in enumerate(words) if not word] if words else None

    def _read(self) -> list[bytes]:
        store = self._store
        if store is None or not self._works:
            return []
        try:
            keys = map(_key, range(self.world_size))
            return [store.get(key) if store.check([key]) else b'' for key in keys]  # get waits for a missing key
        except RuntimeError:  # the process of the store has ended
            self._works = False
            return []


def _key(rank: int) -> str:
    return f'agmax_timm/presence/{rank}'
