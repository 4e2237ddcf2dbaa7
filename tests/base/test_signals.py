"""Signals that ask a run to end."""
import os
import signal

import pytest

from agmax_timm.base.signals import StopSignals


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT', 'SIGHUP'])
def test_a_signal_is_recorded_and_handlers_are_restored(hangup, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == name
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_ignores_a_closed_terminal(hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
