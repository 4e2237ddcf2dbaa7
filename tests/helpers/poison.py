"""Losses and gradients that are not finite, in chosen updates."""
import torch

from agmax_timm.loss import AgMaxLoss


class _BrokenGradient(torch.autograd.Function):
    """Identity whose gradient is NaN."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float('nan')


def poison_gradients(monkeypatch, passes):
    """Make the gradients of these forward passes NaN, counted from 1. The losses stay finite."""
    _poison(monkeypatch, passes, lambda result: {**result, 'loss': _BrokenGradient.apply(result['loss'])})


def poison_losses(monkeypatch, passes):
    """Make the reported cross-entropy of these forward passes NaN, counted from 1. Training uses the right one."""
    _poison(monkeypatch, passes, lambda result: {**result, 'ce': result['ce'] * float('nan')})


def _poison(monkeypatch, passes, poison):
    seen, forward = [], AgMaxLoss.forward

    def poisoned(self, logits, joint, target):
        seen.append(len(logits))
        result = forward(self, logits, joint, target)
        return poison(result) if len(seen) in passes else result

    monkeypatch.setattr(AgMaxLoss, 'forward', poisoned)
