"""AgMax with a teacher: a frozen network gets both views, and the student also learns from its logits.

Distillation: 'Distilling the Knowledge in a Neural Network', https://arxiv.org/abs/1503.02531, weighted as
timm.task.LogitDistillationTask weights it.
"""
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.task import DistillationTeacher
from timm.utils import unwrap_model

from .loss import Criterion
from .task import AgMaxTask

_logger = logging.getLogger(__name__)


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), section 2 of https://arxiv.org/abs/1503.02531.

    Half-precision logits are converted to float32, and autocast is off.

    Args:
        logits: Logits of the student [N, K].
        teacher_logits: Logits of the teacher [N, K].
        temperature: Temperature T of both softmaxes.

    Returns:
        Mean over the N rows: a scalar in nats, in float32, or in float64 for float64 logits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        log_q = F.log_softmax(logits.to(dtype) / temperature, dim=-1)
        log_p = F.log_softmax(teacher_logits.to(dtype) / temperature, dim=-1)
        return temperature ** 2 * F.kl_div(log_q, log_p, reduction='batchmean', log_target=True)


def loss_weights(distill: float | None = None, task: float | None = None) -> tuple[float, float]:
    """Return the weights (distillation, classification), with the defaults of timm's distillation tasks for None.

    If only the classification weight is given, both add up to 1. Otherwise a missing weight is 1.
    """
    if distill is None:
        distill = 1.0 if task is None else 1.0 - task
    return distill, 1.0 if task is None else task


