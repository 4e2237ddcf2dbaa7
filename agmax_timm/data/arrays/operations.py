"""timm's AutoAugment, RandAugment, AugMix and 3-Augment operations for uint8 arrays [H, W, 3], by timm's names.

timm makes all random draws. Only the function of an AugmentOp, its `aug_fn`, is replaced by one with the same arguments
and the same random draws. So the random numbers of a run do not change.

The number of OpenCV's threads is a setting of the whole process, so this package does not change it. A process that
loads data together with others, such as a loader worker, calls cv2.setNumThreads(0) when it starts.
"""
from collections.abc import Callable

from . import blur, colour, geometry

OPERATIONS: dict[str, Callable] = {
    'AutoContrast': colour.auto_contrast,
    'Equalize': colour.equalize,
    'Invert': colour.invert,
    'Rotate': geometry.rotate,
    'Posterize': colour.posterize,
    'PosterizeIncreasing': colour.posterize,
    'PosterizeOriginal': colour.posterize,
    'Solarize': colour.solarize,
    'SolarizeIncreasing': colour.solarize,
    'SolarizeAdd': colour.solarize_add,
    'Color': colour.adjust_saturation,
    'ColorIncreasing': colour.adjust_saturation,
    'Contrast': colour.adjust_contrast,
    'ContrastIncreasing': colour.adjust_contrast,
    'Brightness': colour.adjust_brightness,
    'BrightnessIncreasing': colour.adjust_brightness,
    'Sharpness': blur.sharpness,
    'SharpnessIncreasing': blur.sharpness,
    'ShearX': geometry.shear_x,
    'ShearY': geometry.shear_y,
    'TranslateX': geometry.translate_x_abs,
    'TranslateY': geometry.translate_y_abs,
    'TranslateXRel': geometry.translate_x_rel,
    'TranslateYRel': geometry.translate_y_rel,
    'Desaturate': colour.desaturate,
    'GaussianBlur': blur.gaussian_blur,
    'GaussianBlurRand': blur.gaussian_blur_rand,
}
