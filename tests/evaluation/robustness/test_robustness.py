"""Attacks, corruptions, calibration and agreement as functions, against closed forms and other implementations."""
import random
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from timm.models import create_model
from timm.utils import random_seed
from torch.utils.data import DataLoader

from agmax_timm.evaluation.calibration import CalibrationBins
from agmax_timm.evaluation.robustness.agreement import AgreementEvaluator
from agmax_timm.evaluation.robustness.attacks import pgd, random_start
from agmax_timm.evaluation.robustness.corruptions import (
    ALEXNET_ERRORS,
    corrupt_rgb,
    corruption_names,
    find_corruptions,
    mean_corruption_error,
    summarize,
)
from agmax_timm.evaluation.robustness.seeding import SeededDataset, sample_seed
from agmax_timm.evaluation.robustness.stress import before_tensor, stress_transform
from agmax_timm.evaluation.robustness.table import by_epsilon, by_severity, labels, markdown, text, write_comparison

# ---- Attacks ----


@pytest.fixture
def linear():
    """A linear classifier of 2 classes in float64. Its loss depends on the margin of its logits alone."""
    weight = torch.randn(2, 3 * 8 * 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.full((5, 3, 8, 8), 0.5, dtype=torch.float64)
    images += 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return weight, images, torch.tensor([0, 1, 1, 0, 1]), lambda x: x.flatten(1) @ weight.T


def margin(model, images, target):
    """Return the logit of the wrong class minus that of the right class. Attacks increase it."""
    logits = model(images)
    return (logits[:, 1] - logits[:, 0]) * (1 - 2 * target)


def fgsm(model, images, target, epsilon, norm='linf'):
    return pgd(model, images, target, epsilon, norm, steps=1, step_size=epsilon)


@pytest.mark.parametrize('norm, dual', [('linf', 1), ('l2', 2)])
@pytest.mark.parametrize('attack', [fgsm, pgd])
def test_an_attack_on_a_linear_model_gains_epsilon_times_the_dual_norm(linear, norm, dual, attack):
    """Without pixels at a bound, any number of steps finds the maximum of a linear function on a ball."""
    weight, images, target, model = linear
    gain = margin(model, attack(model, images, target, 0.02, norm), target) - margin(model, images, target)
    expected = 0.02 * (weight[1] - weight[0]).norm(p=dual)
    torch.testing.assert_close(gain, expected.expand(5))


def test_pixels_at_their_bounds_are_not_changed(linear):
    weight, _, target, model = linear
    black = torch.zeros(5, 3, 8, 8, dtype=torch.float64)
    gain = margin(model, pgd(model, black, target, 0.02), target) - margin(model, black, target)
    rise = (weight[1] - weight[0]) * (1 - 2 * target[:, None])
    torch.testing.assert_close(gain, 0.02 * rise.clamp(min=0).sum(1))


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(3)
    model = create_model('test_resnet', num_classes=4).eval().requires_grad_(False)
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)
    images = torch.rand(6, 3, 32, 32)
    images[:2] = images[:2].round()  # at the bounds
    return lambda x: model((x - 0.5) / 0.25), images, torch.tensor([0, 1, 2, 3, 0, 1])


def size_of(change, norm):
    return change.abs().amax((1, 2, 3)) if norm == 'linf' else change.square().sum((1, 2, 3)).sqrt()


@pytest.mark.parametrize('norm, epsilon', [('linf', 4 / 255), ('l2', 0.5)])
def test_attacks_stay_in_bounds_and_raise_the_loss(network, norm, epsilon):
    model, images, target = network
    start = random_start(images.shape[1:], epsilon, norm, range(6))
    losses = []
    for attacked in (images, fgsm(model, images, target, epsilon, norm),
                     pgd(model, images, target, epsilon, norm, start=start)):
        assert attacked.min() >= 0. and attacked.max() <= 1.
        assert (size_of(attacked - images, norm) <= epsilon * (1 + 1e-5)).all()
        losses.append(F.cross_entropy(model(attacked), target).item())
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_epsilon_0_changes_nothing(network, norm):
    model, images, target = network
    start = random_start(images.shape[1:], 0., norm, range(6))
    assert torch.equal(pgd(model, images, target, 0., norm, start=start), images)