class AgMaxDistillationTask(AgMaxTask):
    """AgMaxTask with a frozen teacher. Replaces timm.task.LogitDistillationTask.

    loss = task_weight * ce + distill_weight * kd + weight * agreement + divergence, where ce and kd are means over
    the 2B views. Without AgMax's terms, this is timm's task on the same 2B images. Without kd, it is AgMaxTask.

    The teacher stays in evaluation mode and gets no gradients. It is not part of checkpoints, EMA or optimizer.

    Args:
        model: Student, a classifier. Its attribute `num_classes` is K.
        teacher: Teacher with K classes: a timm DistillationTeacher, a module, or the name of a timm model. A model of
            that name is created with pretrained weights and the student's number of classes and input channels.
        criterion: Classification loss on logits [2B, K], a module or a function that returns a scalar. None is
            cross-entropy on class indices or soft targets.
        teacher_pretrained_path: File of the teacher's weights, if teacher is a name.
        teacher_pretrained_cfg_overlay: Changes to the teacher's pretrained_cfg, if teacher is a name.
        loss_type: Distillation loss. Only 'kl' exists, as in timm.
        distill_loss_weight: Weight of kd, or None (see loss_weights).
        task_loss_weight: Weight of ce, or None (see loss_weights).
        temperature: Temperature of the distillation (typically 1 to 4).
        mean: Mean that the input was normalised with, one value or one per channel. None is that of the student's
            pretrained_cfg. The teacher gets the input normalised with its own mean and std. As in train.py, a
            pretrained_cfg with another number of channels stands for its mean over the channels.
        std: Standard deviation that the input was normalised with, like mean.
        **agmax: Further keyword arguments of AgMaxTask.

    Raises:
        ValueError: The loss_type is unknown, the temperature is not above 0, mean or std do not fit the channels, or
            the teacher has another number of classes or input channels. See also AgMaxTask.
    """

    student_mean: torch.Tensor
    student_std: torch.Tensor
    teacher_mean: torch.Tensor
    teacher_std: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            teacher: str | nn.Module | DistillationTeacher,
            criterion: Criterion | None = None,
            *,
            teacher_pretrained_path: str | None = None,
            teacher_pretrained_cfg_overlay: dict[str, Any] | None = None,
            loss_type: str = 'kl',
            distill_loss_weight: float | None = None,
            task_loss_weight: float | None = None,
            temperature: float = 1.0,
            mean: Sequence[float] | None = None,
            std: Sequence[float] | None = None,
            **agmax,
    ):
        if loss_type != 'kl':
            raise ValueError(f"loss_type must be 'kl', got '{loss_type}'")
        if temperature <= 0:
            raise ValueError(f'temperature must be above 0, got {temperature}')
        super().__init__(model, criterion, **agmax)
        self.distill_loss_weight, self.task_loss_weight = loss_weights(distill_loss_weight, task_loss_weight)
        self.temperature = temperature

        student = unwrap_model(model)
        if not isinstance(teacher, DistillationTeacher):
            teacher = DistillationTeacher(
                teacher,
                num_classes=self.num_classes,
                in_chans=getattr(student, 'in_chans', 3),
                pretrained_path=teacher_pretrained_path,
                pretrained_cfg_overlay=teacher_pretrained_cfg_overlay,
                device=self.device,
                dtype=self.dtype,
            )
        self.teacher: Any = teacher.to(self.device).requires_grad_(False).eval()
        self._check_teacher(getattr(unwrap_model(teacher.model), 'num_classes', self.num_classes))

        config = getattr(student, 'pretrained_cfg', {})
        of_student, of_teacher = (getattr(unwrap_model(of), 'in_chans', None) for of in (student, teacher.model))
        channels = of_student or of_teacher or teacher.get_buffer('mean_kd').numel()
        if of_teacher not in (None, channels):
            raise ValueError(f'the teacher has {of_teacher} input channels, the student has {channels}: use a teacher '
                             'with the same number of channels')
        for name, given, default in (('mean', mean, IMAGENET_DEFAULT_MEAN), ('std', std, IMAGENET_DEFAULT_STD)):
            if given is not None and len(given) not in (1, channels):
                raise ValueError(f'{name} must have 1 value or {channels}, one per channel, got {len(given)}')
            values = config.get(name, default) if given is None else given
            self._register_channels(f'student_{name}', values, channels)
            self._register_channels(f'teacher_{name}', getattr(teacher, f'{name}_kd').flatten().tolist(), channels)
        self._normalised_alike = (torch.equal(self.student_mean, self.teacher_mean)
                                  and torch.equal(self.student_std, self.teacher_std))
        if self.verbose:
            _logger.info(f'{type(self).__name__}: task_weight={self.task_loss_weight}, '
                         f'distill_weight={self.distill_loss_weight}, temperature={temperature}')

    def train(self, mode: bool = True) -> 'AgMaxDistillationTask':
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss, its parts and the logits of a batch.

        Args:
            input: Images [2B, C, H, W]: all first views, then all second views.
            target: Class indices [2B] or soft targets [2B, K], in the order of the images.

        Returns:
            The dictionary of AgMaxTask, with 'ce' unweighted, and with 'kd_loss', the unweighted distillation loss.
        """
        parts = super().forward(input, target)
        with torch.no_grad():
            teacher_logits = self.teacher(self._teacher_input(input))
        if not isinstance(teacher_logits, torch.Tensor) or teacher_logits.ndim != 2:
            raise ValueError(f'the teacher {type(unwrap_model(self.teacher.model)).__name__} must return one tensor of '
                             'logits [2B, K]')
        self._check_teacher(teacher_logits.shape[1])
        kd_loss = distillation_loss(parts['output'], teacher_logits, self.temperature)
        loss = self.task_loss_weight * parts['ce'] + self.distill_loss_weight * kd_loss
        loss = loss + self.loss.weight * parts['agreement'] + parts['divergence']
        return {**parts, 'loss': loss, 'kd_loss': kd_loss}

    def compile(self, backend: str = 'inductor', mode: str | None = None,  # type: ignore[override]  # timm's
                **compile_kwargs) -> nn.Module:
        """Compile the teacher and what AgMaxTask compiles.

        Returns:
            The compiled model for evaluation.
        """
        self.teacher.compile(backend=backend, mode=mode, **compile_kwargs)
        return super().compile(backend=backend, mode=mode, **compile_kwargs)

    def _check_teacher(self, num_classes: int) -> None:
        if num_classes != self.num_classes:
            raise ValueError(f'the teacher must have the {self.num_classes} classes of the student, got a teacher with '
                             f'{num_classes} classes')

    def _teacher_input(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise a batch for the teacher, without the wait for the device of DistillationTeacher.normalize_input."""
        if self._normalised_alike:
            return input
        return (input * self.student_std + self.student_mean - self.teacher_mean) / self.teacher_std

    def _register_channels(self, name: str, values: Sequence[float], channels: int) -> None:
        """Register one value per channel as a non-persistent buffer [1, C, 1, 1]; if the number differs, their mean."""
        if len(values) != channels:
            values = [sum(values) / len(values)] * channels
        buffer = torch.tensor(values, device=self.device, dtype=self.dtype).view(1, -1, 1, 1)
        self.register_buffer(name, buffer, persistent=False)
