"""Ranks that share a batch equal one process with the whole batch.

In float64, with a ViT: statistics of BatchNorm differ from rank to rank, so with it no two numbers of ranks are equal.
"""
import warnings
from argparse import Namespace
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from agmax_timm import AgMaxTask
from agmax_timm.base.distributed import global_mean
from agmax_timm.distillation import AgMaxDistillationTask
from agmax_timm.loss import agreement_terms
from agmax_timm.training.updates.finite_check import FiniteCheck
from agmax_timm.training.updates.losses import BatchLosses
from tests.helpers.ranks import finish_ranks, logs, no_environment, start_ranks

WORLD_SIZES = (1, 2, 4)
UNEQUAL = {1: [8], 2: [3, 5], 4: [1, 4, 2, 1]}
GROUPS = (2, 4, 8)  # images in a marginal
# Those with which a job compiles, in seconds. Of four ranks, a marginal of 4 images is over two.
GRAPHS = {1: (None, 4), 2: (None,), 4: (4,)}
CLASSES = 5


def build_task(kind='mi', **agmax):
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=CLASSES, img_size=32, depth=2).double()
    # wide weights: the predictions of a new ViT are all uniform, on any share of the batch
    return AgMaxTask(model, kind=kind, init_std=0.2, verbose=False, **agmax)


def build_distillation_task():
    torch.manual_seed(1)
    teacher = timm.create_model('test_resnet', num_classes=CLASSES).double()
    nn.init.normal_(teacher.fc.weight, std=0.5)
    model = build_task().get_eval_model()
    return AgMaxDistillationTask(model, teacher, init_std=0.2, temperature=2.0, verbose=False)


