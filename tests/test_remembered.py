"""Agreement with remembered predictions: the loss and the memory against formulas, mixing, ranks and runs."""
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import unwrap_model
from torch import nn

from agmax_timm import AgMaxMemoryTask
from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args
from agmax_timm.remembered import PredictionMemory
from agmax_timm.training import run as training
from tests.helpers.exact import FLAGS
from tests.helpers.ranks import finish_ranks, logs, no_environment, start_ranks
from tests.helpers.run_files import load

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))
import agreement_pilots

MEMORY = ['-j', '0', '--agmax-teacher', 'memory']


def logits_task(num_images=4, classes=3, **kwargs):
    """A task whose model returns its input, so that the input of a batch is its logits."""
    class Logits(nn.Module):
        num_classes = classes

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            return x * self.scale

    return AgMaxMemoryTask(Logits(), num_images=num_images, verbose=False, **kwargs)


def draw_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(m, p):
    return sum(a * math.log(a / b) for a, b in zip(m, p) if a)


# The formula

def test_loss_and_memory_equal_the_formula_over_three_updates():
    task = logits_task(weight=0.7, momentum=0.6)
    remembered = {}
    for step, (images, target) in enumerate([([2, 0], [1, 2]), ([0, 3], [0, 0]), ([3, 2], [2, 1])]):
        z = draw_logits(2, 3, seed=step)
        task.ramp = step / 4
        parts = task(z, torch.tensor(target), torch.tensor(images))
        ce = agreement = 0.
        for i, y, row in zip(images, target, z.tolist()):
            p = softmax(row)
            ce -= math.log(p[y]) / 2
            agreement += kl(remembered[i], p) / 2 if i in remembered else 0.
            remembered[i] = [0.6 * a + 0.4 * b for a, b in zip(remembered[i], p)] if i in remembered else p
        assert parts['ce'].item() == pytest.approx(ce, rel=1e-12)
        assert parts['agreement'].item() == pytest.approx(agreement, rel=1e-12)
        assert parts['loss'].item() == pytest.approx(ce + step / 4 * 0.7 * agreement, rel=1e-12)
    means, seen = task.memory.lookup(torch.arange(4))
    assert seen.tolist() == [True, False, True, True]
    for i, expected in remembered.items():
        assert means[i].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_a_constant_memory():
    task = logits_task(weight=0.7)
    indices, target = torch.tensor([1, 3]), torch.tensor([0, 2])
    task(draw_logits(2, 3), target, indices)
    m, _ = task.memory.lookup(indices)
    z = draw_logits(2, 3, seed=1).requires_grad_()
    task(z, target, indices)['loss'].backward()
    p = z.detach().softmax(1)
    torch.testing.assert_close(z.grad, (p - F.one_hot(target, 3) + 0.7 * (p - m)) / 2, rtol=1e-12, atol=1e-14)


