"""The evaluation at the end of an epoch: when ranks agree on a signal."""
from argparse import Namespace

import pytest
import torch

from agmax_timm.training import epoch_evaluation


def test_several_ranks_end_an_evaluation_soon_after_a_signal(monkeypatch):
    """The signal comes in batch 11."""
    seen, signals = [], Namespace(received=None)

    def evaluate(*args, on_batch, **kwargs):
        for index in range(100):
            if index == 11:
                signals.received = 'SIGTERM'
            seen.append(index)
            on_batch(index)

    monkeypatch.setattr(epoch_evaluation, 'evaluate', evaluate)
    monkeypatch.setattr(epoch_evaluation, 'is_distributed', lambda: True)
    monkeypatch.setattr(epoch_evaluation, 'in_sequence', lambda options: False)
    monkeypatch.setattr(epoch_evaluation, 'evaluation_sample_limit', lambda loader: None)
    run = Namespace(
        options=Namespace(log_interval=50, fsdp=False), device=torch.device('cpu'), precision=None, loader_eval=None,
        checkpoints=Namespace(watchdog=Namespace(beat=lambda: None), signals=signals),
        task=Namespace(create_evaluator=lambda max_samples: None, get_eval_model=lambda **kwargs: None))
    with pytest.raises(epoch_evaluation.EvaluationStopped):
        epoch_evaluation.evaluate_epoch(run, 0)
    assert seen[-1] == 20
