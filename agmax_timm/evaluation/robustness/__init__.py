"""Evaluation on corrupted, attacked and augmented images."""
