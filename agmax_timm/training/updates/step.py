"""An update: the gradients of its batches, the check for values that are not finite, and the optimizer's step."""
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad
from torch.nn.utils import clip_grads_with_norm_

from ...assembly.freezing import keep_statistics
from ...assembly.model import Precision
from ...data.loading.device import Input
from ...options.parsers import TrainOptions
from .finite_check import CheckResult, FiniteCheck
from .losses import BatchLosses, Update


@dataclass
class Training:
    """What is trained, and how."""
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    options: TrainOptions  # resolved: number of classes, learning rate, checkpoint
    device: torch.device
    precision: Precision  # dtypes, and the loss scaler if there is one


class Step:
    """Makes updates of a task.

    Args:
        finite_check: Check of losses and gradients before each update.
        on_broken: Function that is called with an update whose losses or gradients are not finite. It may raise.
        loss_scale: Function from the number of images of a batch to the factor of its gradient; None for equal factors.
    """

    def __init__(
            self,
            training: Training,
            finite_check: FiniteCheck,
            on_broken: Callable[[Update, CheckResult], None] | None = None,
            loss_scale: Callable[[int], float] | None = None,
    ):
        self.training = training
        self.finite_check = finite_check
        self.on_broken = on_broken or (lambda update, checked: None)
        self.loss_scale = loss_scale
        self._module = cast(torch.nn.Module, training.task.get_trainable_module())
        self._parameters = list(self._module.parameters())  # once: the walk to them costs as much as their norm
        self._second_order = getattr(training.optimizer, 'is_second_order', False)
        self._before: Update | None = None  # the previous update, if its gradients are still to be checked

    def begin_epoch(self) -> None:
        self._module.train()
        keep_statistics(self._module)
        self.training.optimizer.zero_grad()

    def accumulate(self, update: Update, input: Input, target: torch.Tensor, batches: int = 1, last: bool = True,
                   further: Sequence[Any] = ()) -> None:
        """Launch the forward and backward pass of a batch, and add its gradient.

        Args:
            input, target: The batch, on the device.
            batches: Number of batches in the update.
            last: Whether this is the last of them.
            further: Further parts of the batch that the task takes.
        """
        if self.finite_check.skips and not update.losses:
            update.keep_buffers(self._module)
        task, precision = self.training.task, self.training.precision
        with nullcontext() if last else task.no_sync():
            with precision.autocast():
                result = task(input, target, *further)
            images = len(target) // (2 if self.training.options.agmax else 1)
            losses = BatchLosses.of(result, images)
            update.losses.append(losses)
            update.input, update.target = input, target
            self.finite_check.check_losses(losses, last=last)
            loss = result['loss'] / batches if batches > 1 else result['loss']
            if self.loss_scale is not None:
                loss = self.loss_scale(images) * loss
            if precision.scaler is None:
                loss.backward(create_graph=self._second_order)
            else:
                precision.scaler.backward(loss, create_graph=self._second_order)

    def make(self, update: Update) -> CheckResult:
        """Make an update from the accumulated batches. Skip it if losses or gradients are not finite.

        Returns:
            The result of the check on all ranks.
        """
        scaler, norm = self.training.precision.scaler, None
        checked = self.finite_check.agree()
        self._check_before(checked)
        if scaler is None:  # the scaler checks gradients itself
            norm = self.finite_check.check_gradients(self._parameters, checked)
        if checked.broken:
            self.on_broken(update, checked)
            update.restore_buffers(self._module)
        elif not self._optimize(norm) and scaler is not None:
            checked.skipped, checked.scale = True, scaler.scale
            self.on_broken(update, checked)
        if self.finite_check.has_late:
            self._before = replace(update, input=None, target=None)  # frees their memory
            if checked.save or checked.stop:
                self.finish()
        self.training.optimizer.zero_grad()
        return checked

    def finish(self) -> None:
        """Check the gradients of the last update, if not done yet. Call it before weights are used or saved."""
        if self._before is not None:
            self._check_before(self.finite_check.read_late())

    def _check_before(self, checked: CheckResult) -> None:
        """Call on_broken for the previous update if its gradients were not finite. The optimizer has used them."""
        before, self._before = self._before, None
        if checked.late and before is not None:
            self.on_broken(before, checked)

    def _optimize(self, norm: torch.Tensor | None) -> bool:
        """Clip the gradients, and step.

        Args:
            norm: Norm of all gradients if it is known, so that clipping by norm need not read them again.

        Returns:
            Whether the update was made; the scaler leaves out those whose gradients are not finite.
        """
        training, options = self.training, self.training.options
        parameters: Any = None
        if options.clip_grad is not None:
            parameters = training.task.get_clip_parameters(exclude_head='agc' in options.clip_mode)
        if training.precision.scaler is not None:
            return training.precision.scaler.step(training.optimizer, options.clip_grad, options.clip_mode, parameters)
        if options.clip_grad is not None and options.clip_mode == 'norm' and norm is not None:
            clip_grads_with_norm_(parameters, options.clip_grad, norm)
        elif options.clip_grad is not None:
            dispatch_clip_grad(parameters, value=options.clip_grad, mode=options.clip_mode)
        training.optimizer.step()
        return True