def test_the_task_equals_the_pilot():
    images = agreement_pilots.Images(torch.zeros(6, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
    pilot = agreement_pilots.Step(
        agreement_pilots.parse_arm('memory momentum=0.7'), nn.Identity(), images, torch.Generator())
    task = logits_task(6, momentum=0.7, weight=0.5)
    for step in range(4):
        indices, z = torch.randperm(6)[:3], draw_logits(3, 3, seed=step).float()
        expected = F.cross_entropy(z, images.labels[indices]) + 0.5 * pilot.agree_with_memory(indices, z)
        torch.testing.assert_close(task(z, images.labels[indices], indices)['loss'].float(), expected)
    torch.testing.assert_close(task.memory.values.float(), pilot.memory)


# The memory

def test_all_classes_as_the_largest_ones_equal_the_whole_memory():
    whole, largest = logits_task(), logits_task(topk=3)
    for step in range(3):
        batch = draw_logits(3, 3, seed=step), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
        torch.testing.assert_close(largest(*batch)['loss'], whole(*batch)['loss'], rtol=1e-12, atol=0)


def test_the_rest_is_spread_over_the_classes_that_are_not_kept():
    memory = PredictionMemory(2, 4, topk=2, dtype=torch.float64)
    index = torch.tensor([1])
    memory.update(index, torch.tensor([[.1, .5, .1, .3]]))
    torch.testing.assert_close(memory.lookup(index)[0], torch.tensor([[.1, .5, .1, .3]]).double())
    memory.update(index, torch.tensor([[.7, .1, .2, 0.]]).double())  # 0.8 m + 0.2 p = .22 .42 .12 .24
    torch.testing.assert_close(memory.lookup(index)[0], torch.tensor([[.17, .42, .17, .24]]).double())
    assert sum(buffer.nbytes for buffer in memory.buffers()) == 2 * (2 * (8 + 4) + 1)


def test_an_image_that_occurs_twice_moves_by_the_mean_of_both_changes():
    memory = PredictionMemory(3, 2, momentum=0.5)
    memory.update(torch.tensor([2, 0]), torch.tensor([[.5, .5], [.9, .1]]))
    memory.update(torch.tensor([2, 1, 2]), torch.tensor([[1., 0.], [.3, .7], [.8, .2]]))
    torch.testing.assert_close(memory.values, torch.tensor([[.9, .1], [.3, .7], [.7, .3]]))


def test_the_mean_of_an_image_is_never_negative():
    """A sum of changes would be negative by rounding for some classes, and the agreement NaN."""
    memory = PredictionMemory(1, 100, momentum=0.)
    index = torch.tensor([0])
    memory.update(index, torch.rand(1, 100, generator=torch.Generator().manual_seed(0)).softmax(1))
    memory.update(index.repeat(3), F.one_hot(index, 100).float().repeat(3, 1))
    assert torch.equal(memory.values, F.one_hot(index, 100).float())


def test_an_image_with_one_finite_prediction_of_two_remembers_that_one():
    memory = PredictionMemory(1, 2)
    memory.update(torch.tensor([0, 0]), torch.tensor([[math.nan] * 2, [.2, .8]]))
    assert memory.seen.item() and torch.equal(memory.values, torch.tensor([[.2, .8]]))


def test_predictions_that_are_not_finite_are_not_remembered():
    memory = PredictionMemory(3, 2)
    memory.update(torch.tensor([1]), torch.tensor([[.4, .6]]))
    memory.update(torch.tensor([0, 1, 2]), torch.tensor([[.2, .8], [math.nan] * 2, [math.nan] * 2]))
    assert memory.seen.tolist() == [True, True, False]
    torch.testing.assert_close(memory.values[:2], torch.tensor([[.2, .8], [.4, .6]]))


def test_a_memory_of_other_images_is_refused_and_none_is_announced(caplog):
    task = logits_task()
    assert task.get_task_state(ema=True) == {} and not list(task.memory.parameters())
    largest = logits_task(classes=4, topk=2)
    for one, other, sizes in ((task, logits_task(5), '5 images x 3 classes'),
                              (task, logits_task(classes=4), '4 images x 4 classes'),
                              (task, logits_task(topk=3), '4 images x the 3 largest of 3 classes'),
                              (largest, logits_task(topk=2), '4 images x the 2 largest of 3 classes'),
                              (largest, logits_task(classes=5, topk=2), '4 images x the 2 largest of 5 classes')):
        with pytest.raises(ValueError, match=f'the checkpoint remembers {sizes}, this run 4 images x '):
            one.load_task_state(other.get_task_state())
    task.load_task_state({})
    assert 'holds no remembered predictions' in caplog.text


def test_a_model_that_gives_other_logits_is_refused():
    with pytest.raises(ValueError, match='a classifier of 2 classes or more, Logits has 1'):
        logits_task(classes=1)
    with pytest.raises(ValueError, match='Logits gives 5 logits, AgMax was created for 3 classes'):
        logits_task()(draw_logits(2, 5), torch.tensor([0, 1]), torch.tensor([0, 1]))


@pytest.mark.parametrize('criterion, target, message', [
    (nn.CrossEntropyLoss, torch.tensor([0, 1]), 'got the class CrossEntropyLoss'),
    (nn.CrossEntropyLoss(reduction='none'), torch.tensor([0, 1]), r'must return a scalar, got a tensor \[2\]'),
    (None, torch.ones(2, 4) / 4, 'a column for each of the 3 classes, got 4'),
])
def test_losses_and_targets_that_agmax_refuses_are_refused(criterion, target, message):
    with pytest.raises(ValueError, match=message):
        task = AgMaxMemoryTask(nn.Linear(5, 3), criterion, num_images=2, num_classes=3, verbose=False)
        task(torch.randn(2, 5), target, torch.arange(2))


def test_nothing_is_remembered_in_evaluation():
    task = logits_task().eval()
    assert task(draw_logits(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1]))['agreement'] == 0
    assert not task.memory.seen.any()


def test_a_class_that_the_model_excludes_adds_nothing():
    task, indices = logits_task(), torch.tensor([0, 1])
    z = draw_logits(2, 3)
    z[:, 2] = -math.inf
    for _ in range(2):
        parts = task(z.clone(), torch.tensor([0, 1]), indices)
    assert parts['agreement'].item() == pytest.approx(0, abs=1e-12) and task.memory.values[:2, 2].sum() == 0


def test_the_memory_of_a_bfloat16_model_is_in_float32():
    model = nn.Linear(4, 3, dtype=torch.bfloat16)
    task = AgMaxMemoryTask(model, num_images=2, num_classes=3, verbose=False)
    task(torch.ones(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert task.memory.values.dtype == torch.float32
    torch.testing.assert_close(task.memory.values.sum(1), torch.ones(2))


@pytest.mark.parametrize('indices', [[0, 4], [-1, 0], [0], [0., 1.], [False, True]])
def test_wrong_indices_are_refused(indices):
    with pytest.raises(ValueError, match='indices must be'):
        logits_task()(draw_logits(2, 3), torch.tensor([0, 1]), torch.tensor(indices))


def test_one_weight_for_each_image_is_required():
    with pytest.raises(ValueError, match=r'lam \[B\] or None, got .* and lam \[2, 1\]'):
        logits_task()(draw_logits(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2, 1))


@pytest.mark.parametrize('dtype', [torch.int32, torch.uint8])
def test_indices_may_have_any_type_of_whole_numbers(dtype):
    tasks, logits, indices = [logits_task(), logits_task()], draw_logits(3, 3), torch.tensor([0, 1, 0])
    for task, given in zip(tasks, (indices, indices.to(dtype))):
        task(logits, torch.tensor([0, 1, 2]), given)
    torch.testing.assert_close(*(task.memory.values for task in tasks), rtol=0, atol=0)


# Mixing

def test_mixed_images_agree_with_the_mix_of_their_memories():
    task = logits_task(weight=1., momentum=0.8)
    indices = torch.tensor([0, 1, 2, 3])
    task(draw_logits(3, 3), torch.tensor([0, 1, 2]), indices[:3])
    m = task.memory.values.clone()
    z, lam = draw_logits(4, 3, seed=1), torch.tensor([.7, .4, .9, 1.], dtype=torch.float64)
    parts = task(z, torch.tensor([0, 1, 2, 0]), indices, lam)
    p = z.softmax(1)
    # Image 0 is mixed with image 3, which is new. Image 3 is not mixed, and new.
    mixes = {1: .4 * m[1] + .6 * m[2], 2: .9 * m[2] + .1 * m[1]}
    expected = sum(kl(mix.tolist(), p[i].tolist()) for i, mix in mixes.items()) / 4
    assert parts['agreement'].item() == pytest.approx(expected, rel=1e-12)
    for i, mix in {0: m[0], **mixes}.items():  # the first one moves towards its mix with a new image
        moved = (m[i] + 0.2 * lam[i] * (p[i] - mix)).clamp(min=0)
        torch.testing.assert_close(task.memory.values[i], moved / moved.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(task.memory.values[3], p[3], rtol=1e-12, atol=0)


def test_an_image_that_is_not_mixed_agrees_although_its_partner_is_new():
    task = logits_task(weight=1.)
    task(draw_logits(1, 3), torch.tensor([0]), torch.tensor([0]))
    m, z = task.memory.values[0].tolist(), draw_logits(2, 3, seed=1)
    parts = task(z, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2))
    assert parts['agreement'].item() == pytest.approx(kl(m, softmax(z[0].tolist())) / 2, rel=1e-12)


@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_means_of_mixed_images_tend_to_the_predictions_for_the_images_alone(mode):
    """The network is perfect: it predicts each mix exactly. A mean of what it predicts would contain the partners."""
    task, draw = logits_task(60, 10, topk=None), torch.Generator().manual_seed(0)
    truth = F.one_hot(torch.arange(60) % 10, 10).double()
    for _ in range(60):
        for indices in torch.randperm(60, generator=draw).split(12):
            lam = torch.rand(12 if mode == 'elem' else 1, generator=draw, dtype=torch.float64).expand(12)
            mix = lam[:, None] * truth[indices] + (1 - lam[:, None]) * truth[indices].flip(0)
            task(mix.clamp(min=1e-9).log(), indices % 10, indices, lam)
    assert (task.memory.values * truth).sum(1).mean() > 0.95


# Ranks

def trained(task, batches, accumulate):
    """Train on groups of batches. Return weights and memory."""
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1)
    for start in range(0, len(batches), accumulate):
        group = batches[start:start + accumulate]
        for number, batch in enumerate(group):
            with nullcontext() if number + 1 == len(group) else task.no_sync():
                (task(*batch)['loss'] / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*unwrap_model(task.get_eval_model()).parameters(), task.memory.values, task.memory.seen]


def rank_task(topk=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    return AgMaxMemoryTask(model, num_images=16, topk=topk, weight=2., verbose=False)


def rank_batches(rank, ranks):
    """Six batches of 8 images in three epochs of 16, the share of a rank."""
    generator = torch.Generator().manual_seed(1)
    target, mine = torch.randint(5, (16,), generator=generator), slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    batches = [part for _ in range(3) for part in torch.randperm(16, generator=generator).split(8)]
    inputs = torch.randn(6, 8, 12, generator=generator, dtype=torch.float64)
    return [(input[mine], target[indices[mine]], indices[mine]) for input, indices in zip(inputs, batches)]


def remembered_of(rank, ranks):
    """The memory after three updates with factors, in which an image occurs on both ranks."""
    memory, generator = PredictionMemory(8, 5, dtype=torch.float64), torch.Generator().manual_seed(2)
    mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    for _ in range(3):
        indices = torch.randperm(8, generator=generator)
        indices[4:6] = indices[:2]
        p = torch.randn(8, 5, generator=generator, dtype=torch.float64).softmax(1)
        memory.update(indices[mine], p[mine], torch.rand(8, generator=generator, dtype=torch.float64)[mine])
    return memory.values


def run_rank(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    results = {}
    for topk in (None, 2):
        for accumulate in (1, 2):
            task = rank_task(topk).prepare_distributed()
            found = trained(task, rank_batches(rank, 2), accumulate)
            results[topk, accumulate] = [value.detach() for value in found]
    results['factors'] = remembered_of(rank, 2)
    torch.save(results, f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    ranks = start_ranks(2, tmp_path / 'logs', run_rank, int, tmp_path, environment=no_environment)
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path / 'logs')
    for rank in range(2):
        results = torch.load(tmp_path / f'{rank}.pt')
        torch.testing.assert_close(results.pop('factors'), remembered_of(0, 1), rtol=1e-12, atol=0)
        for (topk, accumulate), found in results.items():
            expected = trained(rank_task(topk), rank_batches(0, 1), accumulate)
            torch.testing.assert_close(found, [value.detach() for value in expected], rtol=1e-9, atol=1e-12)


# Runs

def test_a_run_remembers_and_its_checkpoint_is_one_of_timm(photos, tmp_path, monkeypatch):
    ramps, forward = [], AgMaxMemoryTask.forward

    def noted(task, *batch):
        ramps.append(task.ramp)
        return forward(task, *batch)

    monkeypatch.setattr(AgMaxMemoryTask, 'forward', noted)
    flags = [*FLAGS, *MEMORY, '--agmax-teacher-ramp', '0.5', '--epochs', '2', '--model-ema']
    results = training.train(parse_train_args(
        [str(photos), *flags, '--output', str(tmp_path), '--experiment', 'run']))
    assert ramps == [min(1, update / 6) for update in range(12)]
    assert results[0]['train']['agreement'] == 0 < results[1]['train']['agreement']
    path = tmp_path / 'run' / 'last.pth.tar'
    checkpoint = load(path)
    memory = checkpoint['task_state']['memory']
    assert memory['seen'].all() and 'task_state_ema' not in checkpoint
    torch.testing.assert_close(memory['values'].sum(1), torch.ones(12))
    model = timm.create_model('test_resnet', num_classes=3, checkpoint_path=str(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict_ema'][name])


def test_a_run_with_weight_zero_has_the_weights_of_plain_training(photos, tmp_path):
    """To the last bit, with mixed images and their labels."""
    flags = [str(photos), *FLAGS, '--epochs', '2', '-j', '0', '--smoothing', '0.1', '--cutmix', '1', '--mixup-mode',
             'elem', '--output', str(tmp_path)]
    for name, more in (('plain', []), ('memory', [*MEMORY, '--agmax-teacher-weight', '0'])):
        training.train(parse_train_args([*flags, *more, '--experiment', name]))
    ours, plain = (load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('memory', 'plain'))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize('flags, words', [
    ('--agmax', '--agmax cannot be combined with --agmax-teacher memory: it compares two views, and'),
    ('--aug-splits 2 --aa rand-m9', '--aug-splits cannot be combined'),
    ('--kd-model-name resnet18', '--kd-model-name cannot be combined'),
    ('--naflex-loader', '--naflex-loader cannot be combined'),
    ('--fsdp', '--fsdp cannot be combined'),
    ('--task multilabel --num-classes 3 --dataset hfds/x', '--task multilabel cannot be combined'),
    ('--dataset wds/x', "needs data that can be indexed, got --dataset 'wds/x'"),
    ('--agmax-teacher none --agmax-teacher-weight 1', '--agmax-teacher-weight needs --agmax-teacher memory'),
    ('--agmax-teacher-momentum 1', '--agmax-teacher-momentum must be 0 or more and below 1, got 1.0'),
])
def test_what_does_not_fit_is_refused_in_one_line(capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        parse_train_args(['DIR', *MEMORY, *flags.split()])
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and message.count('\n') == 1 and words in message


def test_more_classes_than_there_are_are_refused_by_the_flag(photos, tmp_path):
    flags = [str(photos), *FLAGS, *MEMORY, '--agmax-teacher-topk', '4', '--output', str(tmp_path)]
    with pytest.raises(OptionError, match='memory: --agmax-teacher-topk must be between 1 and the 3 classes, got 4'):
        training.train(parse_train_args(flags))
