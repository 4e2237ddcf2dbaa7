"""Outputs of a Predictor."""
import torch


def logits_of(predictor, paths):
    """The logits [N, K] of images without damage, float32 on the CPU."""
    return torch.cat([logits for _, logits in predictor._logits(paths)])