def test_an_attack_does_not_depend_on_the_batch(network):
    model, images, target = network
    whole = pgd(model, images, target, 0.5, 'l2', start=random_start((3, 32, 32), 0.5, 'l2', range(6)))
    alone = pgd(model, images[4:5], target[4:5], 0.5, 'l2', start=random_start((3, 32, 32), 0.5, 'l2', [4]))
    torch.testing.assert_close(whole[4:5], alone, atol=1e-3, rtol=0)


def test_random_starts_fill_the_ball():
    """In 3 dimensions, an eighth of a ball is within half of its radius."""
    starts = random_start((3, 1, 1), 2., 'l2', range(4000))
    lengths = size_of(starts, 'l2')
    assert lengths.max() <= 2.000001 and (lengths < 1.).float().mean().item() == pytest.approx(1 / 8, abs=0.02)
    starts = random_start((3, 1, 1), 2., 'linf', range(4000))
    assert starts.abs().max() <= 2. and starts.std().item() == pytest.approx(2 / 3 ** 0.5, abs=0.03)


def test_attacks_accept_gradients_that_are_nan_or_very_small():
    images, target = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    broken = pgd(lambda x: x.flatten(1) * torch.nan, images, target, 0.1, 'l2')
    assert torch.equal(broken, images)
    small = fgsm(lambda x: x.flatten(1) * 1e-25, images, target, 0.1, 'l2')
    torch.testing.assert_close(size_of(small - images, 'l2'), torch.full((2,), 0.1))


def test_an_unknown_norm_is_refused(network):
    model, images, target = network
    with pytest.raises(ValueError, match="'l1'"):
        pgd(model, images, target, 0.1, 'l1')


@pytest.mark.parametrize('name, epsilon, norm, kwargs', [
    ('FGSM', 4 / 255, 'linf', None), ('PGD', 4 / 255, 'linf', dict(alpha=1 / 255, steps=7)),
    ('PGDL2', 0.5, 'l2', dict(alpha=0.1, steps=7))])
def test_attacks_equal_those_of_torchattacks(network, name, epsilon, norm, kwargs):
    torchattacks = pytest.importorskip('torchattacks')
    _, images, target = network
    model = create_model('test_resnet', num_classes=4).eval()
    if kwargs is None:
        theirs, ours = torchattacks.FGSM(model, eps=epsilon), fgsm(model, images, target, epsilon, norm)
    else:
        theirs = getattr(torchattacks, name)(model, eps=epsilon, random_start=False, **kwargs)
        ours = pgd(model, images, target, epsilon, norm, kwargs['steps'], kwargs['alpha'])
    difference = (theirs(images, target) - ours).abs()
    # Where a gradient is about 0, its sign may differ by rounding.
    assert (difference < 1e-6).float().mean() > 0.999 and difference.max() <= 2 * epsilon


# ---- Corruptions ----

def test_mean_corruption_error_is_relative_to_alexnet():
    """AlexNet has 100 by definition. Half of its error on one of 15 corruptions gives 100 - 50 / 15."""
    errors = {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in range(1, 6)}
    assert mean_corruption_error(errors) == pytest.approx(100.)
    for severity in range(1, 6):
        errors['fog', severity] /= 2
    assert mean_corruption_error(errors) == pytest.approx(100 - 50 / 15)

    summary = summarize(errors, imagenet_c=True)
    assert summary['mce'] == mean_corruption_error(errors) and 'mce' not in summarize(errors)
    del errors['fog', 3]
    assert mean_corruption_error(errors) is None and 'mce' not in summarize(errors, imagenet_c=True)


@pytest.mark.parametrize('name, top1, relative', [
    ('brightness', 68.02, 56.64), ('contrast', 39.06, 71.43), ('defocus_blur', 38.75, 74.71), ('fog', 45.83, 66.11),
    ('elastic_transform', 45.25, 84.75), ('frost', 38.14, 74.84), ('gaussian_noise', 29.29, 79.77),
    ('glass_blur', 26.79, 88.61), ('impulse_noise', 23.81, 82.58)])
