"""NCCL with one rank, DDP and FSDP2 against one process, two ranks on one GPU by gloo."""
from functools import partial

import pytest
import torch
import torch.distributed as dist

from agmax_timm.assembly import job_start
from agmax_timm.assembly.sharding import shard_task, whole
from agmax_timm.base import distributed
from agmax_timm.base.signals import StopSignals
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.updates.finite_check import FiniteCheck
from agmax_timm.training.updates.losses import BatchLosses, RunningLosses
from tests.helpers.ranks import finish_ranks, free_port, logs, start_ranks
from tests.helpers.run_files import epochs_in, load

from .updates import FLOAT16, batches, distance, make_step, make_task, options, train


@pytest.fixture
def group(device):
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, init_method=f'tcp://127.0.0.1:{free_port()}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_collective_of_the_package_works(device, group, monkeypatch):
    args = options()
    assert StopSignals().received_by_any(device) is False
    local = torch.arange(6., device=device).view(2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, 'world_size', lambda: 2)  # of one rank it would be the mean itself
        mean = distributed.global_mean(local, 4)
    torch.testing.assert_close(mean, local)
    check = FiniteCheck(args, device, lambda: (True, False))
    check.check_losses(BatchLosses(('loss', 'ce'), torch.tensor([1., torch.nan], device=device), 4), last=True)
    checked = check.agree()
    assert checked.broken == ['ce'] and checked.save and not checked.stop
    losses = RunningLosses(device)
    losses.update(BatchLosses(('loss',), torch.ones(1, device=device), 4))
    assert losses.read('')[1]['loss'] == 1.


def train_shared(device, how, case):
    """Weights after 6 updates. One of them is broken and left out."""
    task = make_task(device, 'test_vit')
    task.setup_ema(decay=0.5)
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=1e-3, eps=1e-4)  # noise stays small
    if how == 'ddp':
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)
    if how == 'fsdp':
        shard_task(task, optimizer, device)
    left_out, data = [], batches(device, 6)
    data[3] = data[3][0] * torch.nan, data[3][1]
    args = options(clip_grad=1., nan_policy='skip', **case)
    train(make_step(task, device, args, optimizer, on_broken=lambda *broken: left_out.append(broken)), data)
    assert len(left_out) == 1
    parameters = task.get_trainable_module().parameters()
    return torch.cat([whole(parameter.detach()).double().flatten().cpu() for parameter in parameters])


@pytest.mark.parametrize('case, tolerance', [({}, 1e-4), (FLOAT16, 2e-2)], ids=['float32', 'float16'])
def test_ddp_and_fsdp_equal_one_process(device, group, record_property, case, tolerance):
    expected = train_shared(device, 'one process', case)
    for how in ('ddp', 'fsdp'):
        error = distance(train_shared(device, how, case), expected)
        record_property(f'relative distance of the weights, {how}', error)
        assert error < tolerance


def train_by_gloo(argv):
    """Train with gloo. NCCL does not support two ranks on one GPU."""
    job_start.init_distributed_device_so = partial(job_start.init_distributed_device_so, dist_backend='gloo')
    training.train(parse_train_args(argv))


def test_two_ranks_on_one_gpu_train(argv, tmp_path):
    line = argv('run', '--model-ema', '--amp', '--amp-dtype', 'bfloat16')
    ranks = start_ranks(2, tmp_path, train_by_gloo, line, environment=lambda rank, world_size: dict(
        RANK=rank, LOCAL_RANK=0, WORLD_SIZE=world_size))
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path)
    assert epochs_in(tmp_path / 'run') == [0, 1, 2]
    assert all(value.isfinite().all() for value in load(tmp_path / 'run' / 'last.pth.tar')['state_dict'].values())
