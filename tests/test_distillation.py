"""AgMax with a teacher: the loss, and the teacher, which stays unchanged."""
import copy
import inspect
import math

import pytest
import timm
import torch
import torch.distributed as dist
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import nn

from agmax_timm import AgMaxTask
from agmax_timm.distillation import AgMaxDistillationTask, distillation_loss, loss_weights

CLASSES = 10
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
PARTS = {'loss', 'output', 'ce', 'agreement', 'divergence', 'kd_loss'}


def create_model(name='test_vit', seed=0, **kwargs):
    torch.manual_seed(seed)
    if name == 'test_vit':
        kwargs['img_size'] = 32
    return timm.create_model(name, num_classes=CLASSES, **kwargs)


def create_teacher(name='test_resnet', seed=1):
    """A teacher with BatchNorm, predictions far from uniform, and a normalisation other than the student's 0.5."""
    model = create_model(name, seed)
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=0.5)
    model.pretrained_cfg = {**model.pretrained_cfg, **IMAGENET}
    return model


def create_task(name='test_vit', seed=2, **kwargs):
    model, teacher = create_model(name), create_teacher()
    torch.manual_seed(seed)  # of the Q-network
    return AgMaxDistillationTask(model, teacher, verbose=False, **kwargs)


def batch(images=4, seed=0, soft=False):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2 * images, 3, 32, 32, generator=generator)
    target = torch.randint(CLASSES, (images,), generator=generator).repeat(2)
    return input, 0.8 * nn.functional.one_hot(target, CLASSES) + 0.2 / CLASSES if soft else target


def gradients(task):
    return {name: p.grad for name, p in task.get_eval_model().named_parameters()}


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def cloned(state_dict):
    return {name: tensor.clone() for name, tensor in state_dict.items()}


# The loss

