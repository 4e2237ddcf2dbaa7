"""The AgMax task: forward pass, averages, checkpoints, parameter groups, compilation and initial weights."""
import copy
import logging
import math

import pytest
import timm
import torch
import torchvision
from timm.optim import create_optimizer_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, dispatch_clip_grad
from torch import nn

from agmax_timm import AgMaxLoss, AgMaxTask, QNet
from agmax_timm.loss import AGREEMENT_KINDS
from tests.helpers.plain_timm import run_in_plain_timm

torch.set_num_threads(1)  # small tensors: more threads only wait for each other

CLASSES = 10


def create_model(name='test_vit', seed=0, **kwargs):
    torch.manual_seed(seed)
    if name == 'test_vit':
        kwargs['img_size'] = 32
    return timm.create_model(name, num_classes=CLASSES, **kwargs)


def create_task(name='test_vit', seed=0, **kwargs):
    model = create_model(name, seed)
    return AgMaxTask(model, verbose=False, **kwargs)


def batch(images=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2 * images, 3, size, size, generator=generator)
    return input, torch.randint(CLASSES, (images,), generator=generator).repeat(2)


def train_step(task, optimizer, seed=0):
    loss = task(*batch(seed=seed))['loss']
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def cloned(state_dict):
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=0)


# Forward

