"""Former place of TwoViewCollate and TwoViewMixup."""
from .augmentation.mixup import TwoViewCollate, TwoViewMixup

__all__ = ['TwoViewCollate', 'TwoViewMixup']
