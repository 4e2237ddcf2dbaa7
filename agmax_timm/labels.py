"""Names of classes: those that a published model carries, and ImageNet's words for its synsets."""
import re
from functools import lru_cache
from typing import Any, Dict, List, Optional, Sequence

from timm.data import ImageNetInfo

# The task of a model with several labels an image, among the notes of its pretrained_cfg.
SEVERAL_LABELS = 'multilabel'
_SYNSET = re.compile(r'n\d{8}')


def index_names(count: int) -> List[str]:
    """Names that a published model has where nobody knows them: its indices.

    Without names, transformers would take a model of as many classes as ImageNet for one of ImageNet.
    """
    return [str(index) for index in range(count)]


def known_names(names: Any, count: int) -> Optional[List[str]]:
    """Names of `count` classes by index, None where they are missing, not as many, or only index_names.

    Args:
        names: What a record or a config.json holds.
    """
    if not isinstance(names, (list, tuple)) or len(names) != count:
        return None
    names = [str(name) for name in names]
    return names if names != index_names(count) else None


def describe(names: Sequence[str]) -> Dict[str, str]:
    """Descriptions of class names where some are synsets of ImageNet: {'n12620546': 'hip, rose hip, rosehip'}.

    Other names describe themselves: timm wants a description of every class. Empty where none is a synset.
    """
    described = {name: _words(name) for name in names}
    return described if any(name != words for name, words in described.items()) else {}


def _words(name: str) -> str:
    try:
        return _imagenet().label_name_to_description(name) if _SYNSET.fullmatch(name) else name
    except KeyError:  # no synset of ImageNet
        return name


@lru_cache(maxsize=1)
def _imagenet() -> ImageNetInfo:
    """timm's tables, which describe the synsets of all its subsets."""
    return ImageNetInfo()
