"""Checks of names and arguments in options that timm and torch must know, before a model is built."""
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from timm.data import auto_augment
from timm.models import is_model, list_models
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from ..base.errors import OptionError
from ..base.image_modes import PUBLISHED_POLICIES, timm_policy
from ..base.processes import is_first_process
from ..base.silence import silenced
from ..base.text import nearest, one_line
from .optimization import Schedule
from .parsers import AnyOptions, TrainOptions

_logger = logging.getLogger('train')
# Kinds of policies, of which timm has no list.
_POLICIES = ('original', 'originalr', 'v0', 'v0r', '3a', 'rand', 'augmix', *PUBLISHED_POLICIES)
# Exceptions that timm, torch and Python raise for an invalid argument.
REFUSED = (ValueError, TypeError, AssertionError, KeyError, IndexError, ArithmeticError, ImportError, RuntimeError)


def check_train_names(options: TrainOptions) -> None:
    """Raise OptionError for a device, model, optimizer, schedule or policy that does not exist.

    It draws random numbers, so call it before the seed is set.
    """
    check_device(options.device)
    check_model('--model', options.model)
    if options.kd_model_name:
        check_model('--kd-model-name', options.kd_model_name)
    check_compiler(options)
    check_optimizer(options)
    check_schedule(options)
    if options.aa and not options.no_aug:
        check_policy(options.aa)


def check_device(name: str) -> None:
    """Raise OptionError for a device that torch does not know or this machine does not have."""
    try:
        device = torch.device(name)
        if device.type == 'meta':
            raise RuntimeError('it holds no numbers')
        if device.type != 'cuda':  # the CPU stands in for it
            torch.empty(1, device=device)
        elif torch.cuda.is_available() and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f'there are {torch.cuda.device_count()} CUDA devices')
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError) as error:
        raise OptionError(f"--device '{name}': {one_line(error)[:200]}: use cuda or cpu") from error


def check_model(flag: str, name: str) -> None:
    """Raise OptionError for a name that timm does not have. Names with a source before a colon are not checked."""
    if ':' in name or is_model(name):
        return
    base = name.partition('.')[0].lower()
    similar = list_models(f"*{re.sub('[^a-z0-9_]', '', base)}*")[:5] if base else []
    hint = f", did you mean {', '.join(similar)}?" if similar else nearest(base, list_models())
    raise OptionError(f"{flag} '{name}': timm has no such model{hint or ': see timm.list_models()'}")


def check_compiler(options: AnyOptions) -> None:
    """Raise OptionError for a backend or a mode that torch.compile does not have, or that gives wrong gradients."""
    if not options.torchcompile:
        return
    backends = torch.compiler.list_backends(exclude_tags=())
    if options.torchcompile not in backends:
        raise OptionError(f"--torchcompile '{options.torchcompile}': torch has no such backend"
                          f'{nearest(options.torchcompile, backends)}')
    if options.torchcompile_mode:
        modes = [*torch._inductor.list_mode_options()]
        if options.torchcompile_mode not in modes:
            raise OptionError(f"--torchcompile-mode must be one of {', '.join(modes)}, got "
                              f"'{options.torchcompile_mode}'")
    _check_cuda_graphs(options)


def _check_cuda_graphs(options: AnyOptions) -> None:
    """Raise OptionError where a CUDA graph would write over the gradients of the batch before."""
    if (not isinstance(options, TrainOptions) or options.grad_accum_steps == 1 or not torch.cuda.is_available()
            or torch.device(options.device).type != 'cuda'):
        return
    mode = options.torchcompile_mode
    if options.torchcompile == 'cudagraphs':
        flag, remedy = "--torchcompile 'cudagraphs'", '--torchcompile inductor'
    elif options.torchcompile == 'inductor' and mode and torch._inductor.list_mode_options()[mode].get(
            'triton.cudagraphs'):
        flag, remedy = f"--torchcompile-mode '{mode}'", '--torchcompile-mode default or max-autotune-no-cudagraphs'
    else:
        return
    raise OptionError(f'{flag} records CUDA graphs, in which --grad-accum-steps {options.grad_accum_steps} gives wrong '
                      f'gradients: use {remedy}')


