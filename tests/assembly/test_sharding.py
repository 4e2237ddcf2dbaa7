"""--fsdp equals DDP: two processes train with each on the same batches, and the results are compared."""
import os
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.utils import distributed
from torch.distributed.tensor import DTensor

from agmax_timm.assembly import job_start, sharding
from agmax_timm.assembly import model as build
from agmax_timm.assembly import optimizer as optimization
from agmax_timm.assembly.objective import build_task
from agmax_timm.base.errors import OptionError
from agmax_timm.evaluation.evaluate import evaluate
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import batch_norm
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints import manager
from agmax_timm.training.updates import loop
from agmax_timm.training.updates.loop import NonFiniteError
from agmax_timm.training.updates.step import Step, Training
from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import finish_ranks, logs, no_environment, start_ranks
from tests.helpers.scaling import make_scaler
from tests.helpers.updates import NoCheck

RANKS = 2
CLASSES = 5
CPU = torch.device('cpu')
SCALE = 2. ** 18  # so large that the gradients of the first updates overflow in float16
# Model and flags; each with an EMA, 2 epochs of 3 batches, and both sets of weights evaluated after each.
CASES = {
    'agmax': ('test_vit', '--agmax --opt adamw --lr 1e-3 --clip-grad 0.1 --grad-accum-steps 2 --grad-checkpointing'),
    'agmax, batch norm': ('test_resnet', '--agmax --lr 0.1 --clip-grad 0.01 --clip-mode value --grad-accum-steps 2'),
    'marginals of 2 images': ('test_vit', '--agmax --agmax-marginal-images 2 --lr 0.1 --grad-accum-steps 2'),
    'one view': ('test_vit', '--opt lamb --lr 1e-3 --clip-grad 1 --layer-decay 0.7 --model-ema-warmup'),
    'statistics of each rank': ('test_resnet', '--agmax --lr 0.1 --no-ddp-bb --dist-bn broadcast --channels-last'),
    'bfloat16': ('test_vit', '--agmax --amp --amp-dtype bfloat16 --opt lion --lr 1e-4 --clip-grad 1'),
    'float16': ('test_vit', '--agmax --amp --opt adamw --lr 1e-3 --clip-grad 1'),
    'compiled': ('test_vit', '--agmax --torchcompile eager --lr 0.1 --model-kwargs depth=1'),
}
# Runs of train.py on photos: (--fsdp, epochs, run to continue from).
RUNS = {
    'ddp': (False, 2, None),
    'half ddp': (False, 1, None),
    'half fsdp': (True, 1, None),
    'ddp, then fsdp': (True, 2, 'half ddp'),
    'fsdp, then ddp': (False, 2, 'half fsdp'),
}


def options(flags, **values):
    return replace(parse_train_args(flags.split()), **{'fsdp': True, **values})


def batches(rank, agmax, dtype):
    """Images of one rank. No other rank has them."""
    generator = torch.Generator().manual_seed(rank)
    views = 2 if agmax else 1
    return [(torch.randn(views * 4, 3, 32, 32, generator=generator, dtype=dtype),
             torch.randint(CLASSES, (4,), generator=generator).repeat(views)) for _ in range(3)]


def build_all(args, architecture, rank, dtype):
    torch.manual_seed(rank)  # until the weights of rank 0 are shared, each rank has its own
    size = {'img_size': 32, 'depth': 2, **args.model_kwargs} if 'vit' in architecture else {}
    model = timm.create_model(architecture, num_classes=CLASSES, **size).to(dtype)
    model.set_grad_checkpointing(args.grad_checkpointing)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    precision = build.build_precision(args, CPU)
    precision.model_dtype = dtype
    if args.amp and args.amp_dtype == 'float16':
        precision.scaler = make_scaler(init_scale=SCALE)
    task = build_task(args, model, CPU, precision)
    optimizer = optimization.build_optimizer(args, task)
    optimization.build_ema(args, task)
    build.compile_and_distribute(args, task, optimizer, CPU)
    return task, optimizer, precision


