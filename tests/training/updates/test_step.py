"""The cost of an update in addition to the passes of the model: no wait for the device, no repeated work, one graph."""
import time
from argparse import Namespace
from collections import Counter
from contextlib import nullcontext

import pytest
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from agmax_timm import AgMaxTask, QNet
from agmax_timm.assembly.loaders import prepare_batch
from agmax_timm.assembly.loss_scaler import LossScaler
from agmax_timm.assembly.model import Precision
from agmax_timm.data.loading.device import DeviceMixupLoader
from agmax_timm.distillation import AgMaxDistillationTask
from agmax_timm.loss import AGREEMENT_KINDS
from agmax_timm.training.updates import finite_check, loop
from agmax_timm.training.updates.finite_check import CheckResult, FiniteCheck
from agmax_timm.training.updates.losses import BatchLosses, RunningLosses, Update
from agmax_timm.training.updates.step import Step, Training
from tests.helpers.updates import OPTIONS, NoCheck, UnreadLosses

torch.set_num_threads(1)  # small tensors: more threads only wait for each other

CLASSES = 10
IMAGES = 4
UPDATES = 3
def create_task(device='cpu', criterion=None, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=CLASSES, device=device)
    return after_first_forward(AgMaxTask(model, criterion, verbose=False, **kwargs))


def create_distillation_task(**kwargs):
    torch.manual_seed(0)
    model, teacher = [timm.create_model('test_resnet', num_classes=CLASSES) for _ in range(2)]
    return after_first_forward(AgMaxDistillationTask(model, teacher, verbose=False, **kwargs))


def after_first_forward(task):
    """The task after its first forward pass, which waits for the comparison of the targets."""
    task._targets_are_checked = True
    return task


def batch(device='cpu', soft=False):
    target = torch.arange(IMAGES, device=device).repeat(2)
    if soft:
        target = torch.randn(2 * IMAGES, CLASSES, device=device).softmax(-1)
    return torch.randn(2 * IMAGES, 3, 32, 32, device=device), target


def train(task, batches, device='cpu', losses=None, watched=True, scaler=None, **options):
    """The weights after an epoch of loop.train_one_epoch."""
    device, args = torch.device(device), Namespace(**{**OPTIONS, **options})
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    training = Training(task, optimizer, args, device, Precision(scaler=scaler))
    step = Step(training, FiniteCheck(args, device) if watched else NoCheck())
    loop.train_one_epoch(0, step, batches, losses=losses)
    return {name: value.clone() for name, value in task.get_trainable_module().state_dict().items()}


def test_the_time_of_data_in_the_log_is_that_of_the_loader():
    class Late(list):
        def __iter__(self):
            for each in super().__iter__():
                time.sleep(.03)
                yield each

    class SlowStep(Step):
        def accumulate(self, *args, **kwargs):
            time.sleep(.1)
            super().accumulate(*args, **kwargs)

    task, device, args = create_task(), torch.device('cpu'), Namespace(**OPTIONS)
    training = Training(task, torch.optim.SGD(task.parameters(), lr=0.), args, device, Precision())
    step = SlowStep(training, FiniteCheck(args, device))
    told = []
    loop.train_one_epoch(0, step, Late(batch() for _ in range(UPDATES)), on_log=told.append)
    total = told[-1].total
    assert UPDATES * .03 <= total.data_seconds <= total.seconds - UPDATES * .1


def test_the_speed_counts_images_and_not_their_versions():
    """A batch has two augmented versions of 4 images."""
    model, device = timm.create_model('test_resnet', num_classes=CLASSES), torch.device('cpu')
    args = Namespace(**{**OPTIONS, 'agmax': False, 'aug_splits': 2})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.)
    step = Step(Training(ClassificationTask(model, verbose=False), optimizer, args, device, Precision()), NoCheck())
    told = []
    _, rate = loop.train_one_epoch(0, step, [batch() for _ in range(UPDATES)], on_log=told.append)
    assert told[-1].total.images == UPDATES * IMAGES
    assert rate == pytest.approx(UPDATES * IMAGES / told[-1].total.seconds, rel=0.5)


