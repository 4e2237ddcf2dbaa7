"""Tests of everything that is claimed for CUDA. docs/benchmarks.md describes how to run them.

Without CUDA one test is skipped and no other is collected. `--device cpu` runs the CPU form of all: it tests the tests,
not CUDA.
"""
import json
import os
import platform
from pathlib import Path

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # deterministic; read when CUDA begins
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '3')  # of each of the parallel processes

import pytest
import timm
import torch
import torchvision

from agmax_timm.base.atomic_write import write_text
from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from tests.helpers.exact import FLAGS, StopAfter
from tests.helpers.scaling import scale_float16

SLOWEST = ('test_faults', 'test_distributed', 'test_scripts', 'test_compile')  # last, in case time runs out
NO_CUDA = 'no CUDA device: pytest tests/gpu --device cpu runs the CPU form'


def pytest_addoption(parser):
    parser.addoption('--device', default='cuda', choices=('cuda', 'cpu'), help='of tests/gpu: cpu for its CPU form')
    parser.addoption('--gpu-json', default='gpu.json', metavar='FILE', help='results of tests/gpu')


def device_name(config):
    return config.getoption('--device', 'cuda')  # the default where pytest came here too late to add the option


def is_missing(config):
    return device_name(config) == 'cuda' and not torch.cuda.is_available()


def pytest_configure(config):
    config.addinivalue_line('markers', 'timing: measures time, so that nothing else may run meanwhile')
    if not hasattr(config, 'workerinput'):  # the process that hears of all tests
        config.pluginmanager.register(Results(config))


def pytest_ignore_collect(collection_path, config):
    if collection_path.name.startswith('test_') and collection_path.name != 'test_environment.py':
        return is_missing(config) or None


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    ours.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else -1)
    items[:] = [item for item in items if item not in ours] + ours
    alone = pytest.mark.skip(reason='measures time: run it alone, with -m timing -n 0')
    for item in items:
        if item.get_closest_marker('timing') and hasattr(config, 'workerinput'):
            item.add_marker(alone)


def pytest_terminal_summary(terminalreporter, config):
    if is_missing(config):
        terminalreporter.write_line(f'tests/gpu skipped: {NO_CUDA}')


class Results:
    """Write gpu.json: the machine, and of each test the outcome, seconds and measured values.

    It is written after each test, so a killed command loses none. Results of earlier commands on the same machine stay.
    """

    def __init__(self, config):
        self.path = Path(config.getoption('--gpu-json', 'gpu.json'))
        self.device = device_name(config)
        self.found = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition('tests/gpu/')[2]
        if name and (report.when == 'call' or report.outcome != 'passed'):
            self.add(name, dict(
                outcome=report.outcome, seconds=round(report.duration, 2), measured=dict(report.user_properties)))

    def add(self, name, test):
        if not self.found:
            self.found = dict(machine=describe_machine(self.device), tests={})
            if self.path.exists() and (before := json.loads(self.path.read_text()))['machine'] == self.found['machine']:
                self.found = before
        if test['outcome'] != 'skipped' or name not in self.found['tests']:
            self.found['tests'][name] = test
        if any(test['outcome'] != 'skipped' for test in self.found['tests'].values()):
            write_text(str(self.path), json.dumps(self.found, indent=1) + '\n')


def describe_machine(device):
    return dict(
        device=torch.cuda.get_device_name() if device == 'cuda' else 'CPU', kind=device, torch=torch.__version__,
        cuda=torch.version.cuda if device == 'cuda' else None, timm=timm.__version__,
        torchvision=torchvision.__version__, python=platform.python_version(), cores=os.cpu_count())


@pytest.fixture(scope='session')
def device(request):
    if is_missing(request.config):
        pytest.skip(NO_CUDA)
    return torch.device(device_name(request.config))


@pytest.fixture
def cuda(device):
    """The device of a test that has no CPU form."""
    if device.type != 'cuda':
        pytest.skip('has no CPU form')
    return device


SETTINGS = [(torch.backends.cuda.matmul, 'allow_tf32'), (torch.backends.cudnn, 'allow_tf32'),
            (torch.backends.cudnn, 'benchmark')]


@pytest.fixture(autouse=True)
def settings(device, monkeypatch):
    """Function: set TF32 and cudnn.benchmark, which are off at first and restored after the test.

    Runs set them for their process. float16 has a scaler on a CPU, too.
    """
    def switch(*values):
        for (owner, name), value in zip(SETTINGS, values):
            setattr(owner, name, value)  # monkeypatch would delete these at the end: they are not in the module's dict

    before = [getattr(owner, name) for owner, name in SETTINGS]
    switch(False, False, False)
    if device.type == 'cpu':
        scale_float16(monkeypatch)
    yield switch
    switch(*before)


@pytest.fixture
def argv(device, photos, tmp_path):
    """Function: the command line of a run of 6 updates an epoch on photos."""
    return lambda name, *flags: [
        str(photos), *FLAGS, *([] if '--agmax-teacher' in flags else ['--agmax']), '-j', '0', '--device', device.type,
        '--output', str(tmp_path), '--experiment', name, *map(str, flags)]


@pytest.fixture
def run(argv, tmp_path):
    """Function: the folder of a run that is interrupted after each number of checks for signals, and then completed."""
    def start(name, *flags, stops=()):
        line = argv(name, *flags, *([] if '--resume' in flags else ['--resume', 'auto']))
        for looks in stops:
            with pytest.raises(Interrupted):
                training.train(parse_train_args(line), StopAfter(looks))
        training.train(parse_train_args(line))
        return tmp_path / name
    return start
