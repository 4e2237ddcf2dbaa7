"""A run on one process, on several, on two machines: the same numbers, and an end when a rank dies.

Networks without BatchNorm, whose statistics differ from rank to rank under DDP. torch's SyncBatchNorm would share them,
but runs on accelerators only and is not tested here.
"""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.loss import SoftTargetCrossEntropy
from timm.task import ClassificationTask

from agmax_timm import AgMaxTask
from agmax_timm.assembly.model import Precision
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.augmentation.mixup import TwoViewMixup
from agmax_timm.training.updates import loop
from agmax_timm.training.updates.step import Step, Training
from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import TORCHRUN, finish_ranks, logs, run_command, start_ranks
from tests.helpers.scale import AGMAX, CLASSES, FLAGS
from tests.helpers.updates import NoCheck

MINUTE = 60
FLOAT32 = 5e-6  # relative, after a few updates
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')

def slurm_environment(rank, world_size):
    return dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NTASKS=world_size, SLURM_STEP_NUM_TASKS=world_size)


def train_on_ranks(world_size, folder, pictures, *flags, **kwargs):
    """The folder of a run of train.py on this many ranks."""
    argv = [str(pictures), *FLAGS, '--output', str(folder), '--experiment', 'run', *flags]
    ranks = start_ranks(world_size, folder, train_cli.main, argv, **kwargs)
    assert finish_ranks(ranks) == [0] * world_size, logs(folder)
    return folder / 'run'


def summary(folder):
    with open(folder / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    return [{name: float(value) for name, value in row.items()}
            for row in rows]


def assert_same_rows(actual, expected):
    assert len(actual) == len(expected) > 0
    for row, expected_row in zip(actual, expected):
        assert row == pytest.approx(expected_row, rel=FLOAT32)
        for name in expected_row:
            if 'top' in name or name in ('epoch', 'lr'):
                assert row[name] == expected_row[name]


def weights(folder):
    with torch.serialization.safe_globals([Namespace]):
        checkpoint = torch.load(folder / 'last.pth.tar', weights_only=True)
    parts = dict(model=checkpoint['state_dict'], ema=checkpoint['state_dict_ema'])
    for name in ('task_state', 'task_state_ema'):
        parts[name] = checkpoint.get(name, {}).get('qnet', {})
    return {f'{part}.{name}': value for part, values in parts.items() for name, value in values.items()}


def assert_same_weights(folder, expected_folder):
    actual, expected = weights(folder), weights(expected_folder)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= FLOAT32 * value.norm() + 1e-7, name


# The engine, given the batches: each rank its share of the same mixed batches.

BATCH, BATCHES = 8, 5


def make_batches(two_views, dtype):
    """Mixed batches of 8 images, view-major, with soft targets."""
    torch.manual_seed(1)
    np.random.seed(1)
    mix = TwoViewMixup(mixup_alpha=0.8, cutmix_alpha=1., mode='elem', label_smoothing=0.1, num_classes=CLASSES)
    batches = []
    for _ in range(BATCHES):
        input, target = torch.randn(2 * BATCH, 3, 32, 32, dtype=torch.float64), torch.randint(CLASSES, (BATCH,))
        input, target = mix(input, target.repeat(2))
        views = 2 if two_views else 1
        batches.append((input[:views * BATCH].to(dtype), target[:views * BATCH].to(dtype)))
    return batches


def share(batch, rank, world_size, views):
    return tuple(part.unflatten(0, (views, world_size, -1))[:, rank].flatten(0, 1) for part in batch)


def train_share(rank, world_size, two_views, accum_steps, dtype):
    """One epoch on this rank's share: mean losses, all weights, all averaged weights."""
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=CLASSES, img_size=32, depth=2).to(dtype)
    if two_views:
        task = AgMaxTask(model, SoftTargetCrossEntropy(), init_std=0.2, verbose=False)
    else:
        task = ClassificationTask(model, SoftTargetCrossEntropy(), verbose=False)
    task.setup_ema(decay=0.7)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    if world_size > 1:
        task.prepare_distributed()
    loader = [share(batch, rank, world_size, 2 if two_views else 1) for batch in make_batches(two_views, dtype)]
    args = Namespace(agmax=two_views, aug_splits=0, grad_accum_steps=accum_steps, world_size=world_size,
                     no_prefetcher=False, channels_last=False, clip_grad=1., clip_mode='norm', log_interval=2,
                     synchronize_step=False)
    step = Step(Training(task, optimizer, args, torch.device('cpu'), Precision()), NoCheck())
    mean, _ = loop.train_one_epoch(0, step, loader)
    states = [task.get_trainable_module(ema=ema).state_dict() for ema in (False, True)]
    states = [{name.removeprefix('module.'): value for name, value in state.items()} for state in states]
    return dict(losses=torch.tensor(list(mean.values()), dtype=torch.float64), weights=states[0], ema=states[1])


