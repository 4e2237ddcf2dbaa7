"""The end of a job of several processes: an error is printed at once, and no rank waits for missing ranks."""
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from agmax_timm import AgMaxTask
from agmax_timm.assembly import model, process_group
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.report import report as report_module
from agmax_timm.training.guards import watchdog as watchdog_module
from agmax_timm.training.guards.watchdog import Watchdog
from agmax_timm.training.updates.finite_check import _Reading
from tests.helpers.ranks import finish_ranks, free_port, logs, start_ranks
from tests.helpers.scale import FLAGS


def fail_on_one_rank(rank, data, output):
    """Fail on rank 1. The end of the process group waits without end, as on NCCL if a rank is in a collective."""
    dist.destroy_process_group = lambda: time.sleep(600)
    forward, calls = AgMaxTask.forward, []

    def failing(self, input, target):
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            print(f'raised at {time.time()}', flush=True)
            raise RuntimeError('CUDA out of memory')
        return forward(self, input, target)

    AgMaxTask.forward = failing
    train_cli.main([data, *FLAGS, '--agmax', '-b', '2', '--output', output, '--experiment', 'run'])


def test_an_error_on_one_rank_is_printed_and_ends_all_ranks(pictures, tmp_path):
    ranks = start_ranks(2, tmp_path, fail_on_one_rank, lambda rank: rank, str(pictures), str(tmp_path))
    assert finish_ranks(ranks) == [1, 1], logs(tmp_path)
    log, ended = (tmp_path / 'rank-1.log').read_text(), (tmp_path / 'rank-1.log').stat().st_mtime
    raised = float(log.split('raised at ')[1].split()[0])
    assert log.rstrip().endswith('RuntimeError: CUDA out of memory')
    assert log.count('Traceback') == 1 and ended - raised < 10


def report_alone(rank, data, output):
    """Let rank 0 report after rank 1 has ended. As on NCCL, all ranks end the process group together."""
    destroy = dist.destroy_process_group

    def destroy_together():
        dist.barrier()
        destroy()

    def report(folder, *_):
        end = time.monotonic() + 60
        while not (Path(output) / 'left').exists():
            assert time.monotonic() < end, 'the other rank waits for the report'
            time.sleep(0.05)

    dist.destroy_process_group, report_module.report_at_end = destroy_together, report
    train_cli.main([data, *FLAGS, '--epochs', '1', '--report', '-b', '2', '--output', output, '--experiment', 'run'])
    if rank == 1:
        (Path(output) / 'left').touch()


def test_other_ranks_do_not_wait_for_the_report(pictures, tmp_path):
    ranks = start_ranks(2, tmp_path, report_alone, lambda rank: rank, str(pictures), str(tmp_path))
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path)


def test_the_timeout_of_collectives_exceeds_that_of_the_watchdog():
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{free_port()}', rank=0, world_size=1)
    try:
        process_group.outlast(1800)
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device('cpu'))
        assert backend.options._timeout.total_seconds() == 2100
    finally:
        process_group.end_process_group()
    assert not dist.is_initialized()


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch):
    for name, value in dict(RANK=1, LOCAL_RANK=1, WORLD_SIZE=2).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(OptionError, match='process 2 .*no GPU, it sees 1: .*--nproc-per-node 1'):
        model.init_device('cuda')


# What the watchdog says of a rank that waits

def place_of(wait, device):
    """Return what the watchdog reports while the main thread is in wait()."""
    watchdog = Watchdog(1)
    watchdog.device = torch.device(device)
    watchdog.presence = Namespace(silent=lambda: [1])
    said = []
    thread = threading.Thread(target=lambda: (time.sleep(0.2), said.append(watchdog._place())))
    thread.start()
    while not said:
        wait()
    thread.join()
    return said[0]


class Event:
    """An event of a GPU stream, behind a collective that other ranks do not join."""

    def synchronize(self):
        time.sleep(0.5)


def wait_for_flags():
    reading = _Reading.__new__(_Reading)
    reading.copied, reading.host = Event(), torch.zeros(2, 3, dtype=torch.uint8)
    reading.read()


def load_a_batch():
    time.sleep(0.5)


def test_a_rank_that_waits_for_its_gpu_is_reported_as_waiting_for_other_ranks(monkeypatch):
    monkeypatch.setattr(watchdog_module, 'is_distributed', lambda: True)
    place = place_of(wait_for_flags, 'cuda:0')
    assert 'waits for the other ranks' in place and 'rank 1' in place
    assert place_of(load_a_batch, 'cuda:0').startswith('it hangs in load_a_batch')


def test_lines_that_read_from_a_gpu_are_recognised():
    lines = 'return tuple(self.host.tolist())', 'last = values.tolist()', 'x = loss.item()', 'x.cpu()', "x.to('cpu')"
    stack = [Namespace(name='read', line=line) for line in lines]
    watchdog = Watchdog(1)
    watchdog.device = torch.device('cuda:0')
    assert all(watchdog._reads(frame) for frame in stack)
    assert not watchdog._reads(Namespace(name='decode', line='image = Image.open(file)'))
    watchdog.device = torch.device('cpu')
    assert not any(watchdog._reads(frame) for frame in stack)
