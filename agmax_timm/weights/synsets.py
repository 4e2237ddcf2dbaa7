"""ImageNet's words for its synsets, as descriptions of classes."""
import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo

_SYNSET = re.compile(r'n\d{8}')


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


_imagenet = cache(ImageNetInfo)  # timm's tables, which describe the synsets of all subsets