@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_distillation_loss_is_the_formula(temperature):
    logits, teacher_logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    expected = 0.0
    for student_row, teacher_row in zip(logits.tolist(), teacher_logits.tolist()):
        q, p = [[math.exp(z / temperature) for z in row] for row in (student_row, teacher_row)]
        q, p = [[value / sum(values) for value in values] for values in (q, p)]
        expected += temperature ** 2 * sum(a * math.log(a / b) for a, b in zip(p, q)) / 3
    assert distillation_loss(logits, teacher_logits, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_distillation_loss_of_half_precision_equals_that_of_float32(dtype):
    logits, teacher_logits = (torch.randn(2, 8, CLASSES) * 20).to(dtype)
    expected = distillation_loss(logits.float(), teacher_logits.float(), 2.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = distillation_loss(logits, teacher_logits, 2.0)
    assert actual.dtype == torch.float32
    assert_same(actual, expected)


@pytest.mark.parametrize('distill', [None, 0.0, 0.7, 2.0])
@pytest.mark.parametrize('task', [None, 0.0, 0.3, 1.0])
def test_loss_weights_equal_those_of_timm(distill, task):
    oracle = LogitDistillationTask(
        create_model(), nn.Identity(), distill_loss_weight=distill, task_loss_weight=task, verbose=False)
    assert loss_weights(distill, task) == (oracle.distill_loss_weight, oracle.task_loss_weight)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_vit', 'test_resnet'])
@pytest.mark.parametrize('weights', [
    {}, {'distill_loss_weight': 0.7}, {'task_loss_weight': 0.3}, {'distill_loss_weight': 2.0, 'task_loss_weight': 0.4},
])
@pytest.mark.parametrize('soft', [False, True], ids=['hard', 'soft'])
def test_without_agmax_the_loss_equals_the_logit_distillation_of_timm(name, weights, soft):
    criterion = SoftTargetCrossEntropy() if soft else nn.CrossEntropyLoss()
    options = dict(criterion=criterion, temperature=3.0, **weights)
    task = create_task(name, weight=0.0, divergence_weight=0.0, **options)
    oracle = LogitDistillationTask(create_model(name), create_teacher(), verbose=False, **options)
    result, expected = task(*batch(soft=soft)), oracle(*batch(soft=soft))
    assert expected['kd_loss'] > 0.1
    assert_same({'task_loss': result['ce'], **{key: result[key] for key in ('loss', 'output', 'kd_loss')}}, expected)
    result['loss'].backward()
    expected['loss'].backward()
    assert_same(gradients(task), gradients(oracle))


@pytest.mark.parametrize('kind', ['mi', 'mse'])
def test_without_the_loss_of_the_teacher_the_loss_equals_agmax(kind):
    options = dict(kind=kind, weight=0.5, divergence_weight=2.0, init_std=0.2)
    task = create_task(distill_loss_weight=0.0, **options)
    model = create_model()
    torch.manual_seed(2)
    oracle = AgMaxTask(model, verbose=False, **options)
    result, expected = task(*batch()), oracle(*batch())
    assert set(result) == PARTS
    assert_same({key: result[key] for key in expected}, expected)
    result['loss'].backward()
    expected['loss'].backward()
    assert_same(gradients(task), gradients(oracle))


@pytest.mark.parametrize('kind', ['mi', 'kl'])
def test_loss_is_the_weighted_sum_of_its_parts(kind):
    result = create_task(kind=kind, weight=0.5, divergence_weight=2.0, init_std=0.2, task_loss_weight=0.3,
                         distill_loss_weight=0.6, temperature=2.0)(*batch())
    assert all(value != 0 for key, value in result.items() if key not in ('output', 'divergence'))
    assert_same(result['loss'], 0.3 * result['ce'] + 0.6 * result['kd_loss'] + 0.5 * result['agreement']
                + result['divergence'])


def test_the_loss_under_autocast_is_finite_and_near():
    expected = create_task(init_std=0.1)(*batch())
    task = create_task(init_std=0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = task(*batch())
    result['loss'].backward()
    assert result['kd_loss'].dtype == torch.float32
    torch.testing.assert_close(result['loss'], expected['loss'], rtol=0.05, atol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(task).values())


# The teacher: what it sees, and that it is left alone

class Recorder(nn.Module):
    """A teacher that records its input."""

    def __init__(self, num_classes=CLASSES, **pretrained_cfg):
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = pretrained_cfg

    def forward(self, input):
        self.input, self.grad_enabled = input, torch.is_grad_enabled()
        return input.new_zeros(len(input), self.num_classes)


@pytest.mark.parametrize('given', [{}, {'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6)}], ids=['models', 'given'])
def test_the_teacher_gets_both_views_in_its_own_normalisation(given):
    model, teacher = create_model(), Recorder(**IMAGENET)
    student = given or {key: model.pretrained_cfg[key] for key in ('mean', 'std')}
    pixels = torch.rand(8, 3, 32, 32)
    normalised = {key: (pixels - torch.tensor(value['mean']).view(3, 1, 1)) / torch.tensor(value['std']).view(3, 1, 1)
                  for key, value in {'student': student, 'teacher': IMAGENET}.items()}
    AgMaxDistillationTask(model, teacher, verbose=False, **given)(normalised['student'], batch()[1])
    torch.testing.assert_close(teacher.input, normalised['teacher'])
    assert not teacher.grad_enabled


@pytest.mark.parametrize('channels, given, mean, std', [
    (3, {'mean': (0.3,), 'std': (0.6,)}, 0.3, 0.6), (1, {'mean': (0.3,), 'std': (0.6,)}, 0.3, 0.6),
    (1, {}, sum(IMAGENET_DEFAULT_MEAN) / 3, sum(IMAGENET_DEFAULT_STD) / 3)])
def test_one_value_stands_for_all_channels(channels, given, mean, std):
    """As in timm's data configuration. The teacher's three values are equal."""
    model = timm.create_model('test_resnet', num_classes=CLASSES, in_chans=channels)
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD}
    teacher, pixels = Recorder(mean=(0.5,) * 3, std=(0.25,) * 3), torch.rand(8, channels, 32, 32)
    AgMaxDistillationTask(model, teacher, verbose=False, **given)((pixels - mean) / std, batch()[1])
    torch.testing.assert_close(teacher.input, (pixels - 0.5) / 0.25)


def test_models_that_do_not_state_their_channels_have_those_of_the_teachers_normalisation():
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, CLASSES)) for _ in range(2))
    teacher.pretrained_cfg = {'mean': (0.5,), 'std': (0.25,)}
    task = AgMaxDistillationTask(student, teacher, mean=(0.3,), std=(0.6,), num_classes=CLASSES, verbose=False)
    input, target = torch.rand(8, 1, 32, 32), batch()[1]
    expected = distillation_loss(student(input), teacher((input * 0.6 + 0.3 - 0.5) / 0.25))
    torch.testing.assert_close(task(input, target)['kd_loss'], expected)


def test_a_student_without_pretrained_cfg_has_the_normalisation_of_imagenet():
    model, teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES)), Recorder()
    model.num_classes = CLASSES
    input, target = batch()
    AgMaxDistillationTask(model, teacher, verbose=False)(input, target)
    assert_same(teacher.input, input)