# No wait for the device

class Copies(TorchDispatchMode):
    """Record copies from one device to another, and whether the host waits for them.

    torch refuses copies from 'meta' to the host. They are replaced by zeros.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, device = args[0], kwargs.get('device', args[0].device)
            self._note(source.device, device, kwargs.get('non_blocking', False))
            if source.is_meta and device.type == 'cpu':
                return torch.zeros(source.shape, dtype=kwargs.get('dtype', source.dtype))
        elif func is torch.ops.aten.copy_.default:
            self._note(args[1].device, args[0].device, args[2] if len(args) > 2 else False)
        return func(*args, **kwargs)

    def _note(self, source, destination, non_blocking):
        if source.type != destination.type:
            self.seen.append((source.type, destination.type, 'continues' if non_blocking else 'waits'))


@pytest.fixture
def copies(monkeypatch):
    """Copies of whole updates on 'meta'. Tensors there have no values, so reading one is an error."""
    generator = torch.Generator
    monkeypatch.setattr(torch, 'Generator', lambda device=None: generator())  # the EMA's; it has none,
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # and no autocast
    with Copies() as mode:
        yield mode


def assert_no_wait(copies, task, batches, updates=UPDATES, **options):
    copies.seen.clear()
    train(task, batches, 'meta', UnreadLosses(torch.device('meta')), **options)
    # The flags of the check, which do not wait for a GPU (see below). After the epoch, those of its last gradients.
    assert copies.seen == [('meta', 'cpu', 'waits')] * (updates + 1)


def test_reads_and_copies_are_detected(copies):
    x = torch.ones(3, device='meta')
    for read in (x[0].item, lambda: bool(x[0] > 0), x[0].__float__, x.nonzero, lambda: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    torch.ones(3).to('meta')
    x.to('cpu', non_blocking=True)
    assert copies.seen == [('cpu', 'meta', 'waits'), ('meta', 'cpu', 'continues')]


@pytest.mark.slow
@pytest.mark.parametrize('kind, options', [
    *((kind, {}) for kind in AGREEMENT_KINDS),
    ('mi', {'clip_grad': 1.0}), ('mi', {'clip_grad': 0.1, 'clip_mode': 'value'})], ids=str)
def test_no_update_waits_for_the_device(copies, kind, options):
    task = create_task('meta', kind=kind)
    task.setup_ema()
    assert_no_wait(copies, task, [batch('meta') for _ in range(UPDATES)], **options)


@pytest.mark.slow
def test_no_batch_of_an_update_waits_for_the_device(copies):
    assert_no_wait(copies, create_task('meta'), [batch('meta') for _ in range(4)], updates=2, grad_accum_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize('criterion, soft', [
    (None, True), (SoftTargetCrossEntropy(), True), (LabelSmoothingCrossEntropy(), False),
    (BinaryCrossEntropy(), False), (BinaryCrossEntropy(), True)],
    ids=['soft', 'timm-soft', 'timm-smoothed', 'binary-hard', 'binary-soft'])
def test_no_criterion_waits_for_the_device(copies, criterion, soft):
    assert_no_wait(copies, create_task('meta', criterion), [batch('meta', soft) for _ in range(UPDATES)])


@pytest.mark.slow
@pytest.mark.parametrize('normalisation', [{}, {'mean': (0.1, 0.2, 0.3)}], ids=['the same', 'another'])
def test_no_teacher_waits_for_the_device(copies, normalisation):
    task = create_distillation_task(**normalisation).to('meta')
    assert_no_wait(copies, task, [batch('meta') for _ in range(UPDATES)])


class Event:
    def record(self):
        pass


@pytest.fixture
def gpu_copies(monkeypatch):
    """Copies of forward passes on fake tensors of a GPU. autograd needs a real one."""
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    with FakeTensorMode(), Copies() as mode:
        yield mode


def test_a_tensor_from_a_list_on_the_gpu_is_detected(gpu_copies):
    torch.tensor([True], device='cuda')
    assert gpu_copies.seen == [('cpu', 'cuda', 'waits')]


def test_batches_without_the_prefetcher_are_copied_to_a_gpu_without_a_wait(gpu_copies):
    device, args = torch.device('cuda'), Namespace(no_prefetcher=True, channels_last=True)
    images, target = torch.zeros(2 * IMAGES, 3, 32, 32), torch.zeros(2 * IMAGES, dtype=torch.long)
    patches = dict(patches=torch.zeros(2 * IMAGES, 4, 12), patch_valid=torch.zeros(2 * IMAGES, 4), seq_len=4)
    gpu_copies.seen.clear()
    moved = [*prepare_batch(args, images, target, device, Precision()),
             *prepare_batch(args, patches, target, device, Precision(model_dtype=torch.bfloat16)),
             *next(iter(DeviceMixupLoader([(images, target)], lambda *batch: batch, device)))]
    assert gpu_copies.seen == [('cpu', 'cuda', 'continues')] * 7
    assert {value.device.type for value in moved if torch.is_tensor(value)} == {'cuda'}
    assert moved[2]['patches'].dtype == torch.bfloat16 and moved[2]['seq_len'] == 4


@pytest.mark.slow
@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_losses_and_the_finite_check_do_not_wait_for_a_gpu(gpu_copies, kind, monkeypatch):
    device = torch.device('cuda')
    monkeypatch.setattr(QNet, 'to', lambda qnet, device: QNet(CLASSES, device=device))  # fake parameters cannot move
    task = create_task(device, kind=kind)
    check = FiniteCheck(Namespace(**OPTIONS), device, requests=lambda: (True, False))
    losses, (input, target) = RunningLosses(device), batch(device)
    gpu_copies.seen.clear()
    for last in (False, True):
        of_batch = BatchLosses.of(task(input, target), IMAGES)
        check.check_losses(of_batch, last)
        losses.update(of_batch)
    for parameter in task.get_clip_parameters():
        parameter.grad = torch.empty_like(parameter)
    check.check_gradients([*task.get_trainable_module().parameters()], CheckResult([], []))
    assert gpu_copies.seen == [('cuda', 'cpu', 'continues')], 'the flags of the finite check'


# No work done twice

class Counts(TorchDispatchMode):
    def __init__(self, *ops):
        super().__init__()
        self.ops = ops
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.overloadpacket in self.ops
        return func(*args, **(kwargs or {}))


NORMS = torch.ops.aten.linalg_vector_norm, torch.ops.aten._foreach_norm


@pytest.mark.parametrize('build', [create_task, lambda: ClassificationTask(
    timm.create_model('test_resnet', num_classes=CLASSES), torch.nn.CrossEntropyLoss(), verbose=False)],
    ids=['agmax', 'plain'])
def test_the_norm_of_the_gradients_is_computed_once(build):
    torch.manual_seed(0)
    task, batches = build(), [batch() for _ in range(UPDATES)]
    start = {name: value.clone() for name, value in task.get_trainable_module().state_dict().items()}
    with Counts(*NORMS) as norms:
        watched = train(task, batches, clip_grad=0.01)
    with Counts(*NORMS) as once:
        get_total_norm([parameter.clone() for parameter in task.get_trainable_module().parameters()])
    assert norms.calls == UPDATES * once.calls > 0

    task.get_trainable_module().load_state_dict(start)
    expected = train(task, batches, clip_grad=0.01, watched=False)
    torch.testing.assert_close(watched, expected, rtol=0, atol=0)
    task.get_trainable_module().load_state_dict(start)
    assert not torch.equal(list(train(task, batches).values())[0], list(expected.values())[0]), 'clipping has an effect'


VIEWS = {'view', 't', 'transpose', 'detach', 'expand', 'select', 'slice', 'split', 'split_with_sizes', 'unsqueeze',
         'squeeze', '_unsafe_view', '_reshape_alias', 'alias', 'permute', 'unbind', 'as_strided', 'lift_fresh', 'empty',
         'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'isnan'}  # the last one is on the host


class Operators(TorchDispatchMode):
    """Count the operators that compute something, by name. On a GPU, each launches one kernel or more."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ not in VIEWS:
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators_of_an_update(train_updates):
    """Operators of the third of three updates, by name."""
    counts = []
    for updates in (2, 3):
        with Operators() as operators:
            train_updates(updates)
        counts.append(operators.names)
    return counts[1] - counts[0]


