"""AgMax training for every timm model. Paper: https://arxiv.org/abs/2110.10536"""
from . import models  # noqa: F401  registers the original's released models in timm
from .data.loader import create_two_view_loader
from .data.mixup import TwoViewCollate
from .data.views import TwoViews
from .loss import AgMaxLoss
from .task import AgMaxTask, QNet

__version__ = '0.1.0'

__all__ = ['AgMaxLoss', 'AgMaxTask', 'QNet', 'TwoViewCollate', 'TwoViews', 'create_two_view_loader']