SETTINGS = {
    'agmax': (True, 1, torch.float64),
    'agmax accumulated with a remainder': (True, 2, torch.float64),
    'plain': (False, 1, torch.float64),
    'plain accumulated with a remainder': (False, 2, torch.float64),
    'agmax in float32': (True, 2, torch.float32),
}


def train_shares(world_size, folder, rank):
    if world_size > 1:
        dist.init_process_group('gloo')
    torch.save({name: train_share(rank, world_size, *setting) for name, setting in SETTINGS.items()},
               folder / f'{world_size}-{rank}.pt')
    if world_size > 1:
        dist.destroy_process_group()


@pytest.fixture(scope='module')
def shares(tmp_path_factory):
    """Outcomes of each rank by setting, by number of ranks."""
    folder = tmp_path_factory.mktemp('shares')
    for world_size in (1, 2, 4):
        ranks = start_ranks(world_size, folder / str(world_size), train_shares, world_size, folder, int)
        assert finish_ranks(ranks) == [0] * world_size, logs(folder / str(world_size))
    return {size: [torch.load(folder / f'{size}-{rank}.pt') for rank in range(size)] for size in (1, 2, 4)}


@pytest.mark.parametrize('world_size', [2, 4])
@pytest.mark.parametrize('name', SETTINGS)
def test_updates_on_shares_of_the_same_batches_equal_those_of_one_process(shares, name, world_size):
    expected = shares[1][0][name]
    tolerance = 1e-9 if SETTINGS[name][2] == torch.float64 else 2e-5
    for outcome in shares[world_size]:
        torch.testing.assert_close(outcome[name]['losses'], expected['losses'], rtol=tolerance, atol=tolerance)
        for part in ('weights', 'ema'):
            assert outcome[name][part].keys() == expected[part].keys()
            for key, value in expected[part].items():
                difference = (outcome[name][part][key] - value).norm() / value.norm().clamp(min=1e-3)
                assert difference <= tolerance, f'{part} {key}'


def test_the_average_differs_from_the_weights(shares):
    """Otherwise the comparison of averages would test nothing new."""
    outcome = shares[1][0]['agmax']
    assert (outcome['ema']['model.head.weight'] - outcome['weights']['model.head.weight']).norm() > 1e-3


# train.py and validate.py

@pytest.fixture(scope='module')
def one_process(pictures, tmp_path_factory):
    return train_on_ranks(1, tmp_path_factory.mktemp('one'), pictures, *AGMAX, '-b', '24')


