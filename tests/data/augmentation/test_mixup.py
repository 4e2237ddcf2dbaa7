"""MixUp and CutMix per view.

The oracle is the pixels: image i fills channel i alone, so the mean of channel j in a mixed image is the share of image
j in it.
"""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup
from timm.utils import random_seed
from torch.utils.data import DataLoader

from agmax_timm import TwoViewCollate, create_two_view_loader
from agmax_timm.data.augmentation.mixup import CollateMixup, TwoViewMixup
from agmax_timm.data.loader import create_train_loader

MODES = ['batch', 'pair', 'elem']
MIXES = {
    'mixup': {'mixup_alpha': 1.},
    'cutmix': {'mixup_alpha': 0., 'cutmix_alpha': 1.},
    'both': {'mixup_alpha': 0.8, 'cutmix_alpha': 1., 'switch_prob': 0.5},
    'minmax': {'mixup_alpha': 0., 'cutmix_minmax': (0.2, 0.8)},
}
NUM_CLASSES = 5
pytestmark = pytest.mark.usefixtures('fixed_seed')
SIGMAS = 4  # of every statistical bound below; the seeds are fixed


def channel_images(count, size=(12, 16), dtype=torch.float32):
    """Images [count, count, H, W]: number i fills channel i."""
    top = 255 if dtype == torch.uint8 else 1
    return (torch.eye(count) * top)[:, :, None, None].expand(-1, -1, *size).to(dtype).contiguous()


def read_shares(images):
    """Share of each source in each image [N, N]."""
    return images.double().mean((2, 3)) / (255 if images.dtype == torch.uint8 else 1)


def unsmoothed(target, smoothing, num_classes=NUM_CLASSES):
    return (target.double() - smoothing / num_classes) / (1 - smoothing)


def one_hot(labels, num_classes=NUM_CLASSES):
    return torch.nn.functional.one_hot(labels, num_classes).double()


def mix_shares(mixup, batch_size, **kwargs):
    """Shares [2, B, B] that the images of each view have in the mixed images of that view."""
    images, _ = mixup(channel_images(2 * batch_size, **kwargs), torch.arange(batch_size).repeat(2))
    shares = read_shares(images).unflatten(1, (2, -1)).unflatten(0, (2, -1))
    assert not shares[0, :, 1].any() and not shares[1, :, 0].any()  # a view is mixed with itself alone
    return torch.stack([shares[0, :, 0], shares[1, :, 1]])


def own_share(shares):
    return shares.diagonal(dim1=-2, dim2=-1)


def partners(shares):
    """Index of the other image in each mixed image. An image that is not mixed has its own index."""
    others = shares * (1 - torch.eye(shares.shape[-1]))
    return torch.where(others.amax(-1) > 0, others.argmax(-1), torch.arange(shares.shape[-1]))


def repeated_shares(times, batch_size, **kwargs):
    """Shares of many batches [times, 2, B, B]."""
    mixup = TwoViewMixup(label_smoothing=0., num_classes=batch_size, **kwargs)
    return torch.stack([mix_shares(mixup, batch_size, size=(4, 4)) for _ in range(times)])


@pytest.mark.slow
@given(seed=st.integers(0, 2 ** 32 - 1), mode=st.sampled_from(MODES), mix=st.sampled_from([*MIXES]),
       prob=st.sampled_from([0., 0.5, 1.]), smoothing=st.sampled_from([0., 0.1]),
       dtype=st.sampled_from([torch.uint8, torch.float32]),
       labels=st.lists(st.integers(0, NUM_CLASSES - 1), min_size=1, max_size=5).map(lambda half: [*half, *half[::-1]]))
