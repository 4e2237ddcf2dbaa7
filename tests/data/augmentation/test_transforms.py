"""CutOut, PCA lighting and the CIFAR crop, against closed forms and against all possible outcomes."""
import collections
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment, create_transform

from agmax_timm import create_two_view_loader
from agmax_timm.data.augmentation.transforms import CutOut, Lighting, extend_transform, pad_and_crop
from agmax_timm.data.loader import create_train_loader

pytestmark = pytest.mark.usefixtures('fixed_seed')
SIGMAS = 4  # of every statistical bound below; the seeds are fixed
# Principal components of ImageNet's colours, as for AlexNet: eigenvalues, and eigenvectors in columns.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def every_square(side, height, width):
    """Mask [H, W] of the clipped square around each centre."""
    squares = []
    for y, x in itertools.product(range(height), range(width)):
        top, left = y - side // 2, x - side // 2
        mask = np.zeros((height, width), dtype=bool)
        mask[max(top, 0):top + side, max(left, 0):left + side] = True
        squares.append(mask)
    return squares


def mean_span(side, size):
    """Mean length of a span of `side` around a uniform centre in `size`, clipped at both ends; side <= size."""
    before, after = side // 2, side - side // 2
    return side - (before * (before + 1) + after * (after - 1)) / 2 / size


@pytest.mark.slow
@pytest.mark.parametrize('side', [1, 3, 4])
@pytest.mark.parametrize('single', [True, False])
def test_cutout_is_a_square_around_any_centre(side, single):
    height, width, times = 6, 8, 100
    squares = {mask.tobytes() for mask in every_square(side, height, width)}
    assert len(squares) == height * width
    image = torch.rand(3, height, width) + 1
    if single:
        images = torch.stack([CutOut(side)(image.clone()) for _ in range(times * len(squares))])
    else:
        images = CutOut(side)(image.repeat(times * len(squares), 1, 1, 1))
    cut = (images == 0).numpy()
    assert (cut == cut[:, :1]).all()  # all channels
    assert torch.equal(images, image.masked_fill(torch.tensor(cut), 0))  # nothing else
    counts = collections.Counter(mask.tobytes() for mask in cut[:, 0])
    assert set(counts) == squares
    assert max(abs(count - times) for count in counts.values()) < (SIGMAS + 1) * times ** 0.5


@pytest.mark.parametrize('side, height, width', [(16, 32, 32), (8, 32, 20), (7, 15, 9)])
def test_the_mean_area_of_cutout_is_the_expected_one(side, height, width):
    images = CutOut(side)(torch.ones(4000, 1, height, width))
    areas = (images == 0).double().sum((1, 2, 3))
    assert areas.max() == side * side
    error = areas.std() / len(areas) ** 0.5
    assert abs(areas.mean() - mean_span(side, height) * mean_span(side, width)) < SIGMAS * error


def test_cutout_works_in_place():
    for images in (torch.ones(2, 3, 8, 8), torch.ones(3, 8, 8)):
        assert CutOut(4)(images) is images and (images == 0).any()


@pytest.mark.parametrize('make', [lambda: CutOut(0), lambda: CutOut(-4), lambda: Lighting(0.), lambda: Lighting(-1.)])
def test_values_that_are_not_positive_are_refused(make):
    with pytest.raises(ValueError, match='needs a'):
        make()


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_cutout_comes_after_normalisation(gradient_dataset, use_prefetcher):
    side, size = 8, 24
    # A mean below black, so that only CutOut gives 0.
    loader = create_two_view_loader(
        gradient_dataset(64), size, 16, use_prefetcher=use_prefetcher, num_workers=0, cutout=side, mean=(-0.1,) * 3,
        std=(0.5,) * 3, color_jitter=None, device='cpu')
    squares = {mask.tobytes() for mask in every_square(side, size, size)}
    for x, _ in loader:
        cut = (x == 0).numpy()
        assert (cut == cut[:, :1]).all()
        assert all(mask.tobytes() in squares for mask in cut[:, 0])
        assert x.amax() < (1 + 0.1) / 0.5 + 1e-6 and x[x != 0].amin() > 0.1 / 0.5 - 1e-6
        first, second = cut[:16], cut[16:]
        assert (first != second).any((1, 2, 3)).sum() >= 14


@pytest.mark.parametrize('std', [0.1, 1.])
def test_lighting_shifts_every_pixel_alike(gradient_dataset, std):
    image, _ = gradient_dataset(1)[0]
    before = np.asarray(image).astype(int)
    shifts = set()
    for _ in range(20):
        after = np.asarray(Lighting(std)(image)).astype(int)
        assert after.shape == before.shape
        shift = []
        for channel in range(3):
            unclipped = (after[..., channel] > 0) & (after[..., channel] < 255)
            steps = np.unique((after - before)[..., channel][unclipped])
            # Blue is all black: a shift below 0 leaves nothing to read.
            shift.append(steps[0] if len(steps) else -255)
            assert len(steps) <= 1
        assert (after == np.clip(before + shift, 0, 255)).all()
        shifts.add(tuple(shift))
    assert len(shifts) > 10
    assert (np.asarray(image) == before).all()