def test_one_forward_sees_both_views():
    task = create_task()
    seen = []
    task.get_eval_model().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    input, target = batch()
    result = task(input, target)
    assert [images is input for images in seen] == [True]
    assert set(result) == {'loss', 'output', 'ce', 'agreement', 'divergence'}
    assert result['output'].shape == (8, CLASSES)


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_the_result_equals_the_loss_of_model_and_qnet(kind):
    task = create_task(kind=kind, weight=0.5, divergence_weight=2.0, init_std=0.2)
    input, target = batch()
    result = task(input, target)
    z1, z2 = task.get_eval_model()(input).chunk(2)
    joint_logits = None
    if kind == 'mi':
        qnet = task.get_task_state()['qnet']
        hidden = torch.cat([z1, z2], dim=1) @ qnet['0.weight'].T + qnet['0.bias']
        joint_logits = hidden.relu() @ qnet['2.weight'].T + qnet['2.bias']
    expected = AgMaxLoss(kind=kind, weight=0.5, divergence_weight=2.0)(torch.cat([z1, z2]), joint_logits, target)
    torch.testing.assert_close({name: result[name] for name in expected}, expected)
    torch.testing.assert_close(result['output'], torch.cat([z1, z2]))
    # also through the Q-network: nothing is detached
    parameters = list(task.get_eval_model().parameters())
    gradients = [torch.autograd.grad(parts['loss'], parameters) for parts in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_soft_targets_are_accepted_with_a_criterion():
    task = create_task(criterion=timm.loss.SoftTargetCrossEntropy())
    input, target = batch()
    soft = 0.7 * nn.functional.one_hot(target, CLASSES) + 0.3 / CLASSES
    result = task(input, soft)
    expected = -(soft * result['output'].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(result['ce'], expected)


@pytest.mark.parametrize('input_rows, target_rows', [(7, 7), (8, 4), (4, 8)])
def test_input_and_target_of_different_sizes_are_refused(input_rows, target_rows):
    with pytest.raises(ValueError, match=rf'input \[{input_rows}, 3, 32, 32\] and target \[{target_rows}\]'):
        create_task()(torch.zeros(input_rows, 3, 32, 32), torch.zeros(target_rows).long())


def test_views_in_a_list_are_refused_with_the_remedy():
    input, target = batch()
    with pytest.raises(ValueError, match=r'got a list: .*collate_fn=TwoViewCollate\(\)'):
        create_task()(list(input.chunk(2)), target)


SOFT = nn.functional.one_hot(torch.arange(8) % CLASSES, CLASSES).float()


@pytest.mark.parametrize('target, message', [
    (torch.arange(4).repeat_interleave(2), 'targets of the two views differ'),  # sample-major
    (torch.arange(8), 'targets of the two views differ'),  # a batch of one view
    (torch.arange(4).repeat(3)[:8], None),
    (SOFT, None),  # each view is mixed with partners of its own
    (0.8 * SOFT + 0.2 / CLASSES, None),
    ((0.8 * SOFT + 0.2 / CLASSES).half(), None),
    (SOFT + SOFT.roll(1, 1), 'got 2 to 2: .* one label per image'),
    (SOFT * (torch.arange(8) > 0)[:, None], 'add up to 1 .*, got 0 to 1'),
])
def test_targets_of_both_views_must_be_equal_or_soft(target, message):
    task = create_task(criterion=lambda logits, target: logits.square().mean())
    input, _ = batch()
    if message is None:
        assert task(input, target)['loss'].isfinite()
    else:
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                task(input, target)


def test_three_views_are_refused():
    input = torch.cat([batch()[0], batch()[0][:4]])
    with pytest.raises(ValueError, match='targets of the two views differ'):
        create_task()(input, torch.arange(4).repeat(3))


def test_targets_are_compared_once(monkeypatch):
    """On a GPU, the host waits for the comparison."""
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, 'equal', lambda *tensors: (compared.append(tensors), equal(*tensors))[1])
    task = create_task()
    for seed in range(3):
        task(*batch(seed=seed))
    assert len(compared) == 1
    copy.deepcopy(task)(*batch())
    assert len(compared) == 1


@pytest.mark.slow
def test_a_compiled_task_is_one_graph():
    torch._dynamo.reset()
    task = create_task()
    compiled = torch.compile(task, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(*batch())['loss'], task(*batch())['loss'])


def test_one_image_is_refused_with_marginals():
    with pytest.raises(ValueError, match='batch of 2 images or more'):
        create_task()(*batch(images=1))
    assert create_task(kind='mse')(*batch(images=1))['loss'].isfinite()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_classes = CLASSES
        self.head = nn.Linear(3 * 32 * 32, CLASSES)

    def forward(self, x):
        logits = self.head(x.flatten(1))
        return (logits, logits) if self.training else logits


@pytest.mark.slow
@pytest.mark.parametrize('build, size', [
    (TwoHeads, 32),
    # the smallest images its auxiliary head takes are about as large as its own
    (lambda: timm.create_model('inception_v3', num_classes=CLASSES, aux_logits=True), 299),
], ids=['two-heads', 'inception_v3'])
def test_a_model_with_several_outputs_is_refused_by_name(build, size):
    model = build()
    task = AgMaxTask(model, verbose=False)
    with torch.no_grad(), pytest.raises(ValueError, match=f'{type(model).__name__} does not return one tensor'):
        task(*batch(images=1, size=size))


def test_a_distilled_model_trains_with_the_mean_of_its_heads():
    model = create_model('deit_tiny_distilled_patch16_224', img_size=32, depth=2)
    task = AgMaxTask(model, verbose=False)
    result = task(*batch())
    result['loss'].backward()
    assert result['output'].shape == (8, CLASSES)
    assert all(p.grad.isfinite().all() for p in task.parameters())


class Plain(nn.Sequential):
    """A model without timm's attributes and methods."""

    def __init__(self, outputs=CLASSES):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, outputs))


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_a_model_without_the_methods_of_timm_is_accepted(kind):
    model, twin = Plain(), Plain()
    twin.num_classes = CLASSES
    tasks = []
    for net, options in ((model, {'num_classes': CLASSES}), (twin, {})):
        torch.manual_seed(1)
        tasks.append(AgMaxTask(net, kind=kind, verbose=False, **options))
    results = [task(*batch()) for task in tasks]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert tasks[0].get_eval_model() is model and tasks[0].num_classes == CLASSES
    with pytest.raises(ValueError, match='Plain has no get_classifier'):
        tasks[0].get_clip_parameters(exclude_head=True)


@pytest.mark.slow
@pytest.mark.parametrize('build', [
    torchvision.models.resnet18, torchvision.models.mobilenet_v3_small, torchvision.models.swin_t,
    lambda num_classes: Plain(num_classes)], ids=['resnet18', 'mobilenet_v3_small', 'swin_t', 'Plain'])
def test_the_number_of_classes_of_other_models_is_that_of_their_last_linear_layer(build):
    task = AgMaxTask(build(num_classes=CLASSES), verbose=False)
    assert task.num_classes == CLASSES
    assert task(*batch())['output'].shape == (8, CLASSES)


@pytest.mark.slow
def test_a_model_of_transformers_trains():
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=CLASSES)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    task = AgMaxTask(model, verbose=False)
    input, target = batch()
    result = task(input, target)
    assert task.num_classes == CLASSES and torch.equal(result['output'], model(input).logits)
    result['loss'].backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert task.get_eval_model() is model


def test_a_model_with_an_unknown_number_of_classes_is_refused():
    with pytest.raises(ValueError, match='Sequential has no attribute num_classes: give AgMaxTask num_classes='):
        AgMaxTask(nn.Sequential(nn.Conv2d(3, CLASSES, 32), nn.Flatten()))
    with pytest.raises(ValueError, match='2 classes or more, Plain has 1'):
        AgMaxTask(Plain(), num_classes=1)


