"""--fsdp: weights, gradients, optimizer state and EMA sharded over the ranks by torch's fully_shard (FSDP2).

The run creates the model and resumes in host memory, and then shards the weights. A layer is gathered only while it
computes. A checkpoint is gathered from all ranks and equals that of a run without --fsdp.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from timm import utils
from timm.task import TrainingTask
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..base.distributed import is_distributed
from ..base.errors import OptionError
from ..network import layer_of_parameters
from ..options.parsers import TrainOptions

# Optimizers of timm whose updates of shards equal their updates of whole weights. Others raise an error at the first
# update, hang (kron) or compute another update without an error (muon).
OPTIMIZERS = (
    'adabelief', 'adadelta', 'adagrad', 'adam', 'adamax', 'adamc', 'adamw', 'adamwlegacy', 'adan', 'adanw', 'adopt',
    'adoptc', 'adoptw', 'lamb', 'lambc', 'lambcd', 'lambcw', 'lambw', 'laprop', 'lapropc', 'larc', 'lars', 'lion',
    'lionc', 'madgrad', 'madgradw', 'momentum', 'nadam', 'nadamc', 'nadamlegacy', 'nadamw', 'nesterov', 'nesterovw',
    'nlarc', 'nlars', 'radabelief', 'radam', 'radamlegacy', 'radamw', 'rmsprop', 'rmsproptf', 'rmsproptfc',
    'rmsproptfw', 'sgd', 'sgdc', 'sgdw')


def check_sharding(options: TrainOptions) -> None:
    """Raise OptionError for a single process, and for an optimizer that is not in OPTIMIZERS.

    Call it after the process group is created.
    """
    if not is_distributed():
        raise OptionError('--fsdp shards over the processes of a job, and this is one process: start it with '
                          'torchrun --nproc-per-node 2 (or more) train.py, or drop --fsdp')
    if options.opt.lower() not in OPTIMIZERS:
        raise OptionError(f"--opt '{options.opt}' is not known to update shards as it updates whole weights: with "
                          '--fsdp use adamw, lamb, lion, sgd or another that docs/scale.md lists')


def shard_task(
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        broadcast_buffers: bool = True,
) -> None:
    """Shard the trained module of a task, its EMA and the optimizer state over all ranks, from the values of rank 0.

    Args:
        task: Task with whole modules on any device. Its EMA, if any, is already set up.
        optimizer: Optimizer of the task's parameters, with its state if the run is resumed.
        broadcast_buffers: Whether to broadcast running statistics of BatchNorm from rank 0, the default of DDP.

    Raises:
        OptionError: A weight or an optimizer state cannot be sharded.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained: Any = utils.unwrap_model(task.get_trainable_module())
    unsharded = dict(trained.named_parameters())
    for ema in (False, True) if task.has_ema() else (False,):
        module = utils.unwrap_model(task.get_trainable_module(ema=ema))
        _share_weights(module, device)
        model = utils.unwrap_model(task.get_eval_model(ema=ema))
        # Each layer of the model, then the rest of the model, then the rest of the module that contains it.
        for part in dict.fromkeys([*find_layers(model), model, module]):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    _prepare_training(trained)
    if task.has_ema():
        # torch's foreach functions do not accept sharded parameters together with whole buffers
        ema_module: Any = task.get_trainable_module(ema=True)
        ema_module.foreach = False
    shards = dict(trained.named_parameters())
    _shard_optimizer(optimizer, {parameter: shards[name] for name, parameter in unsharded.items()})
    _add_ddp_features(trained, broadcast_buffers)


def _prepare_training(module: Any) -> None:
    """Initialise the sharding before the first forward pass.

    That pass may be an evaluation, if a run resumes before it. torch would then make the classifier the root instead
    of the module, and allocate memory that cannot be used in training.
    """
    module._get_fsdp_state()._lazy_init()
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()


