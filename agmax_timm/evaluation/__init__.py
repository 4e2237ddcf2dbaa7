"""Evaluation of one or several models, metrics, analysis and prediction."""
