"""Names of classes in published models, and ImageNet's words for its synsets."""
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from timm.data import ImageNetInfo

# Task of a model with several labels per image, in the notes of its pretrained_cfg.
SEVERAL_LABELS = 'multilabel'
_SYNSET = re.compile(r'n\d{8}')


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


def describe(names: Sequence[str]) -> dict[str, str]:
    """Return the descriptions of classes named by ImageNet's synsets: {'n12620546': 'hip, rose hip, rosehip'}.

    timm needs a description of every class, so other names describe themselves. Empty if no name is a synset.
    """
    described = {name: _words(name) for name in names}
    return described if any(name != words for name, words in described.items()) else {}


def _words(name: str) -> str:
    try:
        return _imagenet().label_name_to_description(name) if _SYNSET.fullmatch(name) else name
    except KeyError:  # not in ImageNet
        return name


@lru_cache(maxsize=1)
def _imagenet() -> ImageNetInfo:
    """Return timm's tables of ImageNet, which describe the synsets of all its subsets."""
    return ImageNetInfo()