def _share_weights(module: nn.Module, device: torch.device) -> None:
    """Broadcast the weights and buffers of rank 0. Only one tensor at a time is on the device."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise OptionError(f"--fsdp cannot shard '{name}', a single number: train {type(module).__name__} without "
                              'it')
        parameter.data = parameter.data.contiguous()  # fully_shard does not support channels_last
    for tensor in module.state_dict().values():
        shared = tensor.to(device)
        dist.broadcast(shared, 0)
        tensor.copy_(shared)


def find_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the items of Sequentials and ModuleLists that belong to one layer in timm's layer decay.

    They are the blocks of a ViT, ResNet or ConvNeXt. Containers and single operations are excluded: models may call
    the items of containers themselves, and read the weights of operations.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    layer_of = layer_of_parameters(model)

    def visit(module: nn.Module, prefix: str) -> Iterator[nn.Module]:
        for name, child in module.named_children():
            path = f'{prefix}{name}.'
            layers = {layer for parameter, layer in layer_of.items() if parameter.startswith(path)}
            composed = not isinstance(child, containers) and next(child.children(), None) is not None
            if isinstance(module, containers) and composed and len(layers) == 1:
                yield child
            else:
                yield from visit(child, path)

    return visit(model, '')


def _shard_optimizer(optimizer: torch.optim.Optimizer, shard_of: dict[Any, Any]) -> None:
    """Replace the parameters of an optimizer, and its state for each parameter, by shards."""
    def shard(value: Any, like: DTensor) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        if value.shape != like.shape:
            raise OptionError(f'--fsdp cannot shard the state of {type(optimizer).__name__}: it is not that of single '
                              'weights. Use another --opt, such as adamw or sgd')
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    for group in optimizer.param_groups:
        group['params'] = [shard_of[parameter] for parameter in group['params']]
    state = {shard_of[parameter]: {name: shard(value, shard_of[parameter]) for name, value in values.items()}
             for parameter, values in optimizer.state.items()}
    optimizer.state.clear()
    optimizer.state.update(state)


def _add_ddp_features(module: Any, broadcast_buffers: bool) -> None:
    """Add DDP's no_sync() to a sharded module, and DDP's broadcast of running statistics before each update."""
    accumulating, update_begins = False, True

    @contextmanager
    def no_sync() -> Iterator[None]:
        nonlocal accumulating
        accumulating = True
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            accumulating = False
            module.set_requires_gradient_sync(True)

    def before_forward(*_) -> None:
        nonlocal update_begins
        if update_begins and module.training:
            utils.distribute_bn(module, dist.get_world_size(), reduce=False)
        update_begins = not accumulating

    module.no_sync = no_sync  # called by timm's tasks
    if broadcast_buffers:
        module.register_forward_pre_hook(before_forward)


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor. For a sharded tensor, this is a collective of all ranks."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class WholeState:
    """State of a sharded task and its optimizer at the last gather(), with the interface that the saver expects.

    Args:
        keep: Whether this rank keeps the gathered state, in host memory.
    """

    def __init__(self, task: TrainingTask, optimizer: torch.optim.Optimizer, keep: bool):
        self.task = task
        self.optimizer = optimizer
        self.keep = keep
        self._state: dict[str, Any] = {}

    def gather(self) -> None:
        """Gather the state. All ranks must call it before one of them writes. One tensor at a time is gathered."""
        self._state = self._gather({
            'raw': self.task.get_checkpoint_state(),
            'ema': self.task.get_checkpoint_state(ema=True),
            'optimizer': self.optimizer.state_dict(),
        })

    def _gather(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._gather(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._gather(item) for item in value)
        if isinstance(value, torch.Tensor):
            value = whole(value.detach())
            return value.cpu() if self.keep else None
        return value

    def get_trainable_module(self) -> nn.Module | None:
        return self.task.get_trainable_module()

    def get_checkpoint_state(self, ema: bool = False, **_) -> dict[str, Any]:
        return self._state['ema' if ema else 'raw']

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self._state['optimizer']