def views(start=0, stop=8):
    """Images and targets from start to stop of a batch of 8, view-major."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 8, 3, 32, 32, generator=generator, dtype=torch.float64)
    target = torch.randint(CLASSES, (8,), generator=generator)
    return images[:, start:stop].flatten(0, 1), target[start:stop].repeat(2)


def share(rank, sizes):
    start = sum(sizes[:rank])
    return views(start, start + sizes[rank])


def gradients(task):
    return {name.replace('module.', ''): p.grad for name, p in task.trainable_module.named_parameters()}


def train_step(task, batch, part='loss'):
    result = task(*batch)
    result[part].backward()
    return {name: value.detach() for name, value in result.items() if name != 'output'}, gradients(task)


def accumulate(task, batches):
    """Gradients of the mean loss, synchronised only with the last batch."""
    with task.no_sync():
        for batch in batches[:-1]:
            (task(*batch)['loss'] / len(batches)).backward()
    (task(*batches[-1])['loss'] / len(batches)).backward()
    return gradients(task)


def mean_over_ranks(parts):
    for value in parts.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return parts


def reduced(sizes):
    """Context that records the sizes of all collectives called from Python. Those of DDP are not."""
    patch = pytest.MonkeyPatch()
    for name in dir(dist):
        if name.startswith(('all_', 'broadcast', 'gather', 'reduce', 'scatter')) and callable(getattr(dist, name)):
            original = getattr(dist, name)
            patch.setattr(dist, name, lambda *args, _name=name, _original=original, **kwargs: (
                sizes.append((_name, args[0].numel())), _original(*args, **kwargs))[1])
    return closing(SimpleNamespace(close=patch.undo))


def collectives(rank, world_size):
    """Collectives of a checked update: in its forward pass, for the check, and in its backward pass."""
    outcome = {}
    for kind in ('mi', 'mse'):
        task = build_task(kind).prepare_distributed()
        check = FiniteCheck(Namespace(nan_policy='stop'), torch.device('cpu'))
        forward, looked, backward = [], [], []
        with reduced(forward):
            result = task(*share(rank, [8 // world_size] * world_size))
        with reduced(looked):
            check.check_losses(BatchLosses.of(result, 8 // world_size), last=True)
        with reduced(backward):
            result['loss'].backward()
            check.check_gradients([*task.trainable_module.parameters()], check.agree())
        outcome[kind] = forward, looked, backward
    return outcome


def graphs(rank, world_size, **agmax):
    """Number of graphs of the compiled task, its loss, and the loss of the task without compilation."""
    torch._dynamo.reset()
    batch, count = share(rank, [8 // world_size] * world_size), []

    def note(graph, inputs):
        count.append(graph)
        return graph

    task = build_task(**agmax)
    loss = torch.compile(task, backend=note)(*batch)['loss']
    return len(count), loss.detach(), task(*batch)['loss'].detach()


def rank_mean(rank):
    return torch.arange(6.0, dtype=torch.float64).view(2, 3) * (rank + 1)


def check_rank(rank, world_size):
    equal, unequal = [8 // world_size] * world_size, UNEQUAL[world_size]
    outcome = {}
    for kind in ('mi', 'mse', 'kl', 'ce'):
        parts, grads = train_step(build_task(kind).prepare_distributed(), share(rank, equal))
        outcome[kind] = mean_over_ranks(parts), grads
    parts, grads = train_step(build_distillation_task().prepare_distributed(), share(rank, equal))
    outcome['distilled'] = mean_over_ranks(parts), grads
    parts, grads = train_step(build_task().prepare_distributed(), share(rank, unequal), part='agreement')
    outcome['unequal'] = parts['agreement'], grads

    outcome['groups'] = {}
    for images in GROUPS:
        sizes = []
        with reduced(sizes):
            parts, grads = train_step(build_task(marginal_images=images).prepare_distributed(), share(rank, equal))
        outcome['groups'][images] = mean_over_ranks(parts), grads, sizes

    half = 4 // world_size
    micro_batches = [views(i * 4 + rank * half, i * 4 + (rank + 1) * half) for i in range(2)]
    outcome['accumulated'] = accumulate(build_task().prepare_distributed(), micro_batches)
    outcome['accumulated groups'] = accumulate(build_task(marginal_images=4).prepare_distributed(), micro_batches)

    local_mean = rank_mean(rank).requires_grad_()
    mean = global_mean(local_mean, count=unequal[rank])
    mean.sum().backward()
    outcome['mean'] = mean.detach(), local_mean.grad

    outcome['graphs'] = [graphs(rank, world_size, marginal_images=images) for images in GRAPHS[world_size]]
    if world_size > 1:
        outcome['collectives'] = collectives(rank, world_size)
    task = build_task().prepare_distributed()
    outcome['keys'] = list(task.get_checkpoint_state()['state_dict'])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('agmax_timm.loss.global_mean', lambda local_mean, count: local_mean)
        parts, grads = train_step(build_task().prepare_distributed(), share(rank, equal))
        outcome['per-rank marginals'] = mean_over_ranks(parts), grads
    return outcome


def run_rank(rank, folder):
    """Run jobs of all sizes in one set of processes."""
    for world_size in WORLD_SIZES:
        if rank < world_size:
            dist.init_process_group('gloo', f'file://{folder}/store{world_size}', rank=rank, world_size=world_size)
            torch.save(check_rank(rank, world_size), f'{folder}/{world_size}-{rank}.pt')
            dist.barrier()
            dist.destroy_process_group()


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    ranks = start_ranks(max(WORLD_SIZES), folder / 'logs', run_rank, int, folder, environment=no_environment)
    assert finish_ranks(ranks, 600) == [0] * len(ranks), logs(folder / 'logs')
    return {size: [torch.load(folder / f'{size}-{rank}.pt') for rank in range(size)] for size in WORLD_SIZES}


def assert_near(actual, expected, tolerance=1e-9):
    """The tolerance is relative to the largest entry. Entries that are 0 in theory contain rounding errors."""
    scale = max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


def assert_all_near(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_near(actual[name], expected[name])


@pytest.mark.parametrize('world_size', WORLD_SIZES)
@pytest.mark.parametrize('kind', ['mi', 'mse', 'kl', 'ce'])
def test_ranks_equal_one_process(outcomes, world_size, kind):
    expected_parts, expected_gradients = train_step(build_task(kind), views())
    for outcome in outcomes[world_size]:
        parts, grads = outcome[kind]
        assert_all_near(parts, expected_parts)
        assert_all_near(grads, expected_gradients)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_ranks_with_a_teacher_equal_one_process(outcomes, world_size):
    expected_parts, expected_gradients = train_step(build_distillation_task(), views())
    assert expected_parts['kd_loss'] > 0.1
    for outcome in outcomes[world_size]:
        parts, grads = outcome['distilled']
        assert_all_near(parts, expected_parts)
        assert_all_near(grads, expected_gradients)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_unequal_ranks_have_the_marginals_of_the_whole_batch(outcomes, world_size):
    expected_parts, expected_gradients = train_step(build_task(), views(), part='agreement')
    for outcome in outcomes[world_size]:
        agreement, grads = outcome['unequal']
        assert_near(agreement, expected_parts['agreement'])
        assert_all_near(grads, expected_gradients)


def one_process_by_groups(images):
    """Loss parts and gradients of the mean over batches of this many images, each with its own marginals."""
    task, count = build_task(), 8 // images
    totals = {}
    for start in range(0, 8, images):
        result = task(*views(start, start + images))
        (result['loss'] / count).backward()
        for name, value in result.items():
            if name != 'output':
                totals[name] = totals.get(name, 0) + value.detach() / count
    return totals, gradients(task)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
@pytest.mark.parametrize('images', GROUPS)
def test_groups_equal_one_process_with_a_batch_of_a_group(outcomes, world_size, images):
    expected_parts, expected_gradients = one_process_by_groups(images)
    ranks = images * world_size // 8  # of a group; 0 and 1: a rank holds whole groups, and needs no other
    for outcome in outcomes[world_size]:
        parts, grads, collectives = outcome['groups'][images]
        assert_all_near(parts, expected_parts)
        assert_all_near(grads, expected_gradients)
        assert collectives == ([('all_reduce', world_size // ranks * (3 * CLASSES + 1))] if ranks > 1 else [])


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_a_group_of_the_whole_batch_has_the_published_objective(outcomes, world_size):
    for outcome in outcomes[world_size]:
        for grouped, published in zip(outcome['groups'][8], outcome['mi']):
            assert_all_near(grouped, published)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_accumulation_does_not_change_the_objective_of_groups(outcomes, world_size):
    _, expected = one_process_by_groups(4)
    for outcome in outcomes[world_size]:
        assert_all_near(outcome['accumulated groups'], expected)


@pytest.mark.parametrize('world_size', [2, 4])
def test_marginals_of_each_rank_alone_are_detected(outcomes, world_size):
    """The comparison with one process detects marginals that are not reduced over the ranks."""
    expected_parts, expected_gradients = train_step(build_task(), views())
    parts, grads = outcomes[world_size][0]['per-rank marginals']
    assert parts['agreement'] - expected_parts['agreement'] > 0.02
    name = 'model.head.weight'
    assert (grads[name] - expected_gradients[name]).norm() > 0.02 * expected_gradients[name].norm()


@pytest.mark.parametrize('world_size', [2, 4])
def test_an_update_has_one_collective_for_the_marginals_and_one_for_the_check(outcomes, world_size):
    """In addition to those of DDP. The backward pass has none: the gradient of the marginals needs no other rank."""
    for outcome in outcomes[world_size]:
        flags = [('all_reduce', 7)]  # save, stop, late; loss, ce, agreement, divergence
        assert outcome['collectives']['mi'] == ([('all_reduce', 3 * CLASSES + 1)], flags, [])  # and a count
        assert outcome['collectives']['mse'] == ([], flags, [])


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_ranks_compile_the_task_and_its_loss_to_one_graph(outcomes, world_size):
    for outcome in outcomes[world_size]:
        for count, loss, expected in outcome['graphs']:
            assert count == 1
            assert_near(loss, expected)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_accumulation_on_ranks_equals_that_of_one_process(outcomes, world_size):
    expected = accumulate(build_task(), [views(0, 4), views(4, 8)])
    for outcome in outcomes[world_size]:
        assert_all_near(outcome['accumulated'], expected)


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_global_mean_weighs_ranks_by_their_samples(outcomes, world_size):
    weights = [count / 8 for count in UNEQUAL[world_size]]
    expected = sum(weight * rank_mean(rank) for rank, weight in enumerate(weights))
    for outcome, weight in zip(outcomes[world_size], weights):
        mean, gradient = outcome['mean']
        torch.testing.assert_close(mean, expected)
        # DDP will divide by the number of ranks
        torch.testing.assert_close(gradient, torch.full_like(gradient, weight * world_size))


@pytest.mark.parametrize('world_size', WORLD_SIZES)
def test_a_checkpoint_of_a_distributed_task_has_the_names_of_the_model(outcomes, world_size):
    assert outcomes[world_size][0]['keys'] == list(build_task().trainable_module.model.state_dict())


def test_without_a_process_group_the_mean_is_the_input():
    local_mean = torch.randn(3, 5, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert global_mean(local_mean, count=4) is local_mean


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def expected_terms(z):
    """Agreement and divergence of z [3, B, K]: the logits of both views, and the joint logits."""
    p1, p2, p12 = [softmax(logits) for logits in z]
    marginals = np.stack([p.mean(axis=0) for p in (p1, p2, p12)])
    agreement = (marginals * np.log(marginals)).sum() / 3
    return agreement, 4 * (np.abs(p12 - p1).mean() + np.abs(p12 - p2).mean()) / 2


def expected_accumulated(z, micro_batches):
    return sum(sum(expected_terms(part)) for part in np.split(z, micro_batches, axis=1)) / micro_batches


def finite_differences(function, z, step=1e-5):
    gradient = np.zeros_like(z)
    for index in np.ndindex(z.shape):
        shift = np.zeros_like(z)
        shift[index] = step
        gradient[index] = (function(z + shift) - function(z - shift)) / (2 * step)
    return gradient


@pytest.mark.parametrize('micro_batches', [1, 2, 4])
def test_accumulation_is_the_mean_over_micro_batches(micro_batches):
    z = np.random.default_rng(0).normal(scale=2, size=(3, 8, 4))
    logits = torch.tensor(z, requires_grad=True)
    losses = []
    for micro_batch in logits.chunk(micro_batches, dim=1):
        losses.append(sum(agreement_terms(*micro_batch)) / micro_batches)
        losses[-1].backward()
    assert sum(losses).item() == pytest.approx(expected_accumulated(z, micro_batches), rel=1e-12)
    expected = finite_differences(lambda shifted: expected_accumulated(shifted, micro_batches), z)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_the_agreement_of_micro_batches_is_above_that_of_the_whole_batch(seed):
    """The entropy is concave: that of the mean is at least the mean of the entropies."""
    logits = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(seed)) * 3
    whole = agreement_terms(*logits)[0]
    micro = torch.stack([agreement_terms(*part)[0] for part in logits.chunk(4, dim=1)])
    assert micro.mean() > whole