@settings(max_examples=150)
def test_targets_equal_the_shares_of_the_pixels(seed, mode, mix, prob, smoothing, dtype, labels):
    random_seed(seed)
    kwargs = dict(mode=mode, prob=prob, label_smoothing=smoothing, num_classes=NUM_CLASSES, **MIXES[mix])
    batch_size, labels = len(labels), torch.tensor(labels)
    images = channel_images(2 * batch_size, dtype=dtype)
    samples = [((images[i], images[batch_size + i]), int(labels[i])) for i in range(batch_size)]
    for x, target in (TwoViewMixup(**kwargs)(images.clone(), labels.repeat(2)), TwoViewCollate(kwargs)(samples)):
        assert x.dtype == dtype and x.shape == images.shape and target.shape == (2 * batch_size, NUM_CLASSES)
        shares = read_shares(x)
        expected = shares @ one_hot(labels.repeat(2))
        tolerance = 0.5 / 255 + 1e-5 if dtype == torch.uint8 else 1e-5
        torch.testing.assert_close(unsmoothed(target, smoothing), expected, rtol=0, atol=2 * tolerance)
        torch.testing.assert_close(shares.sum(1), torch.ones(len(x)).double(), rtol=0, atol=2 * tolerance)
        assert prob > 0 or (own_share(shares) == 1).all()


@pytest.mark.parametrize('mix', MIXES)
@pytest.mark.parametrize('mode', MODES)
def test_nearly_all_images_are_mixed_with_probability_1(mode, mix):
    """A lambda may round to 1, and a small box may be empty."""
    own = own_share(torch.stack([
        mix_shares(TwoViewMixup(mode=mode, num_classes=6, **MIXES[mix]), 6, dtype=dtype)
        for dtype in (torch.uint8, torch.float32) for _ in range(5)]))
    assert (own < 1).double().mean() > 0.8


