"""The console log of a command whose terminal is closed while it works."""
import logging
import os
import sys

import pytest

from agmax_timm.assembly.console import setup_logging
from agmax_timm.base.command import print_error
from agmax_timm.base.pipes import print_if_read
from agmax_timm.base.signals import Interrupted


def test_a_closed_terminal_neither_ends_a_command_nor_changes_its_status(monkeypatch):
    terminal, device = os.openpty()
    with open(device, 'w', buffering=1) as file, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', file)
        patch.setattr(sys, 'stderr', file)
        setup_logging()
        logging.getLogger('train').info('before')
        os.close(terminal)
        with pytest.raises(OSError, match='Input/output error'):
            print('x', file=sys.stderr)
        logging.getLogger('train').info('after')
        print_if_read('results')
        assert print_error(Interrupted('SIGHUP: saved')) == 75
        sys.stderr.flush()