def test_errors_of_alexnet_agree_with_published_corruption_errors(name, top1, relative):
    """Published accuracies and corruption errors of torchvision's first ResNet-50 on ImageNet-C, both rounded."""
    assert 100 * (100 - top1) / ALEXNET_ERRORS[name] == pytest.approx(relative, abs=0.02)


def test_corruptions_have_equal_weight_with_any_number_of_severities():
    summary = summarize({('fog', 1): 10., ('fog', 5): 30., ('snow', 3): 50.})
    assert summary == dict(fog_err=20., snow_err=50., corruption_err=35.)


def test_folders_of_corruptions_may_be_in_groups(tmp_path):
    for folder in ('fog/1/ant', 'fog/3/ant', 'noise/shot_noise/5/bee', 'noise/readme/x', 'other'):
        (tmp_path / folder).mkdir(parents=True)
    assert find_corruptions(str(tmp_path)) == {
        'fog': {1: str(tmp_path / 'fog' / '1'), 3: str(tmp_path / 'fog' / '3')},
        'shot_noise': {5: str(tmp_path / 'noise' / 'shot_noise' / '5')}}


@pytest.fixture
def package(monkeypatch):
    """A replacement of imagecorruptions-imaug: noise of numpy's generator, or of a seed if the function takes one."""
    def noisy(image, severity, seed=None):
        draws = np.random if seed is None else np.random.RandomState(seed)
        return (np.asarray(image) + draws.randint(0, 20 * severity, np.shape(image))).clip(0, 255)

    def glass_blur(image, severity=1, seed=None):
        assert seed is not None
        return noisy(image, severity, seed)

    def impulse_noise(image, severity=1, seed=None):
        assert seed is not None
        return noisy(image, severity, seed)

    def fog(image, severity=1):
        return noisy(image, severity)

    known = {f.__name__: f for f in (glass_blur, impulse_noise, fog)}
    package = types.ModuleType('imagecorruptions')
    package.corrupt = lambda image, severity, name, **own: np.uint8(known[name](image, severity, **own))
    package.get_corruption_names = lambda subset: list(known)
    package.corruptions = types.ModuleType('imagecorruptions.corruptions')
    vars(package.corruptions).update(known)
    monkeypatch.setitem(sys.modules, 'imagecorruptions', package)
    monkeypatch.setitem(sys.modules, 'imagecorruptions.corruptions', package.corruptions)
    return package


def corrupted_dataset(dataset, name, severity=2, seed=5):
    dataset.transform = create_transform((3, 32, 32), use_prefetcher=True)
    dataset = SeededDataset(dataset, seed)
    dataset.transform = before_tensor(dataset.transform, partial(corrupt_rgb, name=name, severity=severity))
    return dataset


def corrupted(dataset, name, seed=5, workers=0, batch_size=3):
    loader = DataLoader(corrupted_dataset(dataset, name, seed=seed), batch_size, num_workers=workers)
    return torch.cat([torch.as_tensor(images) for images, _ in loader])


@pytest.mark.parametrize('name', ['fog', 'glass_blur', 'impulse_noise'])
def test_a_corrupted_image_does_not_depend_on_workers_and_batches(name, package, gradient_dataset):
    data = gradient_dataset(7)
    images = corrupted(data, name)
    assert images.shape == (7, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images, corrupted(data, name, workers=2, batch_size=2))
    assert all(not torch.equal(images[0], image) for image in images[1:]), 'each image has its own noise'
    assert not torch.equal(images, corrupted(data, name, seed=6))


def test_corruptions_do_not_change_the_global_generators(package, gradient_dataset):
    def draws():
        return random.random(), np.random.rand(), torch.rand(()).item()
    data = corrupted_dataset(gradient_dataset(2), 'fog')
    random_seed(1)
    expected = draws()
    random_seed(1)
    data[0]
    assert draws() == expected


def test_seeds_of_samples_are_all_different():
    assert len({sample_seed(seed, index) for seed in range(5) for index in range(1000)}) == 5000


