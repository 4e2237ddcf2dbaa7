"""Create device, precision and model from options, and distribute the model.

The order is that of timm's script, so that a run without --agmax draws the same random numbers.
"""
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from timm import utils
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.models import _builder, create_model, load_state_dict
from timm.task import TrainingTask

from ..base.command_line import flag_of
from ..base.distributed import is_distributed, is_primary
from ..base.errors import OptionError
from ..base.hub_connection import single_attempt
from ..base.processes import check_launcher
from ..base.signals import StopSignals
from ..base.silence import silenced
from ..base.text import one_line
from ..network import init_normal
from ..options.declare import picked
from ..options.device import Device, TrainDevice
from ..options.model import Model, TrainModel
from ..options.parsers import TrainOptions
from ..options.timm_names import REFUSED, check_model
from ..weights.fit import adapted_modules, misfits
from . import job_start
from .freezing import freeze
from .loss_scaler import LossScaler
from .model_input import build_data_config, input_channels, try_input
from .sharding import shard_task

_logger = logging.getLogger(__name__)


@dataclass
class Precision:
    """Autocast context, loss scaler (only float16 on CUDA), and dtype of the weights (None for float32)."""
    autocast: Callable = nullcontext
    scaler: LossScaler | None = None
    model_dtype: torch.dtype | None = None


def import_device_modules(options: TrainDevice) -> None:
    """Import the backends of devices that are not part of torch."""
    for module in options.device_modules or ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise OptionError(f"--device-modules '{module}': {error}") from error


def init_device(name: str, signals: StopSignals | None = None, single_process: bool = False) -> torch.device:
    """Return the device of this process, the CPU if there is no CUDA. Join the process group if there is one.

    Args:
        signals: Signals that end the wait for other processes.
        single_process: Whether the command always runs as one process, even if a launcher sets variables of several.
    """
    if name.startswith('cuda') and not torch.cuda.is_available():
        name = 'cpu'
        _logger.info('No CUDA device: running on the CPU.')
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    with job_start.one_process() if single_process else nullcontext():
        check_launcher()
        _check_gpus(name)
        return job_start.join(name, signals)


def _check_gpus(device: str) -> None:
    """Raise OptionError if the machine has more processes than GPUs, and none is left for this one."""
    local_rank, count = utils.world_info_from_env()[0], torch.cuda.device_count()
    if device.startswith('cuda') and utils.is_distributed_env() and local_rank >= count:
        raise OptionError(
            f'process {local_rank + 1} of this machine has no GPU, it sees {count}: start one process per GPU, with '
            f'torchrun --nproc-per-node {count}, and in SLURM let each task see all GPUs of its machine '
            '(--gpus-per-node)')


def build_precision(options: Device, device: torch.device) -> Precision:
    if not options.amp:
        return Precision(model_dtype=getattr(torch, options.model_dtype) if options.model_dtype else None)
    dtype = getattr(torch, options.amp_dtype)
    scaler = LossScaler(device=device.type) if device.type == 'cuda' and dtype == torch.float16 else None
    # With --fsdp a cache would keep a copy of every layer's weights until the end of the forward pass.
    cache = not (isinstance(options, TrainDevice) and options.fsdp)
    return Precision(partial(torch.autocast, device_type=device.type, dtype=dtype, cache_enabled=cache), scaler)


def set_backend_options(options: Model) -> None:
    """Set global options of timm and torch. Call it before a model is created."""
    if options.fuser:
        try:
            utils.set_jit_fuser(options.fuser)
        except (AttributeError, RuntimeError) as error:
            raise OptionError(f"--fuser '{options.fuser}': torch {torch.__version__} has no such fuser: leave it out, "
                              'or use --torchcompile in place of --torchscript') from error
    if options.fast_norm:
        set_fast_norm()


