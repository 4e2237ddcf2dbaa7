"""Work in the background: snapshots of the state, and errors that are not lost."""
import signal
import threading
from argparse import Namespace

import pytest
import torch

from agmax_timm.base.background import Background, snapshot
from tests.helpers.exact import equal


def test_a_snapshot_shares_no_memory_and_writes_the_same_file(tmp_path):
    weight = torch.arange(12.).view(3, 4)
    model = torch.nn.Linear(2, 2)
    state = {'w': weight, 'row': weight[1], 'turned': weight.t(), 'model': model.state_dict(), 'n': (1, [None, 'x']),
             'p': model.weight, 'args': Namespace(lr=[1.])}
    copied = snapshot(state)
    for name, value in (('before', state), ('after', copied)):
        torch.save(value, tmp_path / name)
    assert equal({**state, 'p': model.weight.detach()}, copied)
    assert copied['row'].data_ptr() == copied['w'].data_ptr() + 16
    assert copied['model']._metadata == state['model']._metadata
    assert abs((tmp_path / 'before').stat().st_size - (tmp_path / 'after').stat().st_size) < 500
    with torch.no_grad():
        weight.zero_(), model.weight.zero_()
    state['args'].lr.append(2.)
    assert copied['w'].sum() == 66 and copied['model']['weight'].abs().sum() > 0 and copied['args'].lr == [1.]


def test_errors_of_background_work_are_raised():
    background = Background()
    background.run(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.run(lambda: None)
    background.run(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timer of signals')
def test_background_work_is_still_waited_for_after_a_signal_interrupted_the_wait():
    """torch's signal handler raises at any place of the main process when a loader worker dies."""
    def interrupt(*_):
        raise RuntimeError('a worker died')

    background, release, done = Background(), threading.Event(), []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        background.run(lambda: (release.wait(60), done.append(True)))
        with pytest.raises(RuntimeError, match='a worker died'):
            signal.setitimer(signal.ITIMER_REAL, .1)
            background.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not done
    release.set()
    background.wait()
    assert done
