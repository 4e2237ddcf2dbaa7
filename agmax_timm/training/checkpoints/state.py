"""The state of a run besides its weights and optimizer, which makes resumed runs equal to uninterrupted ones.

Checkpoints store it as tensors and plain values, with a part for each rank.
"""
import logging
import math
import time
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import random_seed, unwrap_model

from ...base.distributed import describe_device, is_distributed, is_primary, rank, world_size
from ...base.errors import CheckpointError
from ...base.random_state import fits_generator, is_of_device, set_random_state
from ...data.resumption.loader import ResumableLoader, start_workers
from ...data.resumption.position import to_random_state, to_tensors
from ...options.derived import ranking_metric
from ..updates.losses import RunningLosses
from ..updates.step import Training

_logger = logging.getLogger('train')


@dataclass
class Position:
    """Where a run continues: before a batch of an epoch or, if `trained`, before the evaluation of the epoch."""
    epoch: int = 0
    batch: int = 0
    trained: bool = False

    def updates(self, updates_per_epoch: int, grad_accum_steps: int) -> int:
        """Return the number of updates before the position. The last update of an epoch may have fewer batches."""
        if self.trained:
            return (self.epoch + 1) * updates_per_epoch
        return self.epoch * updates_per_epoch + math.ceil(self.batch / grad_accum_steps)


@dataclass
class History:
    """The results of the epochs so far."""
    rows: list[dict[str, Any]] = field(default_factory=list)  # of summary.csv
    results: list[dict[str, Any]] = field(default_factory=list)  # of --result