@pytest.mark.parametrize('kind', ['mi', 'mse'])
def test_a_model_with_another_number_of_logits_is_refused(kind):
    with pytest.raises(ValueError, match='Plain gives 7 logits, .* 10 classes.*num_classes=7'):
        AgMaxTask(Plain(7), kind=kind, num_classes=CLASSES, verbose=False)(*batch())


@pytest.mark.slow
def test_criterion_may_be_a_function(caplog):
    results = []
    for criterion in (None, nn.functional.cross_entropy):
        with caplog.at_level(logging.INFO):
            results.append(AgMaxTask(create_model(), criterion)(*batch()))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert 'criterion=cross_entropy' in caplog.text


@pytest.mark.parametrize('num_classes', [0, 1])
def test_a_model_with_fewer_than_2_classes_is_refused(num_classes):
    with pytest.raises(ValueError, match=f'2 classes or more, VisionTransformer has {num_classes}'):
        AgMaxTask(timm.create_model('test_vit', num_classes=num_classes))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="one of mi, mse, kl, ce, got 'js'"):
        create_task(kind='js')


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet'])
def test_autocast_forward_is_finite_and_near(name):
    task = create_task(name)
    expected = task(*batch())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = task(*batch())
    result['loss'].backward()
    assert result['output'].dtype == torch.bfloat16
    assert result['loss'].dtype == torch.float32
    torch.testing.assert_close(result['loss'], expected['loss'], rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in task.parameters())


# The plain classifier: evaluation, average, checkpoint

def test_eval_model_is_the_model():
    model = create_model()
    task = AgMaxTask(model, verbose=False)
    assert task.get_eval_model() is model
    assert task.get_eval_model(ema=True) is None


def test_ema_is_an_average_of_classifier_and_qnet():
    decay = 0.9
    task = create_task()
    task.setup_ema(decay=decay)
    history = []
    for shift in (0.0, 1.0, 2.0):
        with torch.no_grad():
            for parameter in task.trainable_module.parameters():
                parameter.add_(shift)
        if shift:
            task.update_ema()
        history.append([cloned(task.get_eval_model().state_dict()), cloned(task.get_task_state()['qnet'])])
    averaged = task.get_eval_model(ema=True)
    assert type(averaged) is type(task.get_eval_model())
    state = task.get_checkpoint_state(ema=True)
    actual = [averaged.state_dict(), state['task_state_ema']['qnet']]
    assert_same(state['state_dict_ema'], actual[0])
    for part in range(2):
        start, first, second = [moment[part] for moment in history]
        expected = {name: decay ** 2 * start[name] + decay * (1 - decay) * first[name] + (1 - decay) * second[name]
                    for name in start}
        torch.testing.assert_close(dict(actual[part]), expected)


LOAD_WITHOUT_AGMAX = """
import sys, timm, torch
checkpoint = torch.load(sys.argv[1], map_location='cpu', weights_only=True)
input = torch.load(sys.argv[2])
for key in ('state_dict', 'state_dict_ema'):
    model = timm.create_model('test_resnet', num_classes=10).eval()
    model.load_state_dict(checkpoint[key], strict=True)
    torch.save(model(input), sys.argv[2] + '.' + key)
"""


def saved(task, optimizer, folder):
    saver = CheckpointSaver(task.get_eval_model(), optimizer, checkpoint_dir=str(folder), task=task)
    saver.save_checkpoint(epoch=3, metric=50.0)
    return folder / 'last.pth.tar'


def test_checkpoint_loads_into_plain_timm(tmp_path):
    task = create_task('test_resnet')
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'sgd', lr=0.1)
    train_step(task, optimizer)
    task.update_ema()
    input = batch()[0]
    torch.save(input, tmp_path / 'input')
    run_in_plain_timm(LOAD_WITHOUT_AGMAX, saved(task, optimizer, tmp_path), 'input', cwd=tmp_path)
    for key in ('state_dict', 'state_dict_ema'):
        model = task.get_eval_model(ema=key.endswith('ema')).eval()
        torch.testing.assert_close(torch.load(tmp_path / f'input.{key}'), model(input))