@pytest.mark.slow
@pytest.mark.parametrize('build, most', [
    (create_task, 55), (lambda: create_task(kind='mse'), 16),
    (lambda: ClassificationTask(timm.create_model('test_resnet', num_classes=CLASSES), torch.nn.CrossEntropyLoss(),
                                verbose=False), 8)], ids=['agmax', 'mse', 'plain'])
def test_an_update_has_few_more_operators_than_plain_training(build, most):
    """docs/benchmarks.md states the numbers."""
    model = timm.create_model('test_resnet', num_classes=CLASSES)

    def plain_updates(count):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        for _ in range(count):
            input, target = batch()
            torch.nn.functional.cross_entropy(model(input), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    def updates(count):
        device, args = torch.device('cpu'), Namespace(**OPTIONS)
        check = FiniteCheck(args, device)
        check.at_once = False  # as on a GPU
        optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1, momentum=0.9, foreach=True)
        step = Step(Training(task, optimizer, args, device, Precision()), finite_check=check)
        loop.train_one_epoch(0, step, [batch() for _ in range(count)], losses=UnreadLosses(device))

    task = build()
    more = operators_of_an_update(updates) - operators_of_an_update(plain_updates)
    assert more.total() <= most, more


# Scaled losses, as float16 needs them

@pytest.mark.slow
@pytest.mark.parametrize('accum_steps', [1, 2])
@pytest.mark.parametrize('clip', [{}, dict(clip_grad=0.1), dict(clip_grad=0.01, clip_mode='value'),
                                  dict(clip_grad=0.01, clip_mode='agc')], ids=str)