def check_optimizer(options: TrainOptions) -> None:
    """Raise OptionError for an optimizer that timm cannot create, invalid arguments, or a wrong number of betas."""
    name = options.opt.lower().removeprefix('lookahead_')
    try:
        info = get_optimizer_info(name)
    except ValueError as error:
        hint = nearest(name, map(str, list_optimizers()))
        raise OptionError(f"--opt '{options.opt}': timm has no such optimizer{hint}") from error
    momentum = None if options.momentum == 0.9 else options.momentum
    for flag, values, taken in (('--opt-betas', options.opt_betas, info.has_betas),
                                ('--opt-eps', options.opt_eps, info.has_eps),
                                ('--momentum', momentum, info.has_momentum)):
        if values is not None and not taken and is_first_process():
            _logger.warning(f"{flag} has no effect: --opt '{options.opt}' has none.")
    if options.opt_betas is not None and info.has_betas and len(options.opt_betas) != info.num_betas:
        raise OptionError(f"--opt-betas: '{options.opt}' takes {info.num_betas}, got {len(options.opt_betas)}")
    kwargs = dict(optimizer_kwargs(cfg=options), lr=1. if options.lr is None else options.lr)
    for repeated in kwargs.keys() & options.opt_kwargs:
        flag = repeated if hasattr(options, repeated) else f'opt_{repeated}'
        raise OptionError(f"--opt-kwargs {repeated}={options.opt_kwargs[repeated]}: use --{flag.replace('_', '-')}")
    _try(f"--opt '{options.opt}', --opt-kwargs", lambda: create_optimizer_v2(_Tiny(), **kwargs, **options.opt_kwargs))


def check_schedule(options: Schedule) -> None:
    """Raise OptionError for a schedule that timm cannot use, and for epochs after its end."""
    flags = f'--sched {options.sched}, --epochs, --warmup-*, --decay-*, --lr-*'
    optimizer = torch.optim.SGD(_Tiny().parameters(), lr=1.)
    updates = 1000 if options.sched_on_updates else 1  # a common number of updates per epoch
    scheduler, epochs = _try(flags, lambda: create_scheduler_v2(
        optimizer, **scheduler_kwargs(options, decreasing_metric=True), updates_per_epoch=updates))
    check_epochs(options, epochs)
    if scheduler is None:
        return
    step = scheduler.step_update if options.sched_on_updates else scheduler.step
    _try(flags, lambda: [step(epoch * updates, 0.) for epoch in range(min(epochs, 1000))])


def check_epochs(options: Schedule, epochs: int) -> None:
    """Raise OptionError if --stop-epoch or --start-epoch is larger than the number of epochs."""
    if options.stop_epoch is not None and options.stop_epoch > epochs:
        raise OptionError(f'--stop-epoch {options.stop_epoch} is past the last epoch: there are {epochs}')
    if options.start_epoch is not None and options.start_epoch >= epochs:
        raise OptionError(f'--start-epoch {options.start_epoch} is past the last epoch: there are {epochs}, from 0 on')


def check_policy(policy: str) -> None:
    """Raise OptionError for a policy that timm does not have, or of which it would ignore a part."""
    kind, *sections = policy.split('-')
    for section in sections:
        if not re.search(r'\d', section) and not (kind == 'rand' and section.startswith('t')):
            raise OptionError(f"--aa '{policy}': '{section}' has no number, so timm would leave it out, as in "
                              'rand-m9-n2')
        if any(float(number) > 1000 for number in re.findall(r'\d+', section) if not section.startswith('mstd')):
            raise OptionError(f"--aa '{policy}': '{section}' is more than any policy has: use 1000 or less")
    makers = {'rand': auto_augment.rand_augment_transform, 'augmix': auto_augment.augment_and_mix_transform}
    make = makers.get(kind, auto_augment.auto_augment_transform)
    hint = nearest(kind, _POLICIES) if kind not in _POLICIES else ''
    _try(f"--aa '{policy}'", lambda: make(timm_policy(policy), dict(translate_const=10, img_mean=(0, 0, 0))), hint)


def _try(flags: str, make: Callable[[], Any], hint: str = '') -> Any:
    """Return make(), a substitute for an object that the run creates later. Raise OptionError if it fails."""
    try:
        with silenced():
            return make()
    except REFUSED as error:
        raise OptionError(f'{flags}: {one_line(error)}{hint}') from error


class _Tiny(torch.nn.Module):
    """The smallest module for which optimizers and layer decay can be created."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))

    def group_matcher(self, coarse: bool = False):
        return dict(stem='weight')
