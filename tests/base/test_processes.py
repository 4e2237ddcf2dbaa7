"""Garbage collection and the start method of processes."""
import gc
import subprocess
import sys
import weakref

import pytest

from agmax_timm.base.processes import imports_without_gc
from tests.helpers.paths import REPOSITORY


@pytest.fixture
def thawed():
    yield
    gc.unfreeze()


class Circle:
    """A reference cycle, which only the garbage collector frees."""

    def __init__(self):
        self.itself = self


@pytest.mark.parametrize('collects', [True, False])
def test_imports_are_excluded_from_garbage_collection_which_is_then_restored(collects, thawed, monkeypatch):
    monkeypatch.delitem(sys.modules, 'torch')  # as in a process that has just begun
    gc.enable() if collects else gc.disable()
    try:
        with pytest.raises(ImportError), imports_without_gc():
            assert not gc.isenabled()
            kept = weakref.ref(Circle())
            raise ImportError
        assert gc.isenabled() == collects
        later = weakref.ref(Circle())
        gc.collect()
        assert kept() is not None and later() is None
    finally:
        gc.enable()


def test_workers_are_forked_unless_another_start_method_is_set():
    script = (
        'import multiprocessing, multiprocessing.context as context, sys\n'
        'context._default_context._default_context = context._concrete_contexts["forkserver"]\n'  # as Python 3.14
        'if sys.argv[1:]:\n    multiprocessing.set_start_method(sys.argv[1])\n'
        'from agmax_timm.base.processes import fork_workers\n'
        'fork_workers()\nfork_workers()\n'
        'print(multiprocessing.get_start_method())')
    for told, expected in ((), 'fork'), (('spawn',), 'spawn'), (('forkserver',), 'forkserver'):
        run = subprocess.run([sys.executable, '-c', script, *told], cwd=REPOSITORY, capture_output=True, text=True)
        assert run.stdout == f'{expected}\n', run.stderr