def create_named_model(name: str, flag: str = '--model', **kwargs) -> Any:
    """Call timm.create_model. Raise OptionError for an unknown name or a source that cannot be loaded."""
    check_model(flag, name)
    file = ' or --pretrained-path FILE' if 'checkpoint_path' in kwargs else ''  # an option of train.py
    try:
        with single_attempt(f'use a copy on this machine, {flag} local-dir:FOLDER{file}'):
            return create_model(name, **kwargs)
    except Exception as error:
        # Folders, repositories, weights that do not fit and values of arguments can raise any type.
        if flag == '--model' and isinstance(error, (TypeError, AssertionError)):  # an argument without support
            raise OptionError(f"--model '{name}' does not take all of --model-kwargs, --gp, --bn-*, --drop-*: "
                              f'{one_line(error)}') from error
        if kwargs.get('checkpoint_path'):
            raise OptionError(_unfit_checkpoint(name, error, **kwargs)) from error
        if ':' not in name and not isinstance(error, (*REFUSED, AttributeError, OSError)):
            raise
        reason = f'its configuration has no {error}' if isinstance(error, KeyError) else one_line(error, 500)
        raise OptionError(f"{flag} '{name}': {reason}") from error


def _unfit_checkpoint(name: str, error: Exception, checkpoint_path: str, **kwargs) -> str:
    """Return a message about an --initial-checkpoint that does not fit the model; `error` is raised by timm."""
    with suppress(Exception), silenced():
        model, weights = create_model(name, **{**kwargs, 'pretrained': False}), load_state_dict(checkpoint_path)
        head = adapted_modules(model, ('classifier',))
        classes = {len(weights[key]) for key in weights if key.startswith(head)}
        if len(classes) == 1 and not misfits(weights, model, adapted=head):
            return (f"--initial-checkpoint '{checkpoint_path}' has {classes.pop()} classes, the model "
                    f"{model.num_classes}: use --pretrained --pretrained-path '{checkpoint_path}', which starts with a "
                    'new head, or another --num-classes')
    return f"--initial-checkpoint '{checkpoint_path}' is not a checkpoint of --model '{name}': {one_line(error, 500)}"


@contextmanager
def _without_pretrained_weights() -> Iterator[None]:
    """Let timm create models without the weights of `pretrained`, which are neither read nor downloaded.

    `pretrained` itself can change a model: with it, fbnetc_100 has another epsilon in batch norm.
    """
    load_pretrained = _builder.load_pretrained
    _builder.load_pretrained = lambda *args, **kwargs: None
    try:
        yield
    finally:
        _builder.load_pretrained = load_pretrained


def build_model(options: TrainOptions, device: torch.device, precision: Precision) -> tuple[Any, dict]:
    """Return the model on its device, and its data configuration.

    A run that resumes gets all weights from its checkpoint later. The model then has its random initial weights.
    """
    set_backend_options(options)
    overlay = dict(options.pretrained_cfg_overlay)
    if options.pretrained_path:
        overlay = dict(file=options.pretrained_path, num_classes=-1, **overlay)  # -1 makes timm adapt the head
    pretrained: dict[str, Any] = dict(pretrained_cfg_overlay=overlay) if overlay else {}
    with _without_pretrained_weights() if options.resume else nullcontext():
        model = create_named_model(
            options.model,
            pretrained=options.pretrained and not options.initial_checkpoint,  # which would replace those weights
            in_chans=input_channels(options),
            drop_rate=options.drop,
            drop_path_rate=options.drop_path,
            drop_block_rate=options.drop_block,
            global_pool=options.gp,
            scriptable=options.torchscript or None,
            checkpoint_path='' if options.resume else options.initial_checkpoint,
            **picked(options, 'num_classes', 'bn_momentum', 'bn_eps'),
            **pretrained,
            **options.model_kwargs,
        )
    if options.init_std is not None:
        init_normal(model, options.init_std)
    _init_head(options, model)
    if options.grad_checkpointing:
        _checkpoint_gradients(options, model)
    count = sum(parameter.numel() for parameter in model.parameters())
    _logger.info(f'Model {options.model} created, param count: {count}')
    data_config = build_data_config(options, model)
    data_config['crop_mode'] = 'center'  # as timm's train.py, for every model

    _warn_without_batch_norm(options, model)
    if options.split_bn:
        model = convert_splitbn_model(model, max(options.aug_splits, 2))
    # with --fsdp, the model stays in host memory until it is sharded
    model.to(device=None if options.fsdp else device, dtype=precision.model_dtype)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if is_distributed() and options.sync_bn:
        if device.type == 'cpu':
            raise OptionError('--sync-bn needs an accelerator, got --device cpu: use --dist-bn reduce')
        model = convert_sync_batchnorm(model)
    freeze(options, model)
    if not (options.fsdp or options.naflex_loader):  # after the steps that change what batch norm needs
        try_input(options, model, data_config, model.num_classes)
    return model, data_config


