"""AgMax training for every timm model. Paper: https://arxiv.org/abs/2110.10536

torch and timm are imported with the first public name, not with the package: the command line answers at once. The
original's released models are in timm's registry as soon as both packages are imported, in whichever order.
"""
# ruff: noqa: F401  # names that only type checkers and editors import
from importlib import import_module

from .registration import register_with_timm

__version__ = '0.1.0'

TYPE_CHECKING = False  # true for type checkers and editors, which also know the name without an import of typing
if TYPE_CHECKING:
    from .data.augmentation.mixup import TwoViewCollate
    from .data.indexed_loader import create_indexed_loader
    from .data.loader import create_two_view_loader
    from .data.sources.dataset_factory import create_dataset
    from .data.views import TwoViews
    from .loss import AgMaxLoss
    from .network import QNet
    from .remembered import AgMaxMemoryTask
    from .task import AgMaxTask

_HOMES = {
    'AgMaxLoss': '.loss',
    'AgMaxMemoryTask': '.remembered',
    'AgMaxTask': '.task',
    'QNet': '.network',
    'TwoViewCollate': '.data.augmentation.mixup',
    'TwoViews': '.data.views',
    'create_dataset': '.data.sources.dataset_factory',
    'create_indexed_loader': '.data.indexed_loader',
    'create_two_view_loader': '.data.loader',
}

__all__ = [*_HOMES]

register_with_timm()


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__():
    return [*globals(), *__all__]