def test_lighting_has_the_published_covariance():
    std, times = 0.4, 4000
    grey, lighting = Image.new('RGB', (1, 1), (128, 128, 128)), Lighting(std)
    shifts = np.array([lighting(grey).getpixel((0, 0)) for _ in range(times)]) - 128.
    rounding = np.eye(3) / 12
    expected = 255 ** 2 * std ** 2 * EIGENVECTORS @ np.diag(EIGENVALUES ** 2) @ EIGENVECTORS.T + rounding
    # Along the components, or the first would hide the others.
    expected = EIGENVECTORS.T @ expected @ EIGENVECTORS
    variances = np.diag(expected)
    error = ((np.outer(variances, variances) + expected ** 2) / times) ** 0.5
    assert (abs(np.cov((shifts @ EIGENVECTORS).T) - expected) < SIGMAS * error).all()
    assert (abs((shifts @ EIGENVECTORS).mean(0)) < SIGMAS * (variances / times) ** 0.5).all()


def test_lighting_rounds_to_levels(gradient_dataset):
    """A shift below half a level has no effect."""
    image, _ = gradient_dataset(1)[0]
    assert all(Lighting(0.001)(image).tobytes() == image.tobytes() for _ in range(20))


def test_lighting_refuses_images_that_are_not_rgb():
    with pytest.raises(ValueError, match="mode 'L'"):
        Lighting(0.1)(Image.new('L', (4, 4)))


def noise_image(height, width):
    return Image.fromarray(np.random.randint(1, 256, (height, width, 3), dtype=np.uint8))


def every_crop(image, size, padding):
    """Offset of each crop of the padded image by its bytes."""
    padded = np.pad(np.asarray(image), [(padding[0],) * 2, (padding[1],) * 2, (0, 0)])
    offsets = itertools.product(range(2 * padding[0] + 1), range(2 * padding[1] + 1))
    return {padded[y:y + size[0], x:x + size[1]].tobytes(): (y, x) for y, x in offsets}


@pytest.mark.parametrize('size, padding', [
    ((32, 32), (4, 4)), ((24, 40), (3, 5)), ((28, 28), (3, 3)), ((4, 4), (0, 0)),
])
def test_pad_and_crop_draws_every_crop(size, padding):
    image, crop = noise_image(*size), pad_and_crop(size, 'bilinear')
    crops = every_crop(image, size, padding)
    drawn = [crop(image) for _ in range(15 * len(crops))]
    assert {image.size for image in drawn} == {size[::-1]}
    assert {crops[image.tobytes()] for image in drawn} == set(crops.values())


@pytest.mark.parametrize('interpolation, mode', [
    ('bilinear', Image.Resampling.BILINEAR),
    ('random', Image.Resampling.BILINEAR),
    ('bicubic', Image.Resampling.BICUBIC),
])
def test_pad_and_crop_resizes_first(interpolation, mode):
    image, crop = noise_image(50, 60), pad_and_crop((16, 24), interpolation)
    crops = every_crop(image.resize((24, 16), mode), (16, 24), (2, 3))
    assert len({crops[crop(image).tobytes()] for _ in range(100)}) > 20


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('policy', [None, 'original', '3a'])
def test_extend_transform_keeps_the_steps_of_timm(policy, use_prefetcher):
    theirs = create_transform(
        32, is_training=True, use_prefetcher=use_prefetcher, auto_augment=policy, vflip=0.5, grayscale_prob=0.1,
        re_prob=0.5)
    before = list(theirs.transforms)
    crop = pad_and_crop((32, 32), 'bilinear')
    ours = extend_transform(theirs, crop, lighting=0.1, cutout=8).transforms
    names = [type(step).__name__ for step in ours]
    assert ours[0] is crop
    assert names[-1] == 'CutOut' and ours[-1].side == 8
    at = names.index('Lighting')
    assert ours[at].std == 0.1 and names[at + 1] == ('MaybePILToTensor' if use_prefetcher else 'MaybeToTensor')
    kept = [step for step in ours[1:] if not isinstance(step, (CutOut, Lighting))]
    assert len(kept) == len(before) - 1 and all(step is timms for step, timms in zip(kept, before[1:]))


def test_extend_transform_without_steps_changes_nothing():
    theirs = create_transform(32, is_training=True)
    assert extend_transform(theirs).transforms == theirs.transforms


# Published policies

