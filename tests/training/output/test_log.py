"""What a person sees while a run continues: the time that is left, on a terminal a bar, in a file plain lines."""
import io
import re
import sys

import pytest
import torch

from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.output import log as reporting
from agmax_timm.training.updates.loop import Progress, Span
from tests.helpers.exact import FLAGS

CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]')  # but tabs, which timm indents with


@pytest.fixture
def run(photos, tmp_path):
    """Function: train for two epochs of 6 updates; returns the lines of train.log."""
    def start(*flags):
        training.train(parse_train_args([str(photos), *FLAGS, '-j', '0', '--epochs', '2', '--output', str(tmp_path),
                                         '--experiment', 'run', *flags]))
        return (tmp_path / 'run' / 'train.log').read_text()
    return start


def test_the_time_to_the_end_is_that_of_the_updates_of_this_process(monkeypatch, caplog):
    """6 updates in 30 seconds, since a run of 20 went on behind the fourth: 10 are left."""
    now = [100.]
    monkeypatch.setattr(reporting.time, 'perf_counter', lambda: now[0])
    caplog.set_level('INFO')
    reporter = reporting.Reporter(20, done_updates=4, num_epochs=3)
    now[0] = 130.
    span = Span(images=8, updates=1, start=now[0] - 1)
    nothing = torch.zeros(())
    reporter.train_step(Progress(1, 1, 8, {'loss': 1.}, {'loss': 1.}, span, span, nothing, nothing), 0.1)
    assert caplog.messages[-1].endswith('  ETA: 00:50')


def test_a_file_has_lines_alone_and_the_last_one_has_no_time_left(run, capsys):
    log = run('--stop-epoch', '1')
    assert not CONTROL.search(log) and not CONTROL.search(capsys.readouterr().err)
    lines = [line for line in log.splitlines() if 'Train: ' in line]
    assert len(lines) == 4 and lines[-1].endswith('  ETA: 00:00'), 'of the epochs to --stop-epoch'


def test_a_terminal_has_a_bar_for_the_lines_of_updates(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setattr(sys, 'stderr', Terminal())
    log = run('--stop-epoch', '1')
    shown = sys.stderr.getvalue()
    assert 'Train: 0 [' in log and 'Train: 0 [' not in shown and not CONTROL.search(log)
    assert '\r' in shown and 'Epoch 0/1' in shown and '6/6 [' in shown and 'Test 0: Loss' in shown
