"""The array operations against timm's, PIL's and torchvision's own: pixels, random numbers, untouched inputs."""
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import functional

from agmax_timm.data.augmentation.transforms import _RGB_EIGENVALUES, _RGB_EIGENVECTORS, Lighting

cv2 = pytest.importorskip('cv2')

from agmax_timm.data.arrays import blur, colour, geometry  # noqa: E402
from agmax_timm.data.arrays.operations import OPERATIONS  # noqa: E402

BILINEAR, BICUBIC, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
FILL = (124, 116, 104)
# 50 * 1.18 is whole but for the last bits, which PIL cuts off to 58.
FACTORS = (0., .1, .28, .5, .64, 1., 1.18, 1.36, 1.72, 1.9, 2.5)
ONCE = ((),)

# Arguments, and the bounds in levels over all images and arguments: largest and root mean square of the difference.
PIXELWISE = {
    'AutoContrast': (ONCE, 0, 0.),
    'Equalize': (ONCE, 0, 0.),
    'Invert': (ONCE, 0, 0.),
    'Posterize': ([(bits,) for bits in range(-20, 9)], 0, 0.),  # below 0 for magnitudes above 10
    'Solarize': ([(thresh,) for thresh in (0, 1, 77, 128, 255, 256)], 0, 0.),
    'SolarizeAdd': ([(add,) for add in (0, 1, 55, 110, 128)], 0, 0.),
    'Brightness': ([(factor,) for factor in FACTORS], 1, .045),
    'Contrast': ([(factor,) for factor in FACTORS], 1, .005),
    'Color': ([(factor,) for factor in FACTORS], 1, .005),
    'Desaturate': ([(factor,) for factor in (0., .5, .72, 1.)], 1, .005),
    'Sharpness': ([(factor,) for factor in FACTORS], 1, .005),
    'GaussianBlur': ([(radius,) for radius in (.1, 1., 2.)], 0, 0.),
    'GaussianBlurRand': ([(factor,) for factor in (0., .1, .3, .5, .7, 1.)], 1, .05),
}
SHEARS = [(factor,) for factor in (-.3, -.2, -.0731, 0., .011, .1, .27, 1.5)]
PIXELS = [(pixels,) for pixels in (-250., -31.7, -.5, 0., .25, 9., 56.5, 57., 82.9, 100.)]
FRACTIONS = [(pct,) for pct in (-.45, -.1234, .007, .3)]
# Arguments, and the bounds (largest, root mean square) for bilinear and for bicubic.
GEOMETRY = {
    'Rotate': ([(angle,) for angle in (-30, -17.3, -1e-3, 0., 5., 29.99, 45., 90., 180., -90., 270., 301.)],
               (1, .03), (3, .25)),
    'ShearX': (SHEARS, (1, .08), (1, .02)),
    'ShearY': (SHEARS, (1, .08), (1, .02)),
    'TranslateX': (PIXELS, (1, .07), (1, .01)),
    'TranslateY': (PIXELS, (1, .07), (1, .01)),
    'TranslateXRel': (FRACTIONS, (1, .15), (1, .04)),
    'TranslateYRel': (FRACTIONS, (1, .15), (1, .04)),
}


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth textures, edges from black to white, noise: uint8 [H, W, 3]."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20.
    waves = [np.sin(draw.uniform(-1, 1) * x + draw.uniform(-1, 1) * y + draw.uniform(0, 6)) for _ in range(9)]
    image = 128. + 40. * np.stack([sum(waves[i::3]) for i in range(3)], 2)
    image += 10. * draw.standard_normal(image.shape)
    top, left = draw.integers(height // 2), draw.integers(width // 2)
    image[top:top + height // 4, left:left + width // 3] = draw.integers(0, 256, 3)
    image[::7, left:] = 255.
    image[:, ::11] *= .2
    return image.round().clip(0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def images():
    narrow = photograph(64, 64, 3) // 3 + 60
    flat = np.full((31, 17, 3), (7, 200, 90), np.uint8)
    flipped = photograph(57, 83, 4)[:, ::-1]
    cropped = photograph(90, 120, 5)[11:75, 20:101]
    read_only = photograph(40, 50, 8)
    read_only.flags.writeable = False
    return [photograph(57, 83, 0), photograph(224, 224, 1), read_only, noise(64, 41, 2), narrow, flat, flipped, cropped,
            noise(2, 3, 6), noise(1, 1, 7)]


def compare(ours, theirs, arguments, largest, root_mean_square):
    """Both get the same seed, all images and all arguments. The input stays unchanged, the random state is the same."""
    squares, count = 0., 0
    for image in images():
        for args in arguments:
            before = image.copy()
            states, results = [], []
            for function, given in ((ours, image), (theirs, Image.fromarray(image))):
                random.seed(count)
                np.random.seed(count)
                results.append(np.asarray(function(given, *args)))
                states.append((random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]))
            assert states[0] == states[1]
            assert np.array_equal(image, before)
            assert results[0].dtype == np.uint8 and results[0].shape == image.shape
            difference = results[0].astype(float) - results[1]
            assert np.abs(difference).max() <= largest, (image.shape, args)
            squares, count = squares + np.square(difference).sum(), count + difference.size
    assert (squares / count) ** .5 <= root_mean_square


def test_every_name_of_timm_has_an_operation():
    assert list(OPERATIONS) == list(auto_augment.NAME_TO_OP)
    # A name that is timm's other name for an operation is ours too, so the tests of one serve both.
    for name, other in ((a, b) for a in OPERATIONS for b in OPERATIONS):
        same = auto_augment.NAME_TO_OP[name] is auto_augment.NAME_TO_OP[other]
        assert (OPERATIONS[name] is OPERATIONS[other]) == same
    tested = {id(OPERATIONS[name]) for name in {**PIXELWISE, **GEOMETRY}}
    assert tested == {id(operation) for operation in OPERATIONS.values()}


@pytest.mark.parametrize('name', PIXELWISE)
def test_colours_and_filters_give_the_pixels_of_timm(name):
    compare(OPERATIONS[name], auto_augment.NAME_TO_OP[name], *PIXELWISE[name])


@pytest.mark.slow
@pytest.mark.parametrize('fill', [FILL, None])
@pytest.mark.parametrize('name', GEOMETRY)
@pytest.mark.parametrize('resample', [BILINEAR, BICUBIC, NEAREST])
def test_geometry_gives_the_pixels_of_timm(name, resample, fill):
    """Up to 1 level from rounding, up to 3 for a bicubic rotation. Outside of the image, pixels are equal."""
    arguments, bilinear, bicubic = GEOMETRY[name]
    bounds = {BILINEAR: bilinear, BICUBIC: bicubic, NEAREST: (0, 0.)}[resample]

    def run(operations):
        return lambda image, amount: operations[name](image, amount, fillcolor=fill, resample=resample)

    compare(run(OPERATIONS), run(auto_augment.NAME_TO_OP), arguments, *bounds)


def test_geometry_without_arguments_is_bicubic_as_in_timm():
    compare(geometry.shear_x, auto_augment.shear_x, [(.2,)], 1, .02)
    compare(geometry.rotate, auto_augment.rotate, [(20.,)], 3, .35)


@pytest.mark.parametrize('resample', [BILINEAR, BICUBIC])
def test_rotation_equals_that_of_pil_if_opencv_rounds_positions(monkeypatch, resample):
    monkeypatch.setattr(geometry, '_IS_EXACT', False)
    compare(lambda image, angle: geometry.rotate(image, angle, fillcolor=FILL, resample=resample),
            lambda image, angle: auto_augment.rotate(image, angle, fillcolor=FILL, resample=resample),
            GEOMETRY['Rotate'][0], 0, 0.)


@pytest.mark.parametrize('shape', [(2, geometry._LARGEST, 3), (2, geometry._LARGEST + 1, 3), (2 ** 15, 2, 3)])
def test_the_longest_images_are_rotated(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rotated = auto_augment.rotate(Image.fromarray(image), .001, resample=BILINEAR)
    difference = np.abs(geometry.rotate(image, .001, resample=BILINEAR).astype(int) - rotated)
    assert difference.max() <= 1


@pytest.mark.parametrize('interpolation', [cv2.INTER_LINEAR, cv2.INTER_CUBIC])
def test_rounding_of_positions_by_opencv_is_detected(monkeypatch, interpolation):
    remap = cv2.remap

    def rounded(image, x, y, *args):
        return remap(image, np.round(x * 32.) / 32., y, *args)

    assert geometry._is_exact(interpolation) or not geometry._IS_EXACT
    monkeypatch.setattr(cv2, 'remap', rounded)
    assert not geometry._is_exact(interpolation)


@pytest.mark.slow
@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('magnitude_std', [0, .5, float('inf')])
def test_an_augment_op_of_timm_draws_the_same_with_our_function(name, magnitude_std):
    """timm's own AugmentOp with its two random filters, probability, random magnitude and sign."""
    hparams = dict(translate_const=30, img_mean=FILL, magnitude_std=magnitude_std)
    theirs, ours = (auto_augment.AugmentOp(name, prob=.7, magnitude=6, hparams=hparams) for _ in range(2))
    ours.aug_fn = OPERATIONS[name]
    compare(ours, theirs, [()] * 5, *((3, .25) if name == 'Rotate' else (1, .11)))


def test_the_filter_is_drawn_once_from_those_given():
    random.seed(0)
    for _ in range(20):
        state = random.getstate()
        choice = random.choice((NEAREST, BICUBIC))
        after = random.getstate()
        random.setstate(state)
        image = photograph(57, 83, 0)
        drawn = geometry.shear_y(image, .2, fillcolor=FILL, resample=[NEAREST, BICUBIC])
        assert random.getstate() == after
        assert np.array_equal(drawn, geometry.shear_y(image, .2, fillcolor=FILL, resample=choice))


def test_operations_can_be_pickled():
    assert pickle.loads(pickle.dumps(OPERATIONS)) == OPERATIONS


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_colour_jitter_equals_that_of_torchvision(name):
    name, factors = f'adjust_{name}', [(factor,) for factor in FACTORS]
    compare(getattr(colour, name), getattr(functional, name), factors, 1, .045 if 'brightness' in name else .005)


def test_hue_equals_that_of_torchvision():
    compare(colour.adjust_hue, functional.adjust_hue, [(hue,) for hue in (-.5, -.1, 0., .25)], 0, 0.)


def test_grayscale_equals_that_of_torchvision():
    compare(colour.grayscale, lambda image: functional.to_grayscale(image, 3), ONCE, 0, 0.)


def test_the_luma_of_every_colour_equals_that_of_pil():
    for red in range(0, 256, 15):
        levels = np.arange(256, dtype=np.uint8)
        image = np.stack([np.full((256, 256), red, np.uint8), *np.meshgrid(levels, levels)], 2)
        assert np.array_equal(colour.luma(image), np.asarray(Image.fromarray(image).convert('L')))


def test_blend_equals_that_of_pil():
    for image in images():
        other = image[::-1].copy()
        for alpha in FACTORS:
            expected = Image.blend(Image.fromarray(image), Image.fromarray(other), alpha)
            difference = colour.blend(image, other, alpha).astype(int) - np.asarray(expected)
            assert np.abs(difference).max() <= 1 and (difference ** 2).mean() <= .002


def test_blur_equals_that_of_torchvision():
    large = [image for image in images() if min(image.shape[:2]) > 11]
    for image in large:
        for sigma in (.1, .4, 1., 2.):
            expected = np.asarray(functional.gaussian_blur(Image.fromarray(image), [23, 23], [sigma, sigma]))
            difference = blur.convolve_gaussian(image, 23, sigma).astype(int) - expected
            assert np.abs(difference).max() <= 1 and (difference ** 2).mean() <= .001


def test_lighting_equals_that_of_pil_images():
    for seed in range(5):
        torch.manual_seed(seed)
        expected = [np.asarray(Lighting(.5)(Image.fromarray(image))) for image in images()]
        torch.manual_seed(seed)
        for image, other in zip(images(), expected):
            shift = 255. * _RGB_EIGENVECTORS @ (torch.randn(3) * .5 * _RGB_EIGENVALUES)
            assert np.array_equal(colour.lighting(image, shift), other)
