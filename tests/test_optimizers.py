"""timm's optimizers with the task: each treats the Q-network like the classifier head."""
import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import nn

from agmax_timm import AgMaxTask
from agmax_timm.distillation import AgMaxDistillationTask, distillation_loss
from agmax_timm.loss import AGREEMENT_KINDS, agreement_terms

CLASSES = 5
# bitsandbytes and APEX are no dependencies of timm's, and both need CUDA
OPTIMIZERS = list_optimizers(exclude_filters=['bnb*', 'fused*'])
DECAY = 0.05


@pytest.fixture(autouse=True)
def eager():
    """timm compiles parts of kron, which takes a minute for its tensors."""
    with torch.compiler.set_stance('force_eager'):
        yield


class Network(nn.Sequential):
    """A classifier with tensors, matrices and vectors to group."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES))
        self.num_classes = CLASSES


def create_task():
    torch.manual_seed(0)
    return AgMaxTask(Network().double(), hidden=8, verbose=False)


def create_distillation_task():
    torch.manual_seed(0)
    return AgMaxDistillationTask(Network().double(), Network().double(), hidden=8, verbose=False)


def batch(images=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2 * images, 3, 8, 8, generator=generator, dtype=dtype)
    return input, torch.randint(CLASSES, (images,), generator=generator).repeat(2)


def named(task):
    return dict(task.get_trainable_module().named_parameters())


def cloned(parameters):
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def train(task, optimizer, steps=2):
    second_order = getattr(optimizer, 'is_second_order', False)
    torch.manual_seed(3)  # some optimizers draw
    for step in range(steps):
        loss = task(*batch(seed=step))['loss']
        optimizer.zero_grad()
        loss.backward(create_graph=second_order)
        optimizer.step()
    return optimizer


def train_by_hand(model, qnet, opt, lr, steps=2):
    """The same updates without task, loss class or timm's parameter groups: matrices decay, vectors do not."""
    parameters = [*model.parameters(), *qnet.parameters()]
    optimizer = create_optimizer_v2([
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': DECAY},
    ], opt, lr=lr)
    torch.manual_seed(3)
    for step in range(steps):
        input, target = batch(seed=step)
        logits = model(input)
        joint_logits = qnet(torch.cat(logits.chunk(2), dim=1))
        p1, p2, p12 = [z.softmax(1) for z in (*logits.chunk(2), joint_logits)]
        agreement = sum((p.mean(0) * p.mean(0).log()).sum() for p in (p1, p2, p12)) / 3
        divergence = 4.0 * ((p12 - p1).abs().mean() + (p12 - p2).abs().mean()) / 2
        loss = nn.functional.cross_entropy(logits, target) + agreement + divergence
        optimizer.zero_grad()
        loss.backward(create_graph=opt == 'adahessian')
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.filterwarnings('ignore:Using backward', 'ignore:It is highly recommended')
@pytest.mark.parametrize('opt', [*OPTIMIZERS, 'lookahead_sgd'])
def test_two_updates_equal_those_by_hand(opt):
    task = create_task()
    module = task.get_trainable_module()
    model, qnet = copy.deepcopy(module.model), copy.deepcopy(module.qnet)
    before = cloned(named(task))
    optimizer = create_optimizer_v2(module, opt, lr=0.01, weight_decay=DECAY)
    train(task, optimizer)
    after = cloned(named(task))
    assert len(after) == 9
    assert all(value.isfinite().all() for value in after.values())
    assert not [name for name in after if torch.equal(after[name], before[name])]
    torch.testing.assert_close(list(after.values()), train_by_hand(model, qnet, opt, lr=0.01), rtol=1e-6, atol=1e-8)


def test_the_tested_optimizers_include_the_common_ones():
    assert {'sgd', 'nesterov', 'momentum', 'adamw', 'lamb', 'lion', 'muon', 'adamuon', 'adan', 'lars', 'kron', 'mars',
            'adahessian'} <= set(OPTIMIZERS)
    assert [opt for opt in OPTIMIZERS if get_optimizer_info(opt).second_order] == ['adahessian']


# Parameter groups

def routes(optimizer, task):
    """Return the names of the parameters that Muon updates, and of those that its fallback updates."""
    names = {id(parameter): name for name, parameter in named(task).items()}
    by_muon = {names[id(parameter)]: state['use_muon'] for parameter, state in optimizer.state.items()}
    return {name for name, used in by_muon.items() if used}, {name for name, used in by_muon.items() if not used}


@pytest.mark.parametrize('opt', ['muon', 'nmuon', 'adamuon', 'nadamuon'])
def test_muon_updates_the_qnet_like_the_head(opt):
    task = create_task()
    muon, fallback = routes(train(task, create_optimizer_v2(task.get_trainable_module(), opt, lr=0.01)), task)
    assert {'model.4.weight', 'qnet.0.weight', 'qnet.2.weight'} <= muon
    assert fallback == {name for name, parameter in named(task).items() if parameter.ndim <= 1}


def test_muon_uses_its_fallback_for_given_patterns():
    """A pattern that begins with a star matches the same parameters with and without AgMax."""
    task = create_task()
    patterns = ['*4.weight', 'qnet.*']
    optimizer = create_optimizer_v2(
        task.get_trainable_module(), 'muon', lr=0.01, weight_decay=DECAY, fallback_list=patterns)
    muon, fallback = routes(train(task, optimizer), task)
    assert muon == {'model.0.weight'}
    assert {'model.4.weight', 'qnet.0.weight', 'qnet.2.weight'} <= fallback


