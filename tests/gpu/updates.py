"""Updates of small tasks on a device, as a run makes them."""
import warnings
from argparse import Namespace
from contextlib import contextmanager
from functools import cache

import timm
import torch

from agmax_timm import AgMaxTask
from agmax_timm.assembly import model
from agmax_timm.training.updates import loop
from agmax_timm.training.updates.finite_check import FiniteCheck
from agmax_timm.training.updates.losses import RunningLosses
from agmax_timm.training.updates.step import Step, Training
from tests.helpers.updates import OPTIONS, UnreadLosses

BFLOAT16, FLOAT16 = dict(amp=True, amp_dtype='bfloat16'), dict(amp=True, amp_dtype='float16')


def options(**changed):
    return Namespace(**{**OPTIONS, **dict(amp=False, amp_dtype='float16', model_dtype=None, fsdp=False), **changed})


def make_network(device, name='test_resnet', classes=10, dtype=None, **kwargs):
    """The same weights on every device."""
    torch.manual_seed(0)
    if name == 'test_vit':
        kwargs = dict(img_size=32, **kwargs)
    return timm.create_model(name, num_classes=classes, **kwargs).to(device, dtype)


def make_task(device, name='test_resnet', **kwargs):
    return AgMaxTask(make_network(device, name), verbose=False, **kwargs)


def batches(device, count, images=8, size=32, classes=10, soft=False, dtype=None):
    """The same batches on every device."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        input = torch.randn(2 * images, 3, size, size, generator=generator, dtype=dtype)
        target = torch.randint(classes, (images,), generator=generator).repeat(2)
        if soft:
            target = torch.nn.functional.one_hot(target, classes) * 0.9 + 0.1 / classes
        made.append((input.to(device), target.to(device)))
    return made


def make_step(task, device, args, optimizer=None, on_broken=None):
    optimizer = optimizer or torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05, momentum=0.9)
    return Step(Training(task, optimizer, args, device, model.build_precision(args, device)),
                finite_check=FiniteCheck(args, device), on_broken=on_broken)


def train(step, data):
    """Train one epoch without reading its losses, which would wait for the device."""
    loop.train_one_epoch(0, step, data, losses=UnreadLosses(step.training.device))


def train_and_read(step, data):
    """Mean losses of one epoch."""
    return loop.train_one_epoch(0, step, data, losses=RunningLosses(step.training.device))[0]


def weights(task):
    """All weights and running statistics, in one vector on the host in float64."""
    state = task.get_trainable_module().state_dict().values()
    return torch.cat([value.detach().double().flatten().cpu() for value in state if value.is_floating_point()])


def distance(one, other):
    """Relative distance of two vectors. NaN if one of them is not finite."""
    return float((one - other).norm() / other.norm())


@contextmanager
def host_waits(device):
    """List of the calls in which the host waits for a GPU, without waits for events. Complete after the context."""
    waits = []
    if device.type != 'cuda':
        yield waits
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode('default')
    waits += [str(warning.message) for warning in seen if 'called a synchronizing' in str(warning.message)]


def keep_busy(device, seconds):
    """Queue this many seconds of work on a GPU. A CPU has no queue."""
    if device.type == 'cuda':
        for _ in range(max(1, int(seconds))):
            torch.cuda._sleep(int(min(seconds, 1.) * _cycles_per_second()))


@cache
def _cycles_per_second():
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(10 ** 9)  # an idle GPU has a lower clock
    start.record()
    torch.cuda._sleep(10 ** 7)
    end.record()
    end.synchronize()
    return 1e10 / start.elapsed_time(end)  # of milliseconds


def synchronize(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()
