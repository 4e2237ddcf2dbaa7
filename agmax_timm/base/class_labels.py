"""Names of classes in published models."""
from typing import Any


def index_names(count: int) -> list[str]:
    """Return the indices of classes as text. A published model has them in place of unknown names.

    Without names, transformers would give ImageNet's names to a model with as many classes as ImageNet.
    """
    return [str(index) for index in range(count)]


def known_names(names: Any, count: int) -> list[str] | None:
    """Return the names of `count` classes by index. None if names are missing, or are only indices.

    Args:
        names: Value in a checkpoint or a config.json, of any type.
    """
    if not isinstance(names, (list, tuple)) or len(names) != count:
        return None
    names = [str(name) for name in names]
    return names if names != index_names(count) else None
