"""Ranks of a job and commands, as forks of one server that has imported everything. Imports take a process seconds."""
import atexit
import importlib
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd

import torch
import torch.multiprocessing
from huggingface_hub import constants

from agmax_timm.training.output import log as run_log
from tests.helpers.paths import REPOSITORY
from tests.helpers.run_files import write_small_curves

PRELOAD = 'tests.helpers.preload'
# A command that starts the ranks of a script as forks of itself.
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--run-path', '--start-method', 'fork']


def free_ports(count):
    """Different ports that are free."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def free_port():
    return free_ports(1)[0]


def torchrun_environment(rank, world_size):
    return dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size)


def no_environment(rank, world_size):
    return {}


def run_rank(environment, log, own_session, function, args):
    assert PRELOAD in sys.modules
    if own_session:
        os.setsid()
    torch.set_num_threads(1)
    run_log.plot_curves = write_small_curves
    torch.multiprocessing.set_start_method(None, force=True)  # not the server's: loader workers start as elsewhere
    os.environ.update({name: str(value) for name, value in environment.items()})
    with open(log, 'w') as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    try:
        function(*args)
    finally:
        atexit._run_exitfuncs()  # torch ends loader workers there, and processes of multiprocessing leave it out


def start_ranks(world_size, folder, function, *args, environment=torchrun_environment, own_session=False):
    """Processes that call function(*args), where an argument may be a function of the rank; output in rank-N.log.

    Each leads a session with `own_session`, so that a signal can be sent to it and its loader workers.
    """
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    if sys.platform == 'linux':
        common['GLOO_SOCKET_IFNAME'] = 'lo'
    folder.mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank in range(world_size):
        own_args = [arg(rank) if callable(arg) else arg for arg in args]
        own = {**common, **environment(rank, world_size)}
        ranks.append(_start(own, folder / f'rank-{rank}.log', own_session, function, own_args))
    return ranks


def _start(*args):
    context = torch.multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([PRELOAD])
    folder = os.getcwd()
    try:
        os.chdir(REPOSITORY)  # in another folder, the server would not find the module, and continue without it
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
    process = context.Process(target=run_rank, args=args)
    process.start()
    return process


def finish_ranks(ranks, seconds=120):
    """Exit statuses of the ranks. None for a rank that had to be killed."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0., deadline - time.monotonic()))
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        if rank.exitcode is None:
            rank.kill()
            rank.join()
    return statuses


def logs(folder):
    return '\n'.join(path.read_text() for path in sorted(folder.glob('rank-*.log')))


class _Descriptor:
    """An open file that is shared with the process that gets this object."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return _share, (DupFd(self.file if isinstance(self.file, int) else self.file.fileno()),)


def _share(duplicate):
    return duplicate.detach()


def _run_command(words, environment, stdout, stderr):
    for file, number in ((stdout, 1), (stderr, 2)):
        os.dup2(file, number)
    sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(constants)  # they are what the environment is at their import
    os.chdir(REPOSITORY)
    if words[0] == '-m':
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')


class Popen:
    """subprocess.Popen for commands of this package: [python, script or -m module, *arguments], in the repository."""

    def __init__(self, command, stdout, stderr, env=None, start_new_session=False, stdin=subprocess.DEVNULL):
        files = [_Descriptor(file) for file in (stdout, stdout if stderr == subprocess.STDOUT else stderr)]
        words = [str(word) for word in command[1:]]
        environment = dict(os.environ if env is None else env)
        self._process = _start({}, os.devnull, start_new_session, _run_command, [words, environment, *files])
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def run_command(words, stdout=None, **kwargs):
    """Run a command of this package. Returns its exit status, stdout unless it goes to another file, and stderr."""
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as errors:
        status = Popen([sys.executable, *words], output if stdout is None else stdout, errors, **kwargs).wait()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(words, status, output.read(), errors.read())
