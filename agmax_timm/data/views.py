"""Two views of an image: one decode, one transform, two draws."""
from typing import Any, Callable, Tuple


class TwoViews:
    """Apply one random transform twice, independently, to one decoded image.

    It stands where the transform stood, so every kind of dataset that takes a transform gives two views: an image
    becomes a tuple of two.

    Args:
        transform: Random transform of one image.
    """

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform = transform

    def __call__(self, image: Any) -> Tuple[Any, Any]:
        return self.transform(image), self.transform(image)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'
