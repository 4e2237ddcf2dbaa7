"""Losses and gradients that are not finite, in updates of choice."""
import torch

from agmax_timm.loss import AgMaxLoss


class _BrokenGradient(torch.autograd.Function):
    """A number whose gradient is not one."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float('nan')


def poison_gradients(monkeypatch, passes):
    """Make the gradients of these forward passes, from 1 on, NaN, and leave the losses as they are."""
    _poison(monkeypatch, passes, lambda result: {**result, 'loss': _BrokenGradient.apply(result['loss'])})


def poison_losses(monkeypatch, passes):
    """Make the cross-entropy that these forward passes, from 1 on, report NaN, and leave what they train on."""
    _poison(monkeypatch, passes, lambda result: {**result, 'ce': result['ce'] * float('nan')})


def _poison(monkeypatch, passes, poison):
    seen, forward = [], AgMaxLoss.forward

    def poisoned(self, logits, joint, target):
        seen.append(len(logits))
        result = forward(self, logits, joint, target)
        return poison(result) if len(seen) in passes else result

    monkeypatch.setattr(AgMaxLoss, 'forward', poisoned)