def test_a_teacher_may_be_a_name_with_a_file_or_a_teacher_of_timm(tmp_path):
    teacher = create_teacher()
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    named = AgMaxDistillationTask(
        create_model(), 'test_resnet', teacher_pretrained_path=str(tmp_path / 'teacher.pth'), verbose=False)
    assert_same(dict(named.teacher.model.state_dict()), dict(teacher.state_dict()))
    given = DistillationTeacher(teacher)
    assert AgMaxDistillationTask(create_model(), given, verbose=False).teacher is given


def assert_teacher_unchanged(task, before):
    assert not any(module.training for module in task.teacher.modules())
    assert_same(dict(task.teacher.model.state_dict()), before)
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())


@pytest.mark.parametrize('set_training', [
    lambda task: task.get_trainable_module().train(),  # as an epoch begins
    lambda task: task.train(),
], ids=['module', 'task'])
def test_training_does_not_change_the_teacher(set_training):
    task = create_task('test_resnet')
    before = cloned(task.teacher.model.state_dict())
    student = cloned(task.get_eval_model().state_dict())
    optimizer = create_optimizer_v2(task, 'sgd', lr=0.1)  # even where it is given the whole task
    for step in range(2):
        set_training(task)
        task(*batch(seed=step))['loss'].backward()
        optimizer.step()
    assert_teacher_unchanged(task, before)
    optimised = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert optimised == {id(p) for p in task.get_trainable_module().parameters()}
    trained = task.get_eval_model().state_dict()
    moved = [name for name in student if not torch.equal(student[name], trained[name])]
    assert {'bn1.running_mean', 'fc.weight', 'conv1.0.weight'} <= set(moved)


@pytest.mark.slow
def test_checkpoint_average_and_clipping_equal_those_of_agmax():
    task = create_task()
    torch.manual_seed(2)
    oracle = AgMaxTask(create_model(), verbose=False)
    for each in (task, oracle):
        each.setup_ema(decay=0.5)
    for ema in (False, True):
        state, expected = task.get_checkpoint_state(ema=ema), oracle.get_checkpoint_state(ema=ema)
        assert state.keys() == expected.keys()
        assert all(state[key].keys() == expected[key].keys() for key in state)
        assert list(task.get_eval_model(ema=ema).state_dict()) == list(oracle.get_eval_model(ema=ema).state_dict())
    for exclude_head in (False, True):
        shapes = [[p.shape for p in each.get_clip_parameters(exclude_head)] for each in (task, oracle)]
        assert shapes[0] == shapes[1]
    other = create_task(seed=5)
    other.load_checkpoint_state(**task.get_checkpoint_state())
    assert_same(dict(other.get_task_state()['qnet']), dict(task.get_task_state()['qnet']))


def test_moving_the_task_moves_the_teacher():
    task = create_task().double()
    input, target = batch()
    assert {value.dtype for value in (*task.teacher.parameters(), task.student_mean, task.student_std)} == {
        torch.float64}
    assert task(input.double(), target)['kd_loss'].dtype == torch.float64
    assert not {'student_mean', 'student_std'} & set(task.state_dict())


