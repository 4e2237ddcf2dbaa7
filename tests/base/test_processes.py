"""Garbage collection and the start method of processes."""
import gc
import subprocess
import sys
import weakref

import pytest
from timm.utils import is_distributed_env, world_info_from_env

from agmax_timm.base.command import command
from agmax_timm.base.command_line import Parser
from agmax_timm.base.processes import LAUNCHER, check_launcher, imports_without_gc
from agmax_timm.options.parse import parse_train_args
from tests.helpers.paths import REPOSITORY


def test_empty_variables_of_a_launcher_are_as_if_not_set(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.setenv(name, '')
    assert parse_train_args(['data']).seed == 42
    command('x')(check_launcher)()
    assert (is_distributed_env(), world_info_from_env()) == (False, (0, 0, 1))


@pytest.mark.parametrize('name, value', [('WORLD_SIZE', 'two'), ('RANK', '1.5'), ('SLURM_NTASKS', '2(x3)')])
def test_a_variable_of_a_launcher_that_is_no_number_is_refused(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        command('x')(check_launcher)()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"x: error: the environment variable {name} must be a whole number, got "
                                              f"'{value}': unset {name}")


@pytest.mark.parametrize('variables', [
    {}, {'RANK': '0', 'SLURM_PROCID': '3'}, {'RANK': '2', 'SLURM_PROCID': '0'}, {'SLURM_PROCID': '0'},
    {'SLURM_PROCID': '1'}, {'PMI_RANK': '1'}, {'OMPI_COMM_WORLD_RANK': '1'}])
def test_only_the_process_that_is_the_first_to_timm_prints_warnings(monkeypatch, capsys, variables):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Parser(prog='train.py').warn('of an option')
    assert capsys.readouterr().err == ('train.py: warning: of an option\n' if world_info_from_env()[1] == 0 else '')


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
