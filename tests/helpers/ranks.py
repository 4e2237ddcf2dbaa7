"""Ranks of a job, in forks of one server that has imported everything: imports take seconds in a process of its own."""
import atexit
import os
import socket
import sys
import time

import torch
import torch.multiprocessing

from agmax_timm.training.output import log as run_log
from tests.helpers.run_files import write_small_curves

PRELOADED = ['agmax_timm.training.run', 'agmax_timm.evaluation.validation', 'torch._dynamo', 'torch.distributed.fsdp',
             'pytest', 'tests.helpers.exact']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def torchrun_environment(rank, world_size):
    return dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size)


def no_environment(rank, world_size):
    return {}


def run_rank(environment, log, own_session, function, args):
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
    context = torch.multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    if sys.platform == 'linux':
        common['GLOO_SOCKET_IFNAME'] = 'lo'
    folder.mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank in range(world_size):
        own_args = [arg(rank) if callable(arg) else arg for arg in args]
        own = {**common, **environment(rank, world_size)}
        ranks.append(context.Process(
            target=run_rank, args=(own, folder / f'rank-{rank}.log', own_session, function, own_args)))
        ranks[-1].start()
    return ranks


def finish_ranks(ranks, seconds=120):
    """Exit statuses; None for a rank that had to be killed."""
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
