"""Messages of the watchdog about a rank that waits."""
import threading
import time
from argparse import Namespace

import torch

from agmax_timm.training.guards import watchdog as watchdog_module
from agmax_timm.training.guards.watchdog import Watchdog
from agmax_timm.training.updates.finite_check import _Reading


def place_of(wait, device):
    """Return what the watchdog reports while the main thread is in wait()."""
    watchdog = Watchdog(1)
    watchdog.device = torch.device(device)
    watchdog.presence = Namespace(silent=lambda: [1])
    said = []
    thread = threading.Thread(target=lambda: (time.sleep(0.2), said.append(watchdog._place())))
    thread.start()
    while not said:
        wait()
    thread.join()
    return said[0]


class Event:
    """An event of a GPU stream, behind a collective that other ranks do not join."""

    def synchronize(self):
        time.sleep(0.5)


def wait_for_flags():
    reading = _Reading.__new__(_Reading)
    reading.copied, reading.host = Event(), torch.zeros(2, 3, dtype=torch.uint8)
    reading.read()


def load_a_batch():
    time.sleep(0.5)


def test_a_rank_that_waits_for_its_gpu_is_reported_as_waiting_for_other_ranks(monkeypatch):
    monkeypatch.setattr(watchdog_module, 'is_distributed', lambda: True)
    place = place_of(wait_for_flags, 'cuda:0')
    assert 'waits for the other ranks' in place and 'rank 1' in place
    assert place_of(load_a_batch, 'cuda:0').startswith('it hangs in load_a_batch')


def test_lines_that_read_from_a_gpu_are_recognised():
    lines = 'return tuple(self.host.tolist())', 'last = values.tolist()', 'x = loss.item()', 'x.cpu()', "x.to('cpu')"
    stack = [Namespace(name='read', line=line) for line in lines]
    watchdog = Watchdog(1)
    watchdog.device = torch.device('cuda:0')
    assert all(watchdog._reads(frame) for frame in stack)
    assert not watchdog._reads(Namespace(name='decode', line='image = Image.open(file)'))
    watchdog.device = torch.device('cpu')
    assert not any(watchdog._reads(frame) for frame in stack)