def test_resume_continues_exactly(tmp_path):
    tasks = [create_task('test_resnet', seed) for seed in range(2)]
    for task in tasks:
        task.setup_ema(decay=0.5)
    optimizers = [create_optimizer_v2(task.get_trainable_module(), 'sgd', lr=0.1, weight_decay=0.1) for task in tasks]
    for seed in range(2):
        train_step(tasks[0], optimizers[0], seed)
        tasks[0].update_ema()
    path = saved(tasks[0], optimizers[0], tmp_path)
    assert resume_task_checkpoint(tasks[1], path, optimizers[1]) == 4
    load_task_ema_checkpoint(tasks[1], path)
    assert_same(tasks[1].state_dict(), tasks[0].state_dict())
    losses = [train_step(task, optimizer, seed=2) for task, optimizer in zip(tasks, optimizers)]
    assert losses[0] == losses[1]
    assert_same(tasks[1].state_dict(), tasks[0].state_dict())


def test_a_checkpoint_without_qnet_keeps_that_of_the_task(caplog):
    task = create_task()
    qnet = cloned(task.get_task_state()['qnet'])
    other = create_task(seed=1, kind='mse').get_checkpoint_state()
    assert list(other) == ['state_dict']
    with caplog.at_level(logging.WARNING):
        task.load_checkpoint_state(other['state_dict'])
    assert 'The checkpoint holds no Q-network' in caplog.text
    assert_same(task.get_task_state()['qnet'], qnet)
    assert_same(task.get_eval_model().state_dict(), other['state_dict'])


def test_a_checkpoint_with_qnet_is_refused_by_a_kind_without_one(caplog):
    state = create_task(seed=1).get_checkpoint_state()
    task = create_task(kind='mse')
    with pytest.raises(ValueError, match="Q-network, .*'mse' has none: use kind 'mi', or strict=False"):
        task.load_checkpoint_state(**state)
    task.load_checkpoint_state(**state, strict=False)
    assert_same(task.get_eval_model().state_dict(), state['state_dict'])
    assert not caplog.records


def test_checkpoint_of_another_hidden_width_is_refused():
    state = create_task(hidden=16).get_checkpoint_state()
    with pytest.raises(RuntimeError, match='size mismatch'):
        create_task(hidden=32).load_checkpoint_state(**state)


# Optimizer

def group_options(optimizer, named_parameters):
    """Learning-rate scale and weight decay by name of parameter."""
    names = {id(parameter): name for name, parameter in named_parameters}
    return {names[id(parameter)]: (group['lr_scale'], group['weight_decay'])
            for group in optimizer.param_groups for parameter in group['params']}


@pytest.mark.parametrize('name', [
    'test_vit', 'test_resnet', 'test_efficientnet', 'test_convnext', 'test_byobnet', 'deit_tiny_distilled_patch16_224',
    'pit_ti_224',  # has no layers of its own: timm groups by a count of tensors
])
def test_layer_decay_equals_that_of_timm(name):
    options = {'opt': 'sgd', 'lr': 0.1, 'weight_decay': 0.05, 'layer_decay': 0.5}
    task = create_task(name)
    model, module = task.get_eval_model(), task.get_trainable_module()
    expected = group_options(create_optimizer_v2(model, **options), model.named_parameters())
    assert len({scale for scale, _ in expected.values()}) > 2
    actual = group_options(create_optimizer_v2(module, **options), module.named_parameters())
    qnet = {name: actual.pop(name) for name in list(actual) if not name.startswith('model.')}
    assert actual == {f'model.{name}': option for name, option in expected.items()}
    assert sorted(qnet.values()) == [(1.0, 0.0), (1.0, 0.0), (1.0, 0.05), (1.0, 0.05)]


@pytest.mark.parametrize('name, undecayed', [('test_vit', ['model.cls_token', 'model.pos_embed']), ('test_resnet', [])])
def test_parameters_without_weight_decay_are_those_of_the_model(name, undecayed):
    module = create_task(name).get_trainable_module()
    optimizer = create_optimizer_v2(module, 'sgd', lr=0.1, weight_decay=0.05)
    ids = {id(parameter) for group in optimizer.param_groups for parameter in group['params']
           if group['weight_decay'] == 0}
    # vectors never decay in timm: what the model adds are tensors
    assert [key for key, parameter in module.named_parameters()
            if id(parameter) in ids and parameter.ndim > 1] == undecayed