def train_case(name, fsdp, rank):
    """Train as train.py does. Return the checkpoint, all metrics, and the share of the weights on this rank."""
    architecture, flags = CASES[name]
    args = options(f'--batch-size 4 --model-ema --model-ema-decay 0.5 {flags}', fsdp=fsdp)
    args = replace(args, torchcompile=args.torchcompile if fsdp else None)  # compiled must equal uncompiled
    dtype = torch.float32 if args.amp else torch.float64
    task, optimizer, precision = build_all(args, architecture, rank, dtype)
    metrics = [evaluate(task.get_eval_model(), batches(rank, False, dtype), args, CPU, precision, log_interval=1)]
    for epoch in range(2):  # an evaluation may come first, as in a run that is resumed before it
        step = Step(Training(task, optimizer, args, CPU, precision), NoCheck())
        losses, _ = loop.train_one_epoch(epoch, step, batches(rank, args.agmax, dtype))
        metrics.append(losses)
        for ema in (False, True):
            batch_norm.distribute_batch_norm(args, task.get_trainable_module(ema=ema))
            metrics.append(evaluate(
                task.get_eval_model(ema=ema), batches(rank, False, dtype), args, CPU, precision, log_interval=1))
    manager.check_weights(task, CPU)
    state = sharding.WholeState(task, optimizer, keep=True)
    state.gather()
    saved = {**state.get_checkpoint_state(), **state.get_checkpoint_state(ema=True), 'optimizer': state.state_dict()}
    parts = [*task.get_trainable_module().parameters(), *task.get_trainable_module(ema=True).parameters(),
             *(value for values in optimizer.state.values() for value in values.values() if value.ndim)]
    local = sum((part.to_local() if isinstance(part, DTensor) else part).numel() for part in parts)
    scale = precision.scaler and precision.scaler.scale
    return dict(saved=saved, metrics=metrics, scale=scale, share=local / sum(part.numel() for part in parts))


def updates_by_all_optimizers():
    """Weights of a layer after two updates, by optimizer: updates of the whole weights, and of shards."""
    generator = torch.Generator().manual_seed(0)
    input, target = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    flags, found = options('--lr 0.01 --weight-decay 0.1'), {}
    for name in sharding.OPTIMIZERS:
        args = replace(flags, opt=name)
        for shards in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, CLASSES, dtype=torch.float64)
            task = build_task(args, model, CPU, build.Precision())
            optimizer = optimization.build_optimizer(args, task)
            if shards:
                build.compile_and_distribute(args, task, optimizer, CPU)
            for _ in range(2):
                optimizer.zero_grad()
                task(input, target)['loss'].backward()
                optimizer.step()
            found.setdefault(name, []).append([sharding.whole(value.detach()) for value in model.parameters()])
    return found


def complaints(rank):
    """Messages about a shard of rank 1 that is not finite, and about a weight without dimensions."""
    args = options('--agmax')
    task, _, _ = build_all(args, 'test_vit', rank, torch.float32)
    if rank == 1:
        task.get_trainable_module().model.head.weight.to_local().detach().fill_(torch.nan)
    with pytest.raises(NonFiniteError) as error:
        manager.check_weights(task, CPU)
    task, optimizer = build_task(args, Scaled(4, 2), CPU, build.Precision()), None
    with pytest.raises(OptionError) as other:
        sharding.shard_task(task, optimizer, CPU)
    return str(error.value), str(other.value)


class Scaled(torch.nn.Linear):
    """A classifier with a weight that has no dimension to shard along."""
    num_classes = 2

    def __init__(self, *args):
        super().__init__(*args)
        self.gain = torch.nn.Parameter(torch.ones(()))