def test_a_package_without_seeds_is_refused(package):
    assert 'fog' in corruption_names()
    package.corruptions.glass_blur = lambda x, severity=1: x
    with pytest.raises(ImportError, match='imagecorruptions-imaug'):
        corruption_names()


def test_every_corruption_is_reproducible_and_depends_on_its_severity():
    pytest.importorskip('imagecorruptions')
    image = Image.fromarray(np.random.default_rng(0).integers(60, 190, (48, 48, 3), np.uint8)).resize((40, 36))
    names = corruption_names()
    assert len(names) == 19 and set(names[:15]) == set(ALEXNET_ERRORS)
    for name in names:
        pixels = []
        for severity in (1, 1, 5):
            np.random.seed(4)
            out = corrupt_rgb(image, name, severity)
            assert out.size == image.size and out.mode == 'RGB'
            pixels.append(np.asarray(out).astype(float))
        assert np.array_equal(pixels[0], pixels[1]), name
        assert not np.array_equal(pixels[1], np.asarray(image)) and not np.array_equal(pixels[1], pixels[2]), name


# ---- Stress ----

def test_stress_replaces_one_step_of_the_transform(gradient_dataset):
    """Red is the column and green the row, so the pixels show which part was cropped."""
    transform = create_transform((3, 32, 32), use_prefetcher=True)
    image = gradient_dataset(1).images[0]
    torch.manual_seed(0)
    crops = [torch.as_tensor(stress_transform('crop', transform, (32, 32), 'bilinear')(image)).float()
             for _ in range(40)]
    shares = [(crop[0, 0, -1] - crop[0, 0, 0]) * (crop[1, -1, 0] - crop[1, 0, 0]) / 255 ** 2 for crop in crops]
    assert min(shares) > 0.15 and max(shares) > 0.6 and min(shares) < 0.4
    steps = stress_transform('jitter', transform, (32, 32), 'bilinear').transforms
    step, = (step for step in steps if step not in transform.transforms)
    assert [*steps[:-2], steps[-1]] == transform.transforms and step is steps[-2]  # directly before the tensor
    assert step.brightness == step.contrast == step.saturation == (0, 2) and step.hue is None


# ---- Calibration and agreement ----

def calibration_of(logits, target):
    totals = CalibrationBins()
    totals.update(logits, target)
    return totals.compute()


def test_calibration_error_by_hand():
    """Confidences 0.9 (3 of 4 right) and 0.6 (1 of 2 right): (4 * |0.9 - 0.75| + 2 * |0.6 - 0.5|) / 6."""
    logits = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2, dtype=torch.float64).log()
    error, bins = calibration_of(logits, torch.tensor([0, 0, 0, 1, 1, 0]))
    assert error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert len(bins) == 15 and [(b.count, round(b.confidence, 9), b.accuracy) for b in bins if b.count] == [
        (2, 0.6, 0.5), (4, 0.9, 0.75)]
    assert all(b.low < b.confidence <= b.high for b in bins if b.count)


def test_calibration_error_equals_that_of_a_loop():
    logits = 3 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    target = torch.randint(10, (500,), generator=torch.Generator().manual_seed(1))
    confidence, prediction = logits.double().softmax(1).max(1)
    expected = 0.
    for i in range(15):
        inside = [n for n in range(500) if i / 15 < confidence[n] <= (i + 1) / 15]
        if inside:
            hits = np.mean([prediction[n].item() == target[n].item() for n in inside])
            expected += len(inside) / 500 * abs(hits - np.mean([confidence[n].item() for n in inside]))
    assert calibration_of(logits, target).error == pytest.approx(expected, rel=1e-9)
    # Certain and right: nothing to correct, and 1 belongs to the last bin.
    certain = torch.eye(3) * 1e4
    error, bins = calibration_of(certain, torch.arange(3))
    assert error == 0. and bins[-1].count == 3