# Operation, probability, magnitude: tables 7 (CIFAR-10) and 9 (SVHN, ImageNet) of arXiv 1805.09501.
CIFAR10 = """
Invert .1 7 Contrast .2 6, Rotate .7 2 TranslateX .3 9, Sharpness .8 1 Sharpness .9 3, ShearY .5 8 TranslateY .7 9,
AutoContrast .5 8 Equalize .9 2, ShearY .2 7 Posterize .3 7, Color .4 3 Brightness .6 7, Sharpness .3 9 Brightness .7 9,
Equalize .6 5 Equalize .5 1, Contrast .6 7 Sharpness .6 5, Color .7 7 TranslateX .5 8, Equalize .3 7 AutoContrast .4 8,
TranslateY .4 3 Sharpness .2 6, Brightness .9 6 Color .2 8, Solarize .5 2 Invert 0 3, Equalize .2 0 AutoContrast .6 0,
Equalize .2 8 Equalize .6 4, Color .9 9 Equalize .6 6, AutoContrast .8 4 Solarize .2 8, Brightness .1 3 Color .7 0,
Solarize .4 5 AutoContrast .9 3, TranslateY .9 9 TranslateY .7 9, AutoContrast .9 2 Solarize .8 3,
Equalize .8 8 Invert .1 3, TranslateY .7 9 AutoContrast .9 1"""


def operate(image, name, magnitude, sign):
    """The image after a published operation: ranges of table 6 of arXiv 1805.09501, nearest pixel, black outside."""
    share, (width, height) = magnitude / 10, image.size
    affine = {
        'ShearX': (1, sign * .3 * share, 0, 0, 1, 0), 'ShearY': (1, 0, 0, sign * .3 * share, 1, 0),
        'TranslateX': (1, 0, sign * .45 * share * width, 0, 1, 0), 'TranslateY': (
            1, 0, 0, 0, 1, sign * .45 * share * height)}
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
        return getattr(ImageEnhance, name)(image).enhance(.1 + 1.8 * share)
    return {
        'Rotate': lambda: image.rotate(sign * 30 * share), 'Invert': lambda: ImageOps.invert(image),
        'AutoContrast': lambda: ImageOps.autocontrast(image), 'Equalize': lambda: ImageOps.equalize(image),
        'Solarize': lambda: ImageOps.solarize(image, int(256 * share)),
        'Posterize': lambda: ImageOps.posterize(image, 4 + int(4 * share))}[name]()


def policy_of(dataset):
    step, = (step for step in dataset.transform.transforms if isinstance(step, auto_augment.AutoAugment))
    return step.policy


def load(dataset, **kwargs):
    create_train_loader(dataset, (3, 32, 32), 4, augment_backend='timm', num_workers=0, device='cpu', **kwargs)
    return dataset


def test_the_cifar10_policy_has_the_published_operations(gradient_dataset):
    words = [pair.split() for pair in CIFAR10.split(',')]
    policy, image = policy_of(load(gradient_dataset(8), auto_augment='cifar10')), noise_image(24, 40)
    assert len(policy) == len(words) == 25
    for pair, line in zip(policy, words):
        for op, name, probability, magnitude in zip(pair, line[::3], map(float, line[1::3]), map(int, line[2::3])):
            assert op.prob == probability
            op.prob = 1.
            expected = {operate(image, name, magnitude, sign).tobytes() for sign in (1, -1)}
            assert {op(image).tobytes() for _ in range(20)} == expected, name


@pytest.mark.parametrize('policy, steps', [
    ('cifar10', ['AutoAugment']), ('svhn-mstd0.5', ['AutoAugment']), ('imagenet', ['AutoAugment', 'ColorJitter'])])
@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_a_published_policy_replaces_that_of_timm(gradient_dataset, policy, steps, use_prefetcher):
    dataset = load(gradient_dataset(8), auto_augment=policy, use_prefetcher=use_prefetcher)
    names = [type(step).__name__ for step in dataset.transform.transforms]
    assert names[1:-1 if use_prefetcher else -2] == ['RandomHorizontalFlip', *steps]
    ops = list(itertools.chain(*policy_of(dataset)))
    assert len(ops) == 50 and {op.magnitude_std for op in ops} == {0.5 if 'mstd' in policy else 0}
    assert {(op.kwargs['fillcolor'], op.kwargs['resample']) for op in ops} == {((0, 0, 0), Image.Resampling.NEAREST)}


def test_a_published_policy_works_with_augmentation_splits_and_sizes(gradient_dataset):
    loader = create_train_loader(gradient_dataset(8), (3, 32, 32), 4, num_workers=0, device='cpu', num_aug_splits=2,
                                 auto_augment='cifar10')
    assert loader.dataset.augmentation.transforms[0].policy[1][0].kwargs['fillcolor'] == (0, 0, 0)
    loader = create_train_loader(gradient_dataset(8), (3, 32, 32), 4, num_workers=0, device='cpu', two_views=True,
                                 auto_augment='cifar10', input_size_choices=(24, 32))
    assert len(loader.dataset.transforms) == 2 and 'PosterizeOriginal' in repr(loader.dataset.transforms[1])


def test_a_published_policy_works_on_gray_images(gradient_dataset):
    dataset = gradient_dataset(8)
    dataset.images = [image.convert('L') for image in dataset.images]
    loader = create_two_view_loader(dataset, (1, 24, 24), 4, num_workers=0, device='cpu', auto_augment='cifar10',
                                    mean=(0.5,), std=(0.5,))
    assert all(x.shape == (8, 1, 24, 24) for x, _ in loader)
