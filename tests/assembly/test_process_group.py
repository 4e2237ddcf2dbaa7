"""Jobs of several processes: an error on one rank ends all at once, and no rank waits for missing ones."""
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from agmax_timm import AgMaxTask
from agmax_timm.assembly import model, process_group
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.report import report as report_module
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
