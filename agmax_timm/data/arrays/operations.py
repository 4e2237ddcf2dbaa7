"""timm's AutoAugment, RandAugment, AugMix and 3-Augment operations for uint8 arrays [H, W, 3], by timm's names.

timm draws everything; only the function that an AugmentOp calls, its `aug_fn`, is another one with the same arguments.
What is drawn within an operation is drawn alike, so the random numbers of a run stay the same.

OpenCV's number of threads is a setting of the whole process, so nothing here changes it. A process that loads data
beside others, such as a loader's worker, calls cv2.setNumThreads(0) when it starts.
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