@dataclass
class RunState:
    """Saves and restores the state of a run."""
    training: Training
    loader: ResumableLoader
    loader_eval: Any  # None without validation
    scheduler: Any = None
    history: History = field(default_factory=History)
    evaluated: bool = False  # whether the evaluation loader has been used
    images_per_second: float = 0.  # of training in the last epoch, of all ranks; 0 if it is not known
    started: float = field(default_factory=time.perf_counter)  # moved back by the seconds of earlier processes

    @property
    def seconds(self) -> float:
        """Wall time of the run so far. Time that an interruption lost does not count."""
        return time.perf_counter() - self.started

    def state_dict(
            self,
            position: Position,
            losses: RunningLosses | None = None,
            random: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Return the state on the first rank, None on others. All ranks must call it.

        Args:
            random: Random state to save, in place of the present one.
        """
        rank_state = {
            'loader': self.loader.state_dict(0 if position.trained else position.batch),
            'losses': None if losses is None else losses.state_dict(),
            'buffers': [[buffer.detach().cpu().clone() for buffer in module.buffers()] for module in self._modules()]
            if is_distributed() else [],
        }
        if random is not None:
            rank_state['random'] = to_tensors(random)
        ranks: list[Any] | None = [rank_state]
        if is_distributed():
            ranks = [None] * world_size() if rank() == 0 else None
            dist.gather_object(rank_state, ranks)
        if rank() != 0:
            return None
        return {
            'position': vars(position).copy(),
            'ranks': ranks,
            'lr': [group['lr'] for group in self.training.optimizer.param_groups],
            'generators': {name: _generator_states(owner) for name, owner, _ in self._owners()},
            'rows': [dict(row) for row in self.history.rows],
            'results': list(self.history.results),
            'evaluated': self.evaluated,
            'cost': {'seconds': self.seconds, 'images_per_second': self.images_per_second,
                     'device': describe_device(self.training.device), 'date': datetime.now().isoformat(' ', 'minutes')},
        }

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Position, RunningLosses | None]:
        """Restore a state, except that of the schedule. Call it after all objects are created and wrapped.

        Warns if the run will differ from an uninterrupted one.

        Returns:
            The position in batches of the present loader, and the losses of the epoch so far (None between epochs).

        Raises:
            CheckpointError: The position is within an epoch, and ranks, workers or data changed.
        """
        position = Position(**state['position'])
        ranks = state['ranks']
        same_ranks = len(ranks) == world_size()
        mine = ranks[rank() if same_ranks else 0]
        # Used if the saved random state cannot be restored, as with another number of ranks or another batch size.
        random_seed((self.training.options.seed + 1 + position.epoch) % (2 ** 32 - world_size()), rank())
        try:
            loader = {**mine['loader'], 'random': None} if position.trained else mine['loader']
            changed = self.loader.load_state_dict(loader, position.epoch)
        except CheckpointError as error:
            raise CheckpointError(
                f"--resume '{self.training.options.resume}' is within epoch {position.epoch} and cannot continue with "
                f'{error}: use what it was made with, or a checkpoint of a complete epoch') from error
        position.batch = len(self.loader) if position.trained else self.loader.first_batch
        if same_ranks:
            for module, buffers in zip(self._modules(), mine['buffers']):
                for buffer, saved in zip(module.buffers(), buffers):
                    buffer.data.copy_(saved)
        random = mine['random'] if position.trained else mine['loader']['random']
        left_out = self._load_generators(state['generators'], random)
        self.history = History(list(state['rows']), list(state['results']))
        self.evaluated = state['evaluated']
        cost = state.get('cost', {})  # older checkpoints have none
        self.started -= cost.get('seconds', 0.)
        self.images_per_second = cost.get('images_per_second', 0.)
        if self.evaluated and self.loader_eval is not None:
            start_workers(self.loader_eval)
        if position.trained and same_ranks:
            set_random_state(to_random_state(random), self.training.device)
        if is_primary():
            _warn_of_differences(changed, left_out)
        return position, self._losses(ranks, mine, same_ranks)

    def start_schedule(self, epoch: int, done_updates: int, saved: list[float] | None) -> None:
        """Set the learning rates at a position.

        A plateau schedule is given the metrics of all earlier epochs, so its options and --eval-metric may change.

        Args:
            saved: Learning rates in the checkpoint; None if the options of the schedule changed.
        """
        options, scheduler = self.training.options, self.scheduler
        if scheduler is None:
            return
        if options.sched_on_updates and done_updates:
            scheduler.step_update(done_updates)
        split, metric = 'validation' if options.val_split else 'train', ranking_metric(options)
        metrics = {result['epoch']: result.get(split, {}).get(metric) for result in self.history.results}
        for done in range(epoch):
            scheduler.step(done + 1, metrics.get(done))
        if saved is not None and options.sched != 'plateau':  # updates that were left out did not advance the schedule
            for group, lr in zip(self.training.optimizer.param_groups, saved):
                group['lr'] = lr

    def _load_generators(self, states: dict[str, Any], random: dict[str, Any]) -> list[str]:
        """Restore the random states of the owners. Return those left out: they are of another kind of device."""
        left_out = [] if is_of_device(random, self.training.device) else ['training']
        for name, owner, device in self._owners():
            if not _load_generator_states(owner, states.get(name, {}), device):
                left_out.append('the EMA' if name == 'ema' else f'the {name}')
        return left_out

    def _losses(self, ranks: list[dict], mine: dict, same_ranks: bool) -> RunningLosses | None:
        saved = mine['losses']
        if saved is None:
            return None
        if not same_ranks and saved['sums'] is not None:  # each of the new ranks has an equal share
            sums, count = (sum(each['losses'][name] for each in ranks) / world_size() for name in ('sums', 'count'))
            saved = {**saved, 'sums': sums, 'count': count}
        losses = RunningLosses(self.training.device)
        losses.load_state_dict(saved)
        return losses

    def _modules(self) -> list[torch.nn.Module]:
        modules = [unwrap_model(self.training.task.get_trainable_module())]
        if self.training.task.has_ema():
            modules.append(unwrap_model(self.training.task.get_trainable_module(ema=True)))
        return modules

    def _owners(self) -> list[tuple[str, Any, torch.device]]:
        """Owners of random generators, some optimizers and an EMA in bfloat16, with the device that they draw on."""
        optimizer = getattr(self.training.optimizer, '_base_optimizer', self.training.optimizer)  # inside Lookahead
        owners: list[tuple[str, Any, torch.device]] = [('optimizer', optimizer, self.training.device)]
        if self.training.task.has_ema():
            ema: Any = self.training.task.get_trainable_module(ema=True)
            owners.append(('ema', ema, next(ema.parameters()).device))
        return owners


def _warn_of_differences(changed: list[str], left_out: list[str]) -> None:
    another = 'differs from an uninterrupted run.'
    if changed:
        _logger.warning(f"Continuing with {', '.join(changed)}: no sample of the epoch is repeated, only an incomplete "
                        f'last batch is left out, but the run {another}')
    if left_out:
        _logger.warning(f"The checkpoint has random states of another kind of device for {' and '.join(left_out)}, "
                        f'which are left out: the run continues, but {another}')


def _generator_states(owner: Any) -> dict[str, Any]:
    states: dict[str, Any] = {}
    for name, value in vars(owner).items():
        if isinstance(value, torch.Generator):
            states[name] = {'device_type': value.device.type, 'state': value.get_state()}
        elif isinstance(value, Random):
            states[name] = value.getstate()
    return states


def _load_generator_states(owner: Any, states: dict[str, Any], device: torch.device) -> bool:
    """Restore the states of _generator_states(), except those of another kind of device.

    Returns:
        Whether all states were restored.
    """
    restored = [_load_generator_state(owner, name, saved, device) for name, saved in states.items()]
    return all(restored)


def _load_generator_state(owner: Any, name: str, saved: Any, device: torch.device) -> bool:
    present = getattr(owner, name, None)
    if isinstance(present, Random):
        present.setstate(saved)
    if not isinstance(present, torch.Generator):
        return True
    kind, state = (None, saved) if isinstance(saved, torch.Tensor) else (saved['device_type'], saved['state'])
    for generator in (present, torch.Generator(device)):  # Adahessian moves its own with the first step
        if fits_generator(state, kind, generator.get_state(), generator.device):
            generator.set_state(state)
            setattr(owner, name, generator)
            return True
    return False
