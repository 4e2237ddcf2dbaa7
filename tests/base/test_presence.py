"""Ranks that do not answer are named, and no others."""
from argparse import Namespace

import pytest
import torch.distributed as dist

from agmax_timm.base import presence
from agmax_timm.base.presence import Presence

PERIOD = 0.1


@pytest.fixture
def ranks(monkeypatch):
    """The presence of four ranks, which share a store."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(store.port))
    yield [Presence(rank, 4, PERIOD) for rank in range(4)]
    del store


def test_ranks_that_run_or_have_left_are_not_silent(ranks, monkeypatch):
    asks, runs, left, stopped = ranks
    periods = []

    def sleep(seconds):
        periods.append(seconds)
        if len(periods) == 2:
            runs.beat()

    for rank in ranks:
        rank.beat()
    left.leave()
    monkeypatch.setattr(presence, 'time', Namespace(sleep=sleep))
    assert asks.silent() == [3] and periods == [PERIOD] * 3


def test_without_a_store_no_rank_is_named(monkeypatch):
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    monkeypatch.setattr(dist, 'TCPStore', lambda *_, **__: pytest.fail('waits for a store'))
    alone = Presence(0, 2, PERIOD)
    alone.beat()
    assert alone.silent() == []