@pytest.mark.parametrize('name, head', [
    ('test_resnet', ['fc.weight', 'fc.bias']),
    ('deit_tiny_distilled_patch16_224', ['head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias']),
])
@pytest.mark.parametrize('kind', ['mi', 'mse'])
def test_clip_parameters_can_exclude_the_head(name, head, kind):
    task = create_task(name, kind=kind)
    named = {id(parameter): name for name, parameter in task.get_trainable_module().named_parameters()}
    every = [named[id(parameter)] for parameter in task.get_clip_parameters()]
    assert every == list(named.values())
    without_head = [named[id(parameter)] for parameter in task.get_clip_parameters(exclude_head=True)]
    assert sorted(set(every) - set(without_head)) == sorted(f'model.{name}' for name in head)


def test_norm_clipping_bounds_all_gradients():
    task = create_task()
    task(*batch())['loss'].backward()
    dispatch_clip_grad(task.get_clip_parameters(), 1e-3, mode='norm')
    norm = sum(parameter.grad.square().sum() for parameter in task.parameters()).sqrt()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_adaptive_clipping_does_not_change_the_head():
    task = create_task()
    task(*batch())['loss'].backward()
    before = {name: parameter.grad.clone() for name, parameter in task.get_trainable_module().named_parameters()}
    dispatch_clip_grad(task.get_clip_parameters(exclude_head=True), 1e-6, mode='agc')
    changed = {name for name, parameter in task.get_trainable_module().named_parameters()
               if not torch.equal(parameter.grad, before[name])}
    assert {'model.patch_embed.proj.weight', 'qnet.0.weight', 'qnet.2.weight'} <= changed
    assert not {'model.head.weight', 'model.head.bias'} & changed


# Initial weights

def test_initial_weights_do_not_depend_on_the_device():
    """The meta device has no random state of its own: what is drawn there leaves that of the CPU as it was."""
    states = []
    for device in ('cpu', 'meta'):
        model = create_model().to(device)
        with torch.device(device):
            AgMaxTask(model, nn.CrossEntropyLoss(), init_std=0.2, verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_init_std_draws_the_same_weights_for_every_memory_format():
    plain, last = create_model('test_resnet'), create_model('test_resnet').to(memory_format=torch.channels_last)
    for model in (plain, last):
        torch.manual_seed(1)
        AgMaxTask(model, nn.CrossEntropyLoss(), init_std=0.2, verbose=False)
    assert_same(plain.state_dict(), last.state_dict())


# Compilation

@pytest.mark.slow
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled_task_equals_uncompiled(backend):
    torch._dynamo.reset()
    task = create_task(init_std=0.2)
    expected = copy.deepcopy(task)
    compiled = task.compile(backend=backend)
    assert task.get_eval_model() is compiled
    assert compiled._orig_mod.__class__ is type(expected.get_eval_model())
    results = [task(*batch()), expected(*batch())]
    torch.testing.assert_close(*results)
    for result in results:
        result['loss'].backward()
    gradients = [[parameter.grad for parameter in t.get_clip_parameters()] for t in (task, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(batch()[0]), results[1]['output'])
    state, expected_state = task.get_checkpoint_state(), expected.get_checkpoint_state()
    assert_same(state['state_dict'], expected_state['state_dict'])
    assert_same(state['task_state']['qnet'], expected_state['task_state']['qnet'])


# Q-network and initial weights

def test_the_width_of_the_qnet_can_be_given():
    assert QNet(10, hidden=48)(torch.zeros(3, 20)).shape == (3, 10)
    task = create_task(hidden=48)
    assert task.get_task_state()['qnet']['0.weight'].shape == (48, 2 * CLASSES)


def test_the_qnet_has_the_dtype_of_the_model():
    task = AgMaxTask(create_model().double(), verbose=False)
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float64}
    input, target = batch()
    assert task(input.double(), target)['loss'].dtype == torch.float64


def weights_and_others(module):
    weights, others = {}, dict(module.named_parameters())
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            weights[f'{name}.weight'] = others.pop(f'{name}.weight')
    return weights, others


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_init_std_draws_only_linear_and_conv_weights(name):
    std = 0.2
    (plain_weights, plain_others), (weights, others) = [
        weights_and_others(create_task(name, init_std=init_std).get_trainable_module()) for init_std in (None, std)]
    assert {'qnet.0.weight', 'qnet.2.weight'} < set(weights)
    for weight in weights.values():
        error = std / math.sqrt(2 * weight.numel())
        assert weight.std().item() == pytest.approx(std, abs=5 * error)
        assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel()))
    assert not any(torch.equal(weights[name], plain_weights[name]) for name in weights)
    assert_same(others, plain_others)


def test_without_init_std_the_model_keeps_its_weights():
    model = create_model()
    before = cloned(model.state_dict())
    AgMaxTask(model, verbose=False)
    assert_same(model.state_dict(), before)