def _init_head(options: TrainModel, model: Any) -> None:
    """Apply --head-init-scale to weights and bias of the head, and --head-init-bias to its bias."""
    scale, bias = options.head_init_scale, options.head_init_bias
    given = picked(options, 'head_init_scale', 'head_init_bias').items()
    flags = ' and '.join(f'{flag_of(name)} {value}' for name, value in given if value is not None)
    if not flags:
        return
    head: Any = model.get_classifier() if hasattr(model, 'get_classifier') else None
    if not torch.is_tensor(getattr(head, 'weight', None)):
        kind = 'no head' if head is None or isinstance(head, nn.Identity) else f'a {type(head).__name__}'
        if isinstance(head, (tuple, list, nn.ModuleList)):
            kind = f'{len(head)} heads'
        raise OptionError(f"{flags} is for a model with one linear layer as its head, --model '{options.model}' has "
                          f'{kind}: drop it')
    if bias is not None and head.bias is None:
        raise OptionError(f'--head-init-bias {bias} needs a head with a bias: drop it')
    with torch.no_grad():
        for parameter in head.parameters() if scale is not None else ():
            parameter.mul_(scale)
    if bias is not None:
        nn.init.constant_(head.bias, bias)


def _warn_without_batch_norm(options: TrainOptions, model: nn.Module) -> None:
    if not is_primary() or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    for name in ('split_bn', 'sync_bn'):
        if getattr(options, name):
            _logger.warning(f"{flag_of(name)} has no effect: --model '{options.model}' has no batch norm")


def _checkpoint_gradients(options: Model, model: Any) -> None:
    try:
        model.set_grad_checkpointing(enable=True)
    except (AssertionError, AttributeError) as error:  # some models raise AssertionError, others lack the method
        raise OptionError(f"--grad-checkpointing: --model '{options.model}' does not have it: drop it, or use a "
                          'smaller --batch-size with --grad-accum-steps') from error


def script_model(options: Model, model: nn.Module) -> nn.Module:
    """Compile the model by TorchScript.

    Raises:
        OptionError: TorchScript cannot compile the model.
    """
    try:
        return torch.jit.script(model)
    except Exception as error:  # the compiler raises many types
        raise OptionError(f"--torchscript: '{options.model}' cannot be scripted, so use --torchcompile: "
                          f'{one_line(error, 200)}') from error


def compile_and_distribute(
        options: TrainOptions, task: TrainingTask, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Shard the task with --fsdp, compile it, and without --fsdp wrap it in DDP."""
    if options.fsdp:
        shard_task(task, optimizer, device, broadcast_buffers=not options.no_ddp_bb)
    if options.torchcompile:
        task.compile(backend=options.torchcompile, mode=options.torchcompile_mode)
        task.compile_ema(backend=options.torchcompile, mode=options.torchcompile_mode)
    if is_distributed() and not options.fsdp:
        device_ids = [device] if device.type == 'cuda' else None
        # Since torch 2.15, passing the default value causes a warning.
        buffers = dict(broadcast_buffers=False) if options.no_ddp_bb else {}
        task.prepare_distributed(device_ids=device_ids, **buffers)