@pytest.mark.parametrize('mode', MODES)
def test_uncorrected_lambda_is_kept(mode):
    """As with correct_lam=False of timm: the box is clipped at the border, the target is not corrected."""
    mixup = TwoViewMixup(
        mixup_alpha=0., cutmix_alpha=1., correct_lam=False, mode=mode, label_smoothing=0., num_classes=6)
    excess = []
    for _ in range(20):
        x, target = mixup(channel_images(12), torch.arange(6).repeat(2))
        excess.append(own_share(read_shares(x)) - torch.cat([own_share(t).double() for t in target.chunk(2)]))
    excess = torch.cat(excess)
    assert (excess > -1e-6).all() and (excess > 0.02).double().mean() > 0.5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_mix_in_place(dtype):
    x = channel_images(8, dtype=dtype)
    mixed, target = TwoViewMixup(mixup_alpha=1., label_smoothing=0., num_classes=4)(x, torch.arange(4).repeat(2))
    assert mixed is x and x.dtype == dtype
    expected = read_shares(x) @ one_hot(torch.arange(4).repeat(2), 4)
    torch.testing.assert_close(target.double(), expected, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('mix', ['mixup', 'cutmix'])
@pytest.mark.parametrize('mode', MODES)
def test_lambda_is_drawn_for_each_view(mode, mix):
    times = 400
    own = own_share(repeated_shares(times, 4, mode=mode, **MIXES[mix]))
    first, second = own[:, 0, 0], own[:, 1, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < SIGMAS / times ** 0.5
    # CutMix on 4 x 4 pixels leaves few values of lambda.
    assert (first == second).double().mean() < (0.001 if mix == 'mixup' else 0.5)


def test_boxes_are_drawn_for_each_view():
    mixup = TwoViewMixup(mixup_alpha=0., cutmix_minmax=(0.3, 0.5), num_classes=4)
    centres = []
    for _ in range(500):
        x, _ = mixup(channel_images(8, (16, 16)), torch.arange(4).repeat(2))
        # Where image 0 of each view is not itself.
        boxes = [(x[i, i] == 0).nonzero().double().mean(0) for i in (0, 4)]
        centres.append(torch.stack(boxes))
    centres = torch.stack(centres)
    for axis in range(2):
        assert abs(np.corrcoef(centres[:, 0, axis], centres[:, 1, axis])[0, 1]) < SIGMAS / 500 ** 0.5


@pytest.mark.parametrize('mode', MODES)
def test_lambda_is_shared_within_a_batch_a_pair_or_an_image(mode):
    shares = repeated_shares(50, 6, mode=mode, mixup_alpha=1.)
    own = own_share(shares)
    if mode == 'batch':
        torch.testing.assert_close(own, own[..., :1].expand_as(own))
    else:
        assert own.std(-1).min() > 1e-3
    if mode == 'pair':
        torch.testing.assert_close(own.gather(-1, partners(shares)), own)


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_partners_are_uniform_over_the_other_images(mode):
    times, batch_size = 700, 8
    partner = partners(repeated_shares(times, batch_size, mode=mode, mixup_alpha=1.))
    itself = torch.arange(batch_size)
    assert (partner != itself).all()
    chosen = one_hot(partner, batch_size)
    counts, p = chosen.sum(0), 1 / (batch_size - 1)
    off_diagonal = counts[:, ~torch.eye(batch_size, dtype=torch.bool)]
    assert (off_diagonal - times * p).abs().max() < (SIGMAS + 1) * (times * p * (1 - p)) ** 0.5
    # The partners of both views are independent: they are the same as often as two draws agree.
    same = (partner[:, 0] == partner[:, 1]).double()
    assert abs(same.mean() - p) < SIGMAS * (p / times) ** 0.5
    # Not one shift for all: B - 1 of those exist.
    assert len(partner[:, 0].unique(dim=0)) > 10 * batch_size


def test_pair_partners_are_mutual():
    partner = partners(repeated_shares(100, 8, mode='pair', mixup_alpha=1.))
    assert (partner.gather(-1, partner) == torch.arange(8)).all()


@pytest.mark.slow
@pytest.mark.parametrize('prob', [0.3, 0.5])
@pytest.mark.parametrize('mode', MODES)
def test_both_views_of_an_image_are_mixed_or_neither(mode, prob):
    times, batch_size = 500, 8
    shares = repeated_shares(times, batch_size, mode=mode, prob=prob, mixup_alpha=1.)
    mixed = own_share(shares) < 1
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    mixed = mixed[:, 0].double()
    draws = times * {'batch': 1, 'pair': batch_size // 2, 'elem': batch_size}[mode]
    assert abs(mixed.mean() - prob) < SIGMAS * (prob * (1 - prob) / draws) ** 0.5
    # Every image is as likely as another.
    assert (mixed.mean(0) - prob).abs().max() < SIGMAS * (prob * (1 - prob) / times) ** 0.5
    amounts = mixed.sum(1).int()
    if mode == 'batch':
        assert set(amounts.tolist()) == {0, batch_size}
    else:
        variance = prob * (1 - prob) * batch_size * (2 if mode == 'pair' else 1)  # binomial in pairs, or in images
        assert abs(amounts.double().var() / variance - 1) < SIGMAS * (2 / times) ** 0.5
        assert mode == 'elem' or not (amounts % 2).any()


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_mixup_and_cutmix_are_chosen_with_their_probabilities(mode):
    times, batch_size, prob = 500, 4, 0.3
    mixup = TwoViewMixup(mixup_alpha=1., cutmix_alpha=1., switch_prob=prob, mode=mode, num_classes=batch_size)
    cut = []
    for _ in range(times):
        x, _ = mixup(channel_images(2 * batch_size, (4, 4)), torch.arange(batch_size).repeat(2))
        # Only MixUp leaves values between 0 and 1.
        cut.append(((x == 0) | (x == 1)).flatten(1).all(1).unflatten(0, (2, -1)).double())
    cut = torch.stack(cut)
    draws = 2 * times * {'batch': 1, 'pair': batch_size // 2, 'elem': batch_size}[mode]
    assert abs(cut.mean() - prob) < SIGMAS * (prob * (1 - prob) / draws) ** 0.5
    assert abs(np.corrcoef(cut[:, 0, 0], cut[:, 1, 0])[0, 1]) < SIGMAS / times ** 0.5


def kolmogorov_smirnov(a, b):
    """Greatest distance between two empirical distribution functions."""
    # Rounded, or one lambda in float32 and float64 is two.
    a, b = np.sort(np.round(a, 5)), np.sort(np.round(b, 5))
    grid = np.concatenate([a, b])
    return np.abs(np.searchsorted(a, grid, 'right') / len(a) - np.searchsorted(b, grid, 'right') / len(b)).max()


def draw_lambdas(mixup, views, times, batch_size=4):
    """Lambdas of the first view or of a batch. The mode decides if they belong to a batch, a pair or an image."""
    size = (views * batch_size, 1, 24, 20)
    targets = torch.arange(batch_size).repeat(views)
    images = {'batch': 1, 'pair': batch_size // 2, 'elem': batch_size}[mixup.mode]
    draws = [mixup(torch.zeros(size), targets)[1][:batch_size].diagonal()[:images] for _ in range(times // images)]
    return torch.cat(draws).numpy()


@pytest.mark.slow
@pytest.mark.parametrize('mix', [
    {'mixup_alpha': 0.2},
    {'mixup_alpha': 0., 'cutmix_alpha': 1.},
    {'mixup_alpha': 0.2, 'cutmix_alpha': 1., 'switch_prob': 0.7, 'prob': 0.6},
    {'mixup_alpha': 0., 'cutmix_minmax': (0.2, 0.8)},
    {'mixup_alpha': 0., 'cutmix_alpha': 1., 'correct_lam': False},
])
@pytest.mark.parametrize('mode', MODES)
def test_lambda_is_distributed_as_in_timm(mode, mix):
    kwargs = dict(mode=mode, label_smoothing=0., num_classes=4, **mix)
    ours = draw_lambdas(TwoViewMixup(**kwargs), 2, 1200)
    timms = draw_lambdas(Mixup(**kwargs), 1, 1200)
    assert kolmogorov_smirnov(ours, timms) < 1.95 * (2 / 1200) ** 0.5  # the 0.1% level


@pytest.mark.parametrize('mix', MIXES)
@pytest.mark.parametrize('mode', MODES)
def test_collate_and_device_mix_equally(mode, mix):
    """With the same seed, the collate function's uint8 images are the rounded float images of the device."""
    kwargs = dict(mode=mode, prob=0.7, num_classes=8, **MIXES[mix])
    images = torch.randint(256, (16, 3, 10, 14), dtype=torch.uint8)
    samples = [((images[i], images[8 + i]), i) for i in range(8)]
    for seed in range(5):
        random_seed(seed)
        mixed, target = TwoViewCollate(kwargs)(samples)
        random_seed(seed)
        float_mixed, float_target = TwoViewMixup(**kwargs)(images.float(), torch.arange(8).repeat(2))
        assert torch.equal(target, float_target)
        torch.testing.assert_close(mixed.float(), float_mixed, rtol=0, atol=0.501)


def test_collate_without_mixup_is_exact():
    """The order is view-major, the dtype stays."""
    for dtype in (torch.uint8, torch.float32):
        images = torch.arange(48).reshape(3, 2, 2, 2, 2).to(dtype)
        x, target = TwoViewCollate()([((first, second), label) for (first, second), label in zip(images, (7, 1, 4))])
        assert x.dtype == dtype and torch.equal(x, torch.cat([images[:, 0], images[:, 1]]))
        assert target.dtype == torch.int64 and target.tolist() == [7, 1, 4] * 2


@pytest.mark.parametrize('given', [{}, {'label_smoothing': 0.1}])  # labels are not smoothed by default
@pytest.mark.parametrize('mode', MODES)
def test_mixup_can_be_disabled_in_one_process(mode, given):
    smoothing = given.get('label_smoothing', 0.)
    mixup = TwoViewMixup(mixup_alpha=1., mode=mode, num_classes=4, **given)
    collate = TwoViewCollate({'mixup_alpha': 1., 'mode': mode, 'num_classes': 4, **given})
    assert mixup.mixup_enabled and collate.mixup_enabled
    mixup.mixup_enabled = collate.mixup_enabled = False
    assert not mixup.mixup_enabled and not collate.mixup_enabled
    images, labels = channel_images(8), torch.arange(4).repeat(2)
    samples = [((images[i], images[4 + i]), i) for i in range(4)]
    for x, target in (mixup(images.clone(), labels), collate(samples)):
        assert torch.equal(x, images)
        torch.testing.assert_close(unsmoothed(target, smoothing, 4), one_hot(labels, 4), rtol=0, atol=1e-6)
    mixup.mixup_enabled = True
    assert not torch.equal(mixup(images.clone(), labels)[0], images)


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('two_views', [True, False])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_mixup_can_be_disabled_from_the_next_epoch_on(colour_dataset, num_workers, two_views, use_prefetcher):
    loader = create_train_loader(
        colour_dataset(24), 8, 8, two_views=two_views, num_workers=num_workers, use_prefetcher=use_prefetcher,
        mixup={'mixup_alpha': 1., 'label_smoothing': 0.1, 'num_classes': 3}, color_jitter=None, mean=(0.,) * 3,
        std=(1.,) * 3, device='cpu')
    assert loader.mixup_enabled
    for enabled in (True, False, True):
        loader.mixup_enabled = enabled
        assert loader.mixup_enabled == enabled
        batches = list(loader)
        assert len(batches) == 3
        x, target = [torch.cat(parts) for parts in zip(*batches)]
        target = unsmoothed(target, 0.1, 3)
        hard = torch.isclose(target.amax(1), torch.ones(len(target)).double(), atol=1e-5)
        assert not hard.all() if enabled else hard.all()
        # The three classes are red, green and blue, so the share of a class is the level of its channel.
        torch.testing.assert_close(target, x.double().mean((2, 3)), rtol=0, atol=1.01 / 255)


def test_a_dataloader_mixes_in_its_workers(colour_dataset):
    """Each view has its own lambda. The three classes are red, green and blue."""
    loader = create_two_view_loader(
        colour_dataset(24), 8, 8, num_workers=1, use_prefetcher=False, device='cpu',
        mixup={'mixup_alpha': 1., 'num_classes': 3, 'label_smoothing': 0.}, color_jitter=None, mean=(0.,) * 3,
        std=(1.,) * 3)
    assert isinstance(loader, DataLoader) and loader.mixup_enabled
    for enabled, switch in ((True, loader), (False, loader), (True, loader.collate_fn)):
        switch.mixup_enabled = enabled
        x, target = (torch.cat(parts) for parts in zip(*loader))
        torch.testing.assert_close(target, x.mean((2, 3)), rtol=0, atol=1e-5)
        assert (target.amax(1) < 1).any() == enabled == loader.mixup_enabled


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_disabling_has_no_effect_without_mixup(colour_dataset, use_prefetcher):
    loader = create_two_view_loader(colour_dataset(8), 8, 4, num_workers=0, use_prefetcher=use_prefetcher, device='cpu')
    assert not getattr(loader, 'mixup_enabled', False)
    loader.mixup_enabled = False
    assert all(target.ndim == 1 for _, target in loader)


def test_disabling_one_mixup_does_not_disable_others():
    pairs = [TwoViewMixup(num_classes=2), TwoViewMixup(num_classes=2), CollateMixup(num_classes=2)]
    pairs[0].mixup_enabled = False
    assert [mixup.mixup_enabled for mixup in pairs] == [False, True, True]


@pytest.mark.parametrize('kwargs, message', [
    ({'mode': 'half'}, 'half'),
    ({'mode': 'Batch'}, 'Batch'),
    ({'mixup_alpha': 0., 'cutmix_alpha': 0.}, 'mixup_alpha'),
    ({'mixup_alpha': 1.}, 'mixup needs num_classes'),
    ({'mixup_alpha': 1., 'num_classes': 3, 'multi_label': True}, 'no multi_label'),
])
def test_invalid_arguments_are_refused(kwargs, message):
    for make in (lambda: TwoViewMixup(**kwargs), lambda: TwoViewCollate(kwargs)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize('mode', MODES)
def test_an_odd_number_of_images_is_refused(mode):
    mixup = TwoViewMixup(mode=mode, num_classes=3)
    with pytest.raises(ValueError, match='even'):
        mixup(channel_images(6), torch.arange(3).repeat(2))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
@pytest.mark.parametrize('mode', MODES)
def test_two_images_are_partners_of_each_other(mode, dtype):
    mixup = TwoViewMixup(mixup_alpha=1., mode=mode, num_classes=2)
    shares = mix_shares(mixup, 2, dtype=dtype)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 2).double(), rtol=0, atol=1 / 255)
    assert (own_share(shares) < 1).all()
