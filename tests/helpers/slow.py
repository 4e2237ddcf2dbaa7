"""Which tests are slow: those that start a run, a process or a server, also through a fixture or helper."""
from types import CodeType, FunctionType

from agmax_timm.commands import train
from agmax_timm.training import run

PROCESSES = {'subprocess', 'multiprocessing', 'start_ranks', 'run_command', 'run_in_plain_timm', 'fork', 'hub_server'}
RUNS = {(train, 'main'), (run, 'train')}


def is_slow(item):
    """Whether a collected test starts a training run, a process or a server."""
    fixtures = [each[-1].func for name, each in item._fixtureinfo.name2fixturedefs.items() if name in item.fixturenames]
    seen = set()
    return any(_starts(function, seen) for function in (item.function, *fixtures))


def _starts(function, seen):
    if not isinstance(function, FunctionType) or function in seen or not function.__module__.startswith('tests.'):
        return False
    seen.add(function)
    names = set(_names(function.__code__))
    values = [function.__globals__.get(name) for name in names]
    return (
        not names.isdisjoint(PROCESSES)
        or any(name in names and any(value is module for value in values) for module, name in RUNS)
        or any(value is train.main or value is run.train or _starts(value, seen) for value in values))


def _names(code):
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
