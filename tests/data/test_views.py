"""Two views: one decode, two independent draws, reproducible from the seed."""
import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from timm.data import create_transform
from timm.utils import random_seed

from agmax_timm import TwoViews, create_two_view_loader
from agmax_timm.base.random_state import get_process_state
from agmax_timm.data.sources.dataset_factory import create_dataset

GREY = {'mean': (0.,), 'std': (1.,)}
LEVELS = {'mean': (0., 0., 0.), 'std': (1., 1., 1.), 'device': 'cpu'}  # images come as levels in [0, 1]
pytestmark = pytest.mark.usefixtures('fixed_seed')
SIGMAS = 5  # of every statistical bound below; the seeds are fixed
POLICIES = ['original', 'rand-m9-mstd0.5', '3a', 'augmix-m3-w2']


def epoch_by_index(loader):
    """Views [2, N, C, H, W] of one epoch, in the order of the data set; the targets are its indices."""
    batches = [(x.unflatten(0, (2, -1)), target.chunk(2)) for x, target in loader]
    assert all(torch.equal(*targets) for _, targets in batches)
    order = torch.cat([targets[0] for _, targets in batches]).argsort()
    return torch.cat([x for x, _ in batches], 1)[:, order]


def read_crops(images):
    """Position of crops [N, 3, H, W] in the gradient image: centre and extent along both axes, and the flip."""
    red, green = images[:, 0].double(), images[:, 1].double()
    across = (red[:, :, -1] - red[:, :, 0]).mean(1)
    down = (green[:, -1] - green[:, 0]).mean(1)
    return torch.stack([red.mean((1, 2)), green.mean((1, 2)), across.abs(), down, (across < 0).double()])


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_the_transform_is_called_twice_on_the_same_image():
    seen = []

    def transform(image):
        seen.append(image)
        return len(seen)

    image = object()
    assert TwoViews(transform)(image) == (1, 2)
    assert seen[0] is image and seen[1] is image


def test_a_second_transform_makes_the_second_view():
    views = TwoViews(lambda image: image + 1, lambda image: image * 10)
    assert views(5) == (6, 50) and TwoViews(abs)(-5) == (5, 5)
    assert repr(TwoViews(abs, max)) == 'TwoViews(<built-in function abs>, <built-in function max>)'
    assert repr(TwoViews(abs)) == 'TwoViews(<built-in function abs>)'


class Dicts(torch.utils.data.Dataset):
    """Samples as dicts, like those of Hugging Face."""

    def __init__(self, images, keys):
        self.images, self.keys = images, keys

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return {'file': 'x', self.keys[0]: image, self.keys[1]: label}


@pytest.mark.parametrize('keys, given', [
    (('image', 'label'), {}), (('img', 'fine_label'), {'image_key': 'img', 'label_key': 'fine_label'})])
def test_samples_may_be_dicts(gradient_dataset, keys, given):
    dataset = Dicts(gradient_dataset(16), keys)
    loader = create_two_view_loader(dataset, 16, 4, num_workers=0, **given, **LEVELS)
    batches = list(loader)
    assert [x.shape for x, _ in batches] == [(8, 3, 16, 16)] * 4
    assert sorted(torch.cat([target for _, target in batches]).tolist()) == sorted([*range(16)] * 2)
    assert not torch.equal(*batches[0][0].chunk(2))
    if given:
        with pytest.raises(ValueError, match="Dicts .*'image', .*'file', 'img', 'fine_label': give image_key"):
            next(iter(create_two_view_loader(dataset, 16, 4, num_workers=0, **LEVELS)))


def test_a_data_set_of_hugging_face_gives_two_views(gradient_dataset):
    datasets = pytest.importorskip('datasets')
    images = [gradient_dataset(16)[index][0] for index in range(16)]
    dataset = datasets.Dataset.from_dict({'image': images, 'label': [*range(16)]})
    dataset = dataset.cast_column('image', datasets.Image())
    batches = list(create_two_view_loader(dataset, 16, 4, num_workers=0, **LEVELS))
    assert sorted(torch.cat([target for _, target in batches]).tolist()) == sorted([*range(16)] * 2)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('backend, module, name', [
    ('timm', 'PIL.Image', 'open'),
    ('fast', 'simplejpeg', 'decode_jpeg'),
])
def test_a_sample_is_decoded_once(photos, monkeypatch, num_workers, backend, module, name):
    module = pytest.importorskip(module)
    opened = multiprocessing.Value('i', 0)
    decode = getattr(module, name)

    def counting(*args, **kwargs):
        with opened.get_lock():
            opened.value += 1
        return decode(*args, **kwargs)

    monkeypatch.setattr(module, name, counting)
    dataset = create_dataset('', str(photos), 'train')
    loader = create_two_view_loader(dataset, 16, 4, num_workers=num_workers, augment_backend=backend, **LEVELS)
    views = sum(len(x) for x, _ in loader)
    assert (views, opened.value) == (2 * len(dataset), len(dataset))


