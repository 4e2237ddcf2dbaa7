"""Registration of this package's models with timm when timm is imported. This package does not import timm for it."""
import sys
from importlib import import_module
from importlib.machinery import PathFinder

_REGISTRY = 'timm.models'
_MODELS = ('.weights.released', '.weights.wide_resnet')


def register_with_timm() -> None:
    """Import the models now if timm.models is imported, otherwise when it is."""
    if _REGISTRY in sys.modules:
        _import_models()
    else:
        sys.meta_path.insert(0, _AfterTimm())


def _import_models() -> None:
    for name in _MODELS:
        import_module(name, __package__)


class _AfterTimm:
    """A meta path finder that extends the import of timm.models. Importing importlib.abc would slow down --help."""

    def find_spec(self, name, path, target=None):
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                _import_models()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this loader alone
        return spec
