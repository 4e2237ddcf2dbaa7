"""Common corruptions: folders of corrupted images such as ImageNet-C, or corruption while images are loaded.

D. Hendrycks and T. Dietterich, 'Benchmarking Neural Network Robustness to Common Corruptions and Perturbations',
arXiv 1903.12261. Corruption while loading uses the package imagecorruptions-imaug.
"""
import inspect
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # smallest side, in pixels, that the package accepts
# Published top-1 errors of AlexNet on ImageNet-C in percent, means over the five severities. They normalise the
# mean corruption error.
ALEXNET_ERRORS = {
    'gaussian_noise': 88.6428, 'shot_noise': 89.4468, 'impulse_noise': 92.2640, 'defocus_blur': 81.9880,
    'glass_blur': 82.6268, 'motion_blur': 78.5948, 'zoom_blur': 79.8360, 'snow': 86.6816, 'frost': 82.6572,
    'fog': 81.9324, 'brightness': 56.4592, 'contrast': 85.3204, 'elastic_transform': 64.6056, 'pixelate': 71.7840,
    'jpeg_compression': 60.6500,
}

Errors = Mapping[tuple[str, int], float]  # top-1 error in percent by name and severity


def corrupt_rgb(image: Image.Image, name: str, severity: int) -> Image.Image:
    """Corrupt an RGB image, with random numbers of numpy's global generator (see SeededDataset).

    Args:
        name: Name of a corruption (see corruption_names).
        severity: Severity from 1 to 5.
    """
    from imagecorruptions import corrupt
    from imagecorruptions.corruptions import glass_blur, impulse_noise

    kwargs = {}
    if name in (glass_blur.__name__, impulse_noise.__name__):  # they have their own generators
        kwargs['seed'] = int(np.random.randint(2 ** 31))
    return Image.fromarray(corrupt(np.array(image), severity, name, **kwargs))


def corruption_names() -> list[str]:
    """Return the names of the package's corruptions: the 15 of the mean corruption error, and 4 further ones.

    Raises:
        ImportError: The package is missing, or it is the older package of this name, which takes no seed.
    """
    from imagecorruptions import corruptions, get_corruption_names
    if 'seed' not in inspect.signature(corruptions.glass_blur).parameters:
        raise ImportError('imagecorruptions is installed, which takes no seed and does not work with newer versions of '
                          'scikit-image: uninstall it, and install imagecorruptions-imaug')
    return list(get_corruption_names('all'))


def find_corruptions(folder: str) -> dict[str, dict[int, str]]:
    """Return the folders of corrupted images by name and severity.

    They are FOLDER/NAME/1 to 5, or FOLDER/GROUP/NAME/1 to 5 as in the archives of ImageNet-C.
    """
    flat = [path for path in Path(folder).glob('*/[1-5]') if path.is_dir()]
    names = {path.parent for path in flat}
    # Classes may have names from 1 to 5 too, so what is within a folder with severities does not count.
    grouped = [path for path in Path(folder).glob('*/*/[1-5]') if path.is_dir() and path.parents[1] not in names]
    found: dict[str, dict[int, str]] = {}
    for path in sorted(flat + grouped):
        found.setdefault(path.parent.name, {})[int(path.name)] = str(path)
    return dict(sorted(found.items()))


def summarize(errors: Errors, imagenet_c: bool = False) -> dict[str, float]:
    """Return the mean error of each corruption over its severities, and the mean over the corruptions.

    Args:
        errors: Top-1 errors in percent by (name, severity).
        imagenet_c: Whether the images are those of ImageNet-C, for which AlexNet's errors are known.

    Returns:
        'NAME_err' for each corruption and 'corruption_err', their mean, in percent. 'mce', the mean corruption error
        as published, if `imagenet_c` is true and all 15 common corruptions have all severities.
    """
    names = list(dict.fromkeys(name for name, _ in errors))
    means = {name: fmean(error for (other, _), error in errors.items() if other == name) for name in names}
    summary = {f'{name}_err': error for name, error in means.items()}
    summary['corruption_err'] = fmean(means.values())
    mce = mean_corruption_error(errors) if imagenet_c else None
    if mce is not None:
        summary['mce'] = mce
    return summary


def mean_corruption_error(errors: Errors) -> float | None:
    """Return the mean of the errors relative to AlexNet's, in percent; None if one of the 15 x 5 errors is missing."""
    if any((name, severity) not in errors for name in ALEXNET_ERRORS for severity in SEVERITIES):
        return None
    return 100. * fmean(fmean(errors[name, severity] for severity in SEVERITIES) / alexnet
                        for name, alexnet in ALEXNET_ERRORS.items())