def run_train(name, rank, folder, photos):
    """A run of train.py, as torchrun starts it."""
    fsdp, epochs, start = RUNS[name]
    resume = f'--resume {folder}/{start}/last.pth.tar'.split(' ', 1) if start else []
    args = parse_train_args([
        str(photos), *'--model test_resnet --num-classes 3 --img-size 32 -b 2 -j 0 --agmax'.split(),
        *'--scale 1 1 --ratio 1 1 --hflip 0 --color-jitter 0 --train-interpolation bilinear'.split(),
        *'--sched none --opt adamw --lr 1e-3 --warmup-epochs 0 --model-ema --model-ema-decay 0.5'.split(),
        '--recovery-interval', '2',
        '--epochs', str(epochs), '--output', str(folder), '--experiment', name, *resume])
    job_start.init_distributed_device_so = partial(
        distributed.init_distributed_device_so, dist_url=f'file://{folder}/store {name}?rank={rank}&world_size={RANKS}')
    os.environ.update(WORLD_SIZE=str(RANKS), RANK=str(rank), LOCAL_RANK=str(rank))
    training.train(replace(args, fsdp=fsdp))


def run_rank(rank, folder, photos, barrier):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=RANKS)
    for name in CASES:
        torch.save([train_case(name, fsdp, rank) for fsdp in (False, True)], f'{folder}/{name}-{rank}.pt')
    torch.save(complaints(rank), f'{folder}/complaints-{rank}.pt')
    torch.save(updates_by_all_optimizers(), f'{folder}/optimizers-{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()
    for name in RUNS:
        run_train(name, rank, folder, photos)
        barrier.wait()  # the first rank writes on when the process group has ended


@pytest.fixture(scope='module')
def folder(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp('ranks')
    barrier = torch.multiprocessing.get_context('spawn').Barrier(RANKS)
    ranks = start_ranks(RANKS, folder / 'logs', run_rank, int, folder, photos, barrier, environment=no_environment)
    assert finish_ranks(ranks, 600) == [0] * RANKS, logs(folder / 'logs')
    return folder


def load_run(folder, name):
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(folder / name / 'last.pth.tar', weights_only=True)


@pytest.mark.parametrize('name', CASES)
def test_fsdp_equals_ddp_and_each_rank_holds_its_share(folder, name):
    # AMP is for float32 weights, and torch.compile may take another path through attention.
    tolerances = {'bfloat16': dict(rtol=1e-4, atol=1e-6), 'float16': dict(rtol=1e-4, atol=1e-6),
                  'compiled': dict(rtol=1e-6, atol=1e-9)}
    tolerance = tolerances.get(name, dict(rtol=1e-9, atol=1e-12))
    shares = []
    for rank in range(RANKS):
        expected, sharded = torch.load(folder / f'{name}-{rank}.pt')
        torch.testing.assert_close(sharded['metrics'], expected['metrics'], **tolerance)
        torch.testing.assert_close(sharded['saved'], expected['saved'], **tolerance)
        assert sharded['scale'] == expected['scale']
        assert expected['share'] == 1
        shares.append(sharded['share'])
    assert sum(shares) == pytest.approx(1)
    assert max(shares) < 0.52


def test_updates_of_shards_equal_those_of_whole_weights(folder):
    for rank in range(RANKS):
        updated = torch.load(folder / f'optimizers-{rank}.pt')
        assert tuple(updated) == sharding.OPTIMIZERS
        for name, (expected, found) in updated.items():
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


def test_the_documentation_lists_the_optimizers():
    text = (REPOSITORY / 'docs' / 'scale.md').read_text().split('Optimizers that work with `--fsdp`: ')[1]
    assert tuple(text.split('.')[0].split()) == sharding.OPTIMIZERS


def test_ranks_in_float16_skip_the_same_updates(folder):
    results = [result for rank in range(RANKS) for result in torch.load(folder / f'float16-{rank}.pt')]
    scale, = {result['scale'] for result in results}
    steps, = {int(result['saved']['optimizer']['state'][0]['step']) for result in results}
    assert 0 < steps < 6 and scale == SCALE / 2 ** (6 - steps)


def test_one_shard_that_is_not_finite_stops_every_rank(folder):
    messages = [torch.load(folder / f'complaints-{rank}.pt')[0] for rank in range(RANKS)]
    assert messages[0] == messages[1]
    assert 'model.head.weight' in messages[0]


def test_a_weight_that_cannot_be_sharded_is_named(folder):
    assert 'model.gain' in torch.load(folder / 'complaints-0.pt')[1]


@pytest.mark.parametrize('name, same', [
    ('half fsdp', 'half ddp'), ('ddp, then fsdp', 'ddp'), ('fsdp, then ddp', 'ddp')])
def test_a_run_equals_ddp_also_if_resumed_from_the_other(folder, name, same):
    checkpoint, expected = load_run(folder, name), load_run(folder, same)
    assert checkpoint.keys() == expected.keys()
    for key in ('state_dict', 'state_dict_ema', 'task_state', 'task_state_ema', 'optimizer'):
        torch.testing.assert_close(checkpoint[key], expected[key], rtol=1e-5, atol=1e-7)
    metrics, expected_metrics = checkpoint['agmax_timm']['metrics'], expected['agmax_timm']['metrics']
    assert metrics.keys() == expected_metrics.keys() == {'raw', 'ema'}
    for weights in metrics:
        assert metrics[weights] == pytest.approx(expected_metrics[weights], rel=1e-5)


def test_checkpoints_load_in_plain_timm(folder):
    path = folder / 'ddp, then fsdp'
    assert list(path.glob('recovery-1-*.pth.tar'))
    for key, use_ema in (('state_dict', False), ('state_dict_ema', True)):
        model = timm.create_model('test_resnet', num_classes=3)
        timm.models.load_checkpoint(model, str(path / 'last.pth.tar'), use_ema=use_ema)
        torch.testing.assert_close(dict(model.state_dict()), dict(load_run(folder, path.name)[key]), rtol=0, atol=0)


@pytest.mark.parametrize('architecture, container, depths', [
    ('resnet18', 'layer{}.{}', {1: 2, 2: 2, 3: 2, 4: 2}),
    ('vit_tiny_patch16_224', 'blocks.{1}', {0: 12}),
    ('convnext_atto', 'stages.{}.blocks.{}', {0: 2, 1: 2, 2: 6, 3: 2}),
    ('efficientnet_b0', 'blocks.{}.{}', {0: 1, 1: 2, 2: 2, 3: 3, 4: 3, 5: 4, 6: 1}),
])
def test_sharded_layers_are_the_blocks_of_the_model(architecture, container, depths):
    with torch.device('meta'):
        model = timm.create_model(architecture)
    names = {module: name for name, module in model.named_modules()}
    expected = [container.format(stage, block) for stage, depth in depths.items() for block in range(depth)]
    assert [names[layer] for layer in sharding.find_layers(model)] == expected


@pytest.mark.parametrize('flags, words', [
    ('--clip-grad 1 --clip-mode agc', ['--clip-mode agc', '--fsdp', 'norm']),
    ('--model-ema --model-ema-force-cpu', ['--model-ema-force-cpu', '--fsdp']),
    ('--model-ema --model-dtype bfloat16', ['--model-ema', '--model-dtype bfloat16', '--fsdp']),
    ('--kd-model-name resnet18', ['--kd-model-name', '--fsdp']),
    ('--dataset wds/x --num-classes 3', ["--dataset 'wds/x'", '--fsdp', "--val-split ''"]),
])
def test_options_that_cannot_be_combined_with_sharding_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_train_args(['data', '--fsdp', *flags.split()])
    message = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 2 and all(word in message for word in words), message


@pytest.mark.parametrize('flags, distributed, words', [
    ('', False, ['--fsdp', 'torchrun']),
    ('--opt muon', True, ["--opt 'muon'", '--fsdp', 'adamw']),
])
def test_options_that_exclude_sharding_are_refused(flags, distributed, words, monkeypatch):
    monkeypatch.setattr(sharding, 'is_distributed', lambda: distributed)
    with pytest.raises(OptionError) as error:
        sharding.check_sharding(options(flags))
    assert all(word in str(error.value) for word in words), error.value
    monkeypatch.setattr(sharding, 'is_distributed', lambda: True)
    sharding.check_sharding(options('--clip-grad 1 --model-ema --opt adamw'))