@pytest.mark.parametrize('policy', [None, *POLICIES])
def test_views_do_not_change_the_image(gradient_dataset, policy):
    image, _ = gradient_dataset(1)[0]
    before = image.tobytes()
    views = TwoViews(create_transform(32, is_training=True, auto_augment=policy, vflip=0.5))
    for _ in range(20):
        views(image)
    assert image.tobytes() == before


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [0, 2])
def test_crops_and_flips_are_independent(gradient_dataset, num_workers):
    count = 1024
    loader = create_two_view_loader(
        gradient_dataset(count), 16, 64, num_workers=num_workers, color_jitter=None, scale=(0.1, 0.6), **LEVELS)
    # Persistent workers continue into the second epoch.
    draws = [read_crops(view) for _ in range(2) for view in epoch_by_index(loader)]
    bound = SIGMAS / count ** 0.5
    for a, b in itertools.combinations(draws, 2):
        assert not torch.equal(a, b)
        for quantity_a, quantity_b in zip(a, b):
            assert abs(correlation(quantity_a, quantity_b)) < bound
        assert abs((a[-1] == b[-1]).double().mean() - 0.5) < bound / 2
    # Workers that shared a seed would draw every crop twice.
    crops = torch.cat(draws, 1).T
    assert len(crops.unique(dim=0)) > 0.98 * len(crops)


@pytest.mark.slow
@pytest.mark.parametrize('policy', POLICIES[:2])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_policies_of_the_views_are_independent(gradient_dataset, policy, num_workers):
    count = 512
    loader = create_two_view_loader(
        gradient_dataset(count), 24, 64, num_workers=num_workers, auto_augment=policy, hflip=0., scale=(1., 1.),
        ratio=(1., 1.), **LEVELS)
    draws = [view for _ in range(2) for view in epoch_by_index(loader)]
    for a, b in itertools.combinations(draws, 2):
        for channel in range(3):
            brightness = [view[:, channel].mean((1, 2)) for view in (a, b)]
            assert abs(correlation(*brightness)) < SIGMAS / count ** 0.5
        # Views of one image agree no more often than views of two images.
        same = (a == b).flatten(1).all(1).double().mean()
        other = (a == b.roll(1, 0)).flatten(1).all(1).double().mean()
        assert abs(same - other) < SIGMAS * (2 * other * (1 - other) / count) ** 0.5 + 1 / count


STILL = dict(scale=(1, 1), ratio=(1, 1), hflip=0., color_jitter=None)
WARNING = 'The two views of an image are the same'


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('options', [
    {}, {'ratio': (0.9, 1.1)}, {'color_jitter': 0.}, {'interpolation': 'random'}, {'no_aug': True},
    {'no_aug': True, 're_prob': 0.5},
    {'train_crop_mode': 'rkrc'}, {'input_size_choices': [16, 24]}, {'input_size': (1, 16, 16), **GREY},
    {'mixup': {'mixup_alpha': 1., 'prob': 0., 'num_classes': 32}},
], ids=str)
def test_views_that_cannot_differ_warn(gradient_dataset, caplog, options, use_prefetcher):
    dataset = gradient_dataset(32)
    if 'mean' in options:
        dataset.images = [image.convert('L') for image in dataset.images]
    loader = create_two_view_loader(**{
        'dataset': dataset, 'input_size': 16, 'batch_size': 32, 'num_workers': 0, 'use_prefetcher': use_prefetcher,
        **LEVELS, **STILL, **options})
    assert caplog.text.count(WARNING) == 1
    if options.get('interpolation') != 'random':
        x, _ = next(iter(loader))
        assert torch.equal(*x.chunk(2))


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('options', [
    {'scale': (0.9, 1.)}, {'scale': (0.5, 0.5)}, {'hflip': 0.5}, {'vflip': 0.2}, {'color_jitter': 0.1},
    {'color_jitter': 0.4, 'color_jitter_prob': 0.1}, {'grayscale_prob': 0.1}, {'gaussian_blur_prob': 0.1},
    {'auto_augment': 'rand-m9'}, {'re_prob': 0.25}, {'lighting': 0.1}, {'cutout': 4}, {'train_crop_mode': 'pad'},
    {'train_crop_mode': 'rkrr'}, {'mixup': {'mixup_alpha': 1., 'num_classes': 32}},
    {'no_aug': True, 'mixup': {'mixup_alpha': 1., 'num_classes': 32}},
], ids=str)
def test_views_that_can_differ_do_not_warn(gradient_dataset, caplog, options, use_prefetcher):
    before = get_process_state()
    create_two_view_loader(
        gradient_dataset(32), 16, 32, num_workers=0, use_prefetcher=use_prefetcher, **{**LEVELS, **STILL, **options})
    assert WARNING not in caplog.text
    assert get_process_state() == before, 'the check of the transform draws no random number'


def everything_on(dataset, seed, num_workers, use_prefetcher):
    random_seed(seed)
    loader = create_two_view_loader(
        dataset, 24, 8, num_workers=num_workers, use_prefetcher=use_prefetcher, auto_augment='rand-m9-mstd0.5',
        re_prob=0.5, cutout=8, lighting=0.1, device='cpu',
        mixup={'mixup_alpha': 0.2, 'cutmix_alpha': 1., 'mode': 'elem', 'num_classes': 32})
    return [batch for _ in range(2) for batch in loader]


@pytest.mark.slow
@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_batches_are_reproducible_from_the_seed(gradient_dataset, num_workers, use_prefetcher):
    first, again, other = [
        everything_on(gradient_dataset(32), seed, num_workers, use_prefetcher) for seed in (42, 42, 43)]
    assert len(first) == len(again) == 8
    for (x, target), (same_x, same_target), (other_x, other_target) in zip(first, again, other):
        assert torch.equal(x, same_x) and torch.equal(target, same_target)
        assert not torch.equal(x, other_x) and not torch.equal(target, other_target)
