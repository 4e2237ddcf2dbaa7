"""The main functions of train.py and validate.py in one module."""
from .train import main as train
from .validate import main as validate

__all__ = ['train', 'validate']