def test_agreement_has_the_share_of_equal_labels_and_the_divergence():
    first, second = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    evaluator = AgreementEvaluator(max_samples=5)
    for part in (slice(0, 4), slice(4, 6)):  # the sixth is padding
        evaluator.update(torch.cat([first[part], second[part]]), None)
    p, q = first[:5].double().log_softmax(1), second[:5].double().log_softmax(1)
    symmetric = (F.kl_div(p, q, log_target=True, reduction='batchmean')
                 + F.kl_div(q, p, log_target=True, reduction='batchmean')) / 2
    metrics = evaluator.compute()
    assert metrics['agreement_kl'] == pytest.approx(symmetric.item())
    assert metrics['agreement'] == pytest.approx(20. * (p.argmax(1) == q.argmax(1)).sum().item())
    same = AgreementEvaluator(valid_labels=[2, 0])
    same.update(torch.cat([first, first * torch.tensor([1., 9., 1., 9.])]), None)
    assert same.compute() == dict(agreement=100., agreement_kl=0.)


# ---- The table ----

ROWS = [
    dict(model='resnet18', top1=70., top1_err=30., fog_1_err=40., fog_2_err=60., snow_1_err=50., fog_err=50.,
         snow_err=50., corruption_err=50., pgd_linf_1_top1=30., pgd_linf_2_top1=10., agreement_kl=0.01234,
         checkpoint='runs/a/best.pth'),
    dict(model='resnet18', top1=60., top1_err=40., corruption_err=55.5, checkpoint='runs/b/best.pth'),
    dict(model='resnet|18', error='out of memory'),
]


def test_the_table_has_a_column_for_each_model():
    assert labels(ROWS) == ['a/best.pth', 'b/best.pth', 'resnet|18']
    lines = markdown(ROWS).splitlines()
    assert lines[0] == r'|  | a/best.pth | b/best.pth | resnet\|18 |' and lines[1] == '| --- | ---: | ---: | ---: |'
    assert '| corruption_err | 50.00 | 55.50 |  |' in lines and '| agreement_kl | 0.01234 |  |  |' in lines
    assert not any('fog_1' in line or 'top1_err' in line for line in lines)
    assert lines[-1] == r'resnet\|18: out of memory'


def test_a_terminal_shows_a_line_for_each_model():
    assert text(ROWS).splitlines() == [
        'a/best.pth: top1 70.00, fog_err 50.00, snow_err 50.00, corruption_err 50.00, pgd_linf_1_top1 30.00, '
        'pgd_linf_2_top1 10.00, agreement_kl 0.01234',
        'b/best.pth: top1 60.00, corruption_err 55.50',
        'resnet|18: out of memory']


def test_curves_begin_with_the_original_images():
    assert by_severity(ROWS[0]) == {0: 30., 1: 45., 2: 60.} and by_severity(ROWS[1]) == {}
    assert by_epsilon(ROWS[0]) == {0.: 70., 1.: 30., 2.: 10.} and by_epsilon(ROWS[1]) == {}


def test_the_report_has_three_files(tmp_path):
    pytest.importorskip('matplotlib')
    write_comparison(str(tmp_path / 'new'), ROWS)
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == [
        'robustness.csv', 'robustness.md', 'robustness.png']
    assert (tmp_path / 'new' / 'robustness.csv').read_text().count('\n') == 4
    assert Image.open(tmp_path / 'new' / 'robustness.png').size[0] > 500


def test_classes_may_be_named_like_severities(tmp_path):
    for folder in ('noise/1/1', 'noise/1/7', 'noise/2/1', 'noise/2/7', 'weather/fog/3/2'):
        (tmp_path / folder).mkdir(parents=True)
    found = find_corruptions(str(tmp_path))
    assert {name: list(folders) for name, folders in found.items()} == {'fog': [3], 'noise': [1, 2]}


def test_outputs_that_are_nan_do_not_agree():
    evaluator = AgreementEvaluator()
    logits = torch.tensor([[3., 0.], [float('nan'), 0.], [3., 0.], [float('nan'), 0.]])
    evaluator.update(logits, torch.zeros(4))
    metrics = evaluator.compute()
    assert metrics['agreement'] == 50. and np.isnan(metrics['agreement_kl'])