def test_a_scaled_loss_makes_the_same_updates(accum_steps, clip):
    """The scale is a power of two, which does not round float32 values."""
    batches = [batch() for _ in range(UPDATES * accum_steps)]
    expected = train(create_task(), batches, grad_accum_steps=accum_steps, **clip)
    scaled = train(create_task(), batches, scaler=LossScaler('cpu'), grad_accum_steps=accum_steps, **clip)
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-7)
    begun = dict(create_task().get_trainable_module().named_parameters())
    assert any((expected[name] - value).abs().max() > 1e-3 for name, value in begun.items())


def test_an_overflow_skips_the_update_and_halves_the_scale():
    task, scaler = create_task(), LossScaler('cpu')
    parameters = dict(task.get_trainable_module().named_parameters())
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    scale = scaler.state_dict()['scale']
    overflow = next(iter(parameters.values())).register_hook(lambda gradient: gradient * float('inf'))
    train(task, [batch()], scaler=scaler)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    assert scaler.state_dict()['scale'] == scale / 2
    overflow.remove()
    train(task, [batch()], scaler=scaler)
    assert not all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())


@pytest.fixture
def events(monkeypatch):
    """Launches and waits of the host, in order."""
    seen = []

    def note(owner, name, word):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (seen.append(word), function(*args, **kwargs))[1])

    note(AgMaxTask, 'forward', 'forward')
    note(torch.Tensor, 'backward', 'backward')
    note(torch.optim.SGD, 'step', 'step')
    note(finite_check._Reading, 'read', 'wait for flags')
    note(torch.Tensor, 'item', 'wait for gradients')
    return seen


@pytest.mark.slow
@pytest.mark.parametrize('dtype, policy, accum_steps', [  # all pairs of values
    ('float32', 'stop', 1), ('float32', 'skip', 2), ('bfloat16', 'stop', 2), ('bfloat16', 'skip', 1),
    ('float16', 'stop', 1), ('float16', 'skip', 2)])