def test_ddp_wraps_only_the_trained_modules(tmp_path):
    task, oracle = create_task(), create_task()
    expected = oracle(*batch())
    expected['loss'].backward()
    dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert task.prepare_distributed() is task
        assert [type(m).__name__ for m in task.modules()].count('DistributedDataParallel') == 1
        assert type(task.teacher) is DistillationTeacher
        result = task(*batch())
        result['loss'].backward()
    finally:
        dist.destroy_process_group()
    assert_same(result, expected)
    assert_same(gradients(task), gradients(oracle))
    assert task.get_checkpoint_state()['state_dict'].keys() == oracle.get_checkpoint_state()['state_dict'].keys()


@pytest.mark.slow
def test_compiled_equals_uncompiled():
    torch._dynamo.reset()
    task = create_task(init_std=0.2)
    expected = copy.deepcopy(task)
    before = cloned(task.teacher.model.state_dict())
    compiled = task.compile(backend='aot_eager')
    assert task.get_eval_model() is compiled
    assert isinstance(task.teacher.model, torch._dynamo.OptimizedModule)
    task.train()
    results = [task(*batch()), expected(*batch())]
    torch.testing.assert_close(*results)
    results[0]['loss'].backward()
    assert_teacher_unchanged(task, {f'_orig_mod.{name}': value for name, value in before.items()})
    assert task.get_checkpoint_state()['state_dict'].keys() == expected.get_checkpoint_state()['state_dict'].keys()


# What cannot be

@pytest.mark.parametrize('options, message', [
    ({'loss_type': 'mse'}, "must be 'kl', got 'mse'"),
    ({'temperature': 0.0}, 'above 0, got 0.0'),
    ({'teacher': Recorder(num_classes=3)}, '10 classes .*, got a teacher with 3'),
    ({'teacher': timm.create_model('test_resnet', num_classes=CLASSES, in_chans=1)}, '1 input channels, .* has 3'),
    ({'mean': (0.5, 0.5)}, 'mean must have 1 value or 3, one per channel, got 2'),
    ({'std': ()}, 'std must have 1 value or 3, one per channel, got 0'),
    ({'kind': 'js'}, 'must be one of mi'),
])
def test_invalid_settings_are_refused(options, message):
    options = {'teacher': Recorder(), **options}
    with pytest.raises(ValueError, match=message):
        AgMaxDistillationTask(create_model(), **options)


class Plain(nn.Sequential):
    """A model without timm's attributes and methods."""

    def __init__(self, outputs=CLASSES):
        super().__init__(nn.Flatten(), nn.LazyLinear(outputs))
        self(batch()[0])


def test_no_argument_of_agmax_is_hidden_by_one_of_the_distillation():
    ours = {name for name, parameter in inspect.signature(AgMaxDistillationTask.__init__).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD}
    assert ours & set(inspect.signature(AgMaxTask.__init__).parameters) == {'self', 'model', 'criterion'}


def test_models_without_the_methods_of_timm_are_accepted():
    student, teacher = Plain(), Plain()
    task = AgMaxDistillationTask(student, teacher, num_classes=CLASSES, verbose=False)
    input, target = batch()
    result = task(input, target)
    expected = distillation_loss(student(input), teacher(input))
    torch.testing.assert_close(result['kd_loss'], expected)


class TwoHeads(Recorder):
    def forward(self, input):
        return super().forward(input), super().forward(input)


@pytest.mark.parametrize('teacher, message', [
    (Plain(3), '10 classes .*, got a teacher with 3'),
    (TwoHeads(), r'TwoHeads must return one tensor .*\[2B, K\]'),
])
def test_teachers_with_other_outputs_are_refused(teacher, message):
    task = AgMaxDistillationTask(create_model(), teacher, verbose=False)
    with pytest.raises(ValueError, match=message):
        task(*batch())


def test_targets_that_are_not_pairs_are_refused():
    input, target = batch()
    with pytest.raises(ValueError, match='targets of the two views differ'):
        create_task()(input, target.roll(1) + torch.arange(len(target)))
