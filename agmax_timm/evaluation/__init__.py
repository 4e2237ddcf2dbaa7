"""Evaluating models: one evaluation, metrics, many checkpoints, prediction."""
