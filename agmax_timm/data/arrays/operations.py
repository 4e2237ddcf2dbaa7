"""timm's AutoAugment, RandAugment, AugMix and 3-Augment operations for uint8 arrays [H, W, 3], by timm's names.

timm makes all random draws. Only the function of an AugmentOp, its `aug_fn`, is replaced by one with the same arguments
and the same random draws. So the random numbers of a run do not change.

The number of OpenCV's threads is a setting of the whole process, so this package does not change it. A process that
loads data together with others, such as a loader worker, calls cv2.setNumThreads(0) when it starts.
"""
from collections.abc import Callable

from timm.data.auto_augment import NAME_TO_OP

from . import blur, colour, geometry

# By the names of timm's functions, of which three are torchvision's here.
_FUNCTIONS: dict[str, Callable] = {
    **vars(blur), **vars(colour), **vars(geometry), 'color': colour.adjust_saturation,
    'contrast': colour.adjust_contrast, 'brightness': colour.adjust_brightness}
OPERATIONS = {name: _FUNCTIONS[function.__name__] for name, function in NAME_TO_OP.items()
              if function.__name__ in _FUNCTIONS}