@pytest.fixture(scope='module')
def two_slurm_tasks(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp('slurm')
    return train_on_ranks(2, folder, pictures, *AGMAX, '-b', '12', environment=slurm_environment)


def test_four_ranks_equal_one_process(pictures, one_process, tmp_path):
    folder = train_on_ranks(4, tmp_path, pictures, *AGMAX, '-b', '6')
    assert_same_rows(summary(folder), summary(one_process))
    assert_same_weights(folder, one_process)


def test_two_slurm_tasks_equal_one_process(one_process, two_slurm_tasks):
    assert_same_rows(summary(two_slurm_tasks), summary(one_process))
    assert_same_weights(two_slurm_tasks, one_process)


@pytest.mark.parametrize('flags', [(), (*AGMAX, '--balanced-sampling', '--class-stats', 'auto', '--loss-class-weight',
                                         '1,2,3,4,5,6,7,8')], ids=['plain', 'balanced'])
def test_two_ranks_equal_one_process(pictures, tmp_path, flags):
    one, two = (train_on_ranks(n, tmp_path / str(n), pictures, '-b', str(24 // n), *flags) for n in (1, 2))
    assert_same_rows(summary(two), summary(one))
    assert_same_weights(two, one)


def test_two_and_four_ranks_are_equal_over_several_updates(pictures, tmp_path):
    """Ranks take the samples of the epoch in turn, so any number of ranks above one has the same batches."""
    flags = [*AGMAX, '--grad-accum-steps', '2', '--sched', 'cosine', '--sched-on-updates', '--epochs', '2']
    two, four = (train_on_ranks(n, tmp_path / str(n), pictures, '-b', str(8 // n), *flags) for n in (2, 4))
    assert_same_rows(summary(four), summary(two))
    assert_same_weights(four, two)


def test_validation_is_the_same_on_any_number_of_ranks(pictures, one_process, tmp_path):
    checkpoint = str(one_process / 'last.pth.tar')
    results = []
    for world_size in (1, 2, 3, 4):
        path = tmp_path / f'{world_size}.json'
        argv = [str(pictures), '--checkpoint', checkpoint, '-b', '4', '-j', '0', '--device', 'cpu',
                '--results-file', str(path), '--results-format', 'json']
        ranks = start_ranks(world_size, tmp_path / str(world_size), validate_cli.main, argv)
        assert finish_ranks(ranks) == [0] * world_size, logs(tmp_path / str(world_size))
        results.append(json.loads(path.read_text()))
    losses = [result.pop('loss') for result in results]
    assert results[1:] == results[:1] * 3
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-7)  # batches are averaged in float32, as timm does
    reported = summary(one_process)[-1]
    assert results[0]['top1'] == pytest.approx(reported['raw_top1'], abs=1e-4)
    assert losses[0] == pytest.approx(reported['raw_loss'], rel=1e-6)


def test_resuming_needs_the_same_checkpoint_on_every_rank(pictures, one_process, tmp_path):
    outputs = [one_process.parent, tmp_path / 'another machine']

    def argv(rank):
        return [str(pictures), *FLAGS, *AGMAX, '-b', '12', '--output', str(outputs[rank]), '--experiment', 'run',
                '--resume', 'auto']
    assert finish_ranks(start_ranks(2, tmp_path, train_cli.main, argv)) == [2, 2]
    assert re.search('error: --resume: rank 0 .*epoch 4, but rank 1 .*no checkpoint: ', logs(tmp_path))
    assert 'Traceback' not in logs(tmp_path)


# A rank dies

LONG = ['--epochs', '100000']


def wait_for(condition, what, seconds=2 * MINUTE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'no {what} in time'
        time.sleep(0.1)


def has_epochs(folder):
    return (folder / 'summary.csv').exists() and (folder / 'summary.csv').read_text().count('\n') > 4


def test_a_dead_rank_without_torchrun_ends_the_other(pictures, tmp_path):
    argv = [str(pictures), *FLAGS, *AGMAX, *LONG, '-b', '12', '--output', str(tmp_path), '--experiment', 'run']
    ranks = start_ranks(2, tmp_path, train_cli.main, argv, environment=slurm_environment)
    wait_for(lambda: has_epochs(tmp_path / 'run'), 'epochs')
    ranks[1].kill()
    assert finish_ranks(ranks, MINUTE) == [1, -signal.SIGKILL]
    assert re.search('(closed|reset) by peer|Broken pipe', (tmp_path / 'rank-0.log').read_text())


def torchrun(*argv, **kwargs):
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', *map(str, argv)], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **kwargs)


def processes(text):
    """Process ids whose command line contains the text."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / 'cmdline').read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile
            pass
    return found


def rank_processes(marker, rank):
    """Process ids of a rank and of its loader workers, which have this RANK in their environment."""
    found = []
    for pid in processes(marker):
        try:
            environment = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        except OSError:
            continue
        if f'RANK={rank}'.encode() in environment:
            found.append(pid)
    return found


@linux
def test_torchrun_names_a_killed_rank_and_leaves_no_process(pictures, tmp_path):
    agent = torchrun('--standalone', '--nproc-per-node', '2', 'train.py', pictures, *FLAGS, *AGMAX, *LONG, '-b', '12',
                     '-j', '1', '--output', tmp_path, '--experiment', 'run')
    wait_for(lambda: has_epochs(tmp_path / 'run') or agent.poll() is not None, 'epochs')
    os.kill(min(rank_processes(str(tmp_path), 1)), signal.SIGKILL)  # its loader's worker is younger
    output, _ = agent.communicate(timeout=MINUTE)
    assert agent.returncode == 1
    told = [failure for failure in output.split('\n[') if 'SIGKILL' in failure]  # rank 0 may fail in the same second
    assert any('rank      : 1 (local_rank: 1)' in failure for failure in told), output
    wait_for(lambda: not processes(str(tmp_path)), 'the end of all processes', 20)


DIES_ONCE = """
import os
import signal
from agmax_timm.commands import train as train_cli
from agmax_timm.training import epochs

goes_on = epochs.set_epoch


def dies_once(loader, epoch):
    if epoch == 2 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
        os.kill(os.getpid(), signal.SIGKILL)
    goes_on(loader, epoch)


epochs.set_epoch = dies_once
train_cli.main()
"""


def test_torchrun_restarts_from_the_last_checkpoint(pictures, one_process, tmp_path):
    """Two ranks, one of which dies once, equal one process without faults."""
    script = tmp_path / 'train.py'
    script.write_text(DIES_ONCE)
    completed = run_command(
        [*TORCHRUN, '--nproc-per-node', '2', '--max-restarts', '1', script, pictures, *FLAGS, *AGMAX, '-b', '12',
         '--output', tmp_path, '--experiment', 'run', '--resume', 'auto'],
        env={**os.environ, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'})
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, output
    assert 'exitcode: ' in output and 'Loaded checkpoint' in output, output  # that of either rank: they end together
    assert_same_rows(summary(tmp_path / 'run'), summary(one_process))
    assert_same_weights(tmp_path / 'run', one_process)


# Two machines: network namespaces with host names and addresses of their own, joined by a cable.

def ip(*arguments):
    subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts():
    """Names of two network namespaces that find each other by name. Removed with all their processes."""
    hosts = [f'agmax{os.getpid()}-{i}' for i in (1, 2)]
    links = [f'agv{os.getpid()}{i}' for i in 'ab']
    settings = [Path('/etc/netns') / host for host in hosts]
    try:
        for host, setting in zip(hosts, settings):
            ip('netns', 'add', host)
            setting.mkdir(parents=True)
            names = ''.join(f'10.77.0.{i} {name}\n' for i, name in enumerate(hosts, 1))
            (setting / 'hosts').write_text(f'127.0.0.1 localhost\n{names}')
            (setting / 'nsswitch.conf').write_text('hosts: files\n')  # no name server can be reached
        ip('link', 'add', links[0], 'netns', hosts[0], 'type', 'veth', 'peer', 'name', links[1], 'netns', hosts[1])
        for i, (host, link) in enumerate(zip(hosts, links), 1):
            ip('-n', host, 'addr', 'add', f'10.77.0.{i}/24', 'dev', link)
            ip('-n', host, 'link', 'set', link, 'up')
            ip('-n', host, 'link', 'set', 'lo', 'up')
        yield hosts
    finally:
        for host, setting in zip(hosts, settings):
            kill_host(host)
            subprocess.run(['ip', 'netns', 'del', host], capture_output=True)
            for path in setting.glob('*'):
                path.unlink()
            if setting.exists():
                setting.rmdir()


def kill_host(host):
    found = subprocess.run(['ip', 'netns', 'pids', host], capture_output=True, text=True).stdout.split()
    for pid in found:
        os.kill(int(pid), signal.SIGKILL)


def start_host(host, first_host, *argv):
    """Start torchrun on a host. A UTS namespace gives the host its own name."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1',
               '--rdzv-backend', 'c10d', '--rdzv-endpoint', f'{first_host}:29400', '--rdzv-id', 'job', *map(str, argv)]
    return subprocess.Popen(
        ['ip', 'netns', 'exec', host, 'unshare', '--uts', 'sh', '-c', 'hostname "$0" && exec "$@"', host, *command],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def hosts():
    try:
        with two_hosts() as names:
            yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'no network namespaces here: {getattr(error, "stderr", None) or error}')


def test_two_hosts_equal_one_process_and_end_if_one_is_lost(
        hosts, pictures, one_process, two_slurm_tasks, tmp_path):
    flags = [*FLAGS, *AGMAX, *LONG, '-b', '12', '--output', tmp_path, '--experiment', 'run']
    agents = [start_host(host, hosts[0], 'train.py', pictures, *flags) for host in hosts]
    wait_for(lambda: has_epochs(tmp_path / 'run') or agents[0].poll() is not None, 'epochs')
    kill_host(hosts[1])
    output, _ = agents[0].communicate(timeout=MINUTE)
    agents[1].communicate()
    assert agents[0].returncode == 1 and '[10.77.0.2]' in output, output
    assert summary(tmp_path / 'run')[:4] == summary(two_slurm_tasks)
    assert_same_rows(summary(tmp_path / 'run')[:4], summary(one_process))
