"""How a classifier stands up to other images than those of its test set: corrupted, attacked, augmented twice.

Functions of tensors and images that know nothing of options; run/robustness.py calls them.
"""