def test_all_passes_of_an_update_are_launched_before_the_host_waits(events, dtype, policy, accum_steps):
    """As on a GPU. There, gradients are read with the next update unless broken updates are left out."""
    device, args = torch.device('cpu'), Namespace(**{**OPTIONS, 'nan_policy': policy, 'grad_accum_steps': accum_steps})
    check, task = FiniteCheck(args, device), create_task()
    check.at_once = policy == 'skip'
    precision = Precision(
        nullcontext if dtype == 'float32' else lambda: torch.autocast('cpu', dtype=getattr(torch, dtype)),
        LossScaler('cpu') if dtype == 'float16' else None)
    step = Step(Training(task, torch.optim.SGD(task.parameters(), lr=0.1), args, device, precision), finite_check=check)
    step.begin_epoch()
    for index in range(2):
        events.clear()
        update = Update(0, index)
        for number in range(accum_steps):
            step.accumulate(update, *batch(), accum_steps, last=number == accum_steps - 1)
        step.make(update)
        waits = ['wait for gradients'] if dtype == 'float16' or policy == 'skip' else []
        scaled = ['wait for gradients'] if dtype == 'float16' else []  # torch's scaler reads them once more
        assert events == ['forward', 'backward'] * accum_steps + ['wait for flags', *waits, *scaled, 'step']


def test_a_skipped_update_does_not_advance_average_and_schedule():
    task, scaler, moves = create_task(), LossScaler('cpu'), []
    task.setup_ema(decay=0.5)
    first = next(iter(task.get_trainable_module().parameters()))
    overflowing = [0, 2]
    number = iter(range(4))
    first.register_hook(lambda gradient: gradient * (float('inf') if next(number) in overflowing else 1))
    task.update_ema = lambda step: moves.append(('ema', step))

    class Schedule:
        def step_update(self, num_updates):
            moves.append(('schedule', num_updates))

    device, args = torch.device('cpu'), Namespace(**OPTIONS)
    found = []
    step = Step(Training(task, torch.optim.SGD(task.parameters(), lr=0.1), args, device, Precision(scaler=scaler)),
                finite_check=FiniteCheck(args, device), on_broken=lambda *broken: found.append(broken))
    loop.train_one_epoch(0, step, [batch() for _ in range(4)], scheduler=Schedule())
    assert moves == [('ema', 2), ('schedule', 2), ('ema', 4), ('schedule', 4)]
    assert [update.first_batch for update, _ in found] == overflowing
    assert [checked.scale for _, checked in found] == [2. ** 15, 2. ** 14]


# One graph to compile

class LinearModel(torch.nn.Sequential):
    """A model that is compiled in little time."""
    num_classes = CLASSES

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize('kind, criterion, soft', [
    *((kind, None, False) for kind in AGREEMENT_KINDS), ('mi', None, True), ('mi', SoftTargetCrossEntropy(), True),
    ('mi', LabelSmoothingCrossEntropy(), False)], ids=[*AGREEMENT_KINDS, 'soft', 'timm-soft', 'timm-smoothed'])
def test_a_task_and_its_loss_are_one_graph(kind, criterion, soft):
    torch._dynamo.reset()
    task = after_first_forward(AgMaxTask(LinearModel(), criterion, kind=kind, init_std=0.2, verbose=False))
    input, target = batch(soft=soft)
    task(input, target)['loss'].backward()
    expected = [parameter.grad for parameter in task.get_clip_parameters()]
    task.zero_grad()
    compiled = torch.compile(task, backend='aot_eager', fullgraph=True)  # a break is an error
    compiled(input, target)['loss'].backward()
    torch.testing.assert_close(
        [parameter.grad for parameter in task.get_clip_parameters()], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['mi', 'mse'])
def test_task_compile_gives_one_graph_per_part(kind):
    torch._dynamo.reset()
    graphs = []
    task = create_task(kind=kind)

    def note(graph, inputs):
        graphs.append(graph)
        return graph

    task.compile(backend=note, fullgraph=True)
    for _ in range(2):
        task(*batch())['loss'].backward()
    assert len(graphs) == 2, 'the model with its Q-network, and the loss'