def test_muon_can_use_its_fallback_for_parameters_without_decay():
    torch.manual_seed(0)
    task = AgMaxTask(timm.create_model('test_vit', num_classes=CLASSES, img_size=32), verbose=False)
    optimizer = create_optimizer_v2(
        task.get_trainable_module(), 'muon', lr=0.01, weight_decay=DECAY, fallback_no_weight_decay=True)
    names = {id(parameter): name for name, parameter in named(task).items()}
    fallback = [names[id(p)] for group in optimizer.param_groups if group.get('use_fallback') for p in group['params']]
    assert sorted(fallback) == ['model.cls_token', 'model.pos_embed']


def test_layer_decay_scales_the_updates():
    """With timm's scheduler. One update of plain SGD is the gradient times the learning rate of the layer."""
    torch.manual_seed(0)
    task = AgMaxTask(timm.create_model('test_resnet', num_classes=CLASSES), verbose=False)
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'momentum', lr=0.1, momentum=0.0, layer_decay=0.5)
    CosineLRScheduler(optimizer, t_initial=10).step(0)
    before = cloned(named(task))
    task(*batch(dtype=torch.float32))['loss'].backward()
    optimizer.step()
    scales = {}
    for name, parameter in named(task).items():
        gradient = parameter.grad
        if gradient.any():
            scales[name] = (((before[name] - parameter) * gradient).sum() / gradient.square().sum()).item()
    for name in ('qnet.0.weight', 'qnet.2.bias', 'model.fc.weight', 'model.fc.bias'):
        assert scales[name] == pytest.approx(0.1, rel=1e-3)
    assert scales['model.conv1.0.weight'] < 0.02
    plain = create_optimizer_v2(task.get_eval_model(), 'sgd', lr=0.1, layer_decay=0.5)
    rates = {id(p): 0.1 * group['lr_scale'] for group in plain.param_groups for p in group['params']}
    expected = {name: rates.get(id(parameter), 0.1) for name, parameter in named(task).items() if name in scales}
    assert scales == pytest.approx(expected, rel=1e-2)


# Second order

@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_second_derivatives_of_the_agreement_equal_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
         for _ in range(3 if kind == 'mi' else 2)]
    assert torch.autograd.gradgradcheck(lambda *logits: sum(agreement_terms(*logits, kind=kind)), z)


def test_second_derivatives_of_the_distillation_equal_finite_differences():
    logits, teacher_logits = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda logits: distillation_loss(logits, teacher_logits, 2.0), logits.requires_grad_())


@pytest.mark.filterwarnings('ignore:Using backward')
def test_second_order_optimizers_train_with_a_teacher():
    task = create_distillation_task()
    before = cloned(named(task))
    train(task, create_optimizer_v2(task.get_trainable_module(), 'adahessian', lr=0.01))
    assert not [name for name, value in named(task).items() if torch.equal(value, before[name])]
    assert all(value.isfinite().all() for value in named(task).values())


# Averages of the weights

def decay_at(step, after=0, power=None):
    """Decay of an EMA of timm: 0 for the first update after `after` copies, then 0.9, limited to 1 - t^-power."""
    step -= after
    if step <= 1:
        return 0.0
    return 0.9 if power is None else min(0.9, 1 - step ** -power)


@pytest.mark.parametrize('options, rule', [
    ({}, {}),
    ({'use_warmup': True}, {'power': 2 / 3}),
    ({'use_warmup': True, 'warmup_power': 0.75}, {'power': 0.75}),
    ({'device': torch.device('cpu')}, {}),
    ({'device': 'cpu', 'use_warmup': True}, {'power': 2 / 3}),  # as --model-ema-force-cpu
    ({'dtype': torch.float32}, {}),
    ({'foreach': False}, {}),
    ({'update_after_step': 2}, {'after': 2}),
], ids=str)
@pytest.mark.parametrize('teacher', [False, True], ids=['plain', 'teacher'])
def test_the_average_of_model_and_qnet_equals_its_formula(options, rule, teacher):
    task = create_distillation_task() if teacher else create_task()
    task.setup_ema(decay=0.9, **options)
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'sgd', lr=0.1)
    expected = {name: value.double() for name, value in cloned(task.get_trainable_module().state_dict()).items()}
    for step in range(1, 6):
        train(task, optimizer, steps=1)
        task.update_ema(step=step)
        for name, value in task.get_trainable_module().state_dict().items():
            expected[name] += (1 - decay_at(step, **rule)) * (value - expected[name])
    state = task.get_checkpoint_state(ema=True)
    actual = {**{f'model.{name}': value for name, value in state['state_dict_ema'].items()},
              **{f'qnet.{name}': value for name, value in state['task_state_ema']['qnet'].items()}}
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_in_bfloat16_keeps_small_updates():
    """Rounding to nearest would lose an update of a thousandth. timm rounds randomly."""
    torch.manual_seed(0)
    task = AgMaxTask(Network().bfloat16(), hidden=8, verbose=False)
    task.setup_ema(decay=0.999)
    start = cloned(task.get_trainable_module(ema=True).module.state_dict())
    with torch.no_grad():
        for parameter in task.trainable_module.parameters():
            parameter.add_(0.5)
    for _ in range(100):
        task.update_ema()
    for part in ('model.4.weight', 'qnet.0.weight'):
        moved = (task.get_trainable_module(ema=True).module.state_dict()[part].float() - start[part].float()).mean()
        assert moved.item() == pytest.approx(0.5 * (1 - 0.999 ** 100), rel=0.1)
