"""The loss against the method's formulas in float64 numpy. Logits are [B, K], with two views of B images."""
import math

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from agmax_timm import AgMaxLoss
from agmax_timm.loss import AGREEMENT_KINDS, agreement_terms

FLOAT64_EPSILON = 2.220446049250313e-16


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def expected_terms(z1, z2, z12=None, kind='mi', divergence_weight=4.0):
    rows, classes = z1.shape
    log_p1, log_p2 = log_softmax(z1), log_softmax(z2)
    p1, p2 = np.exp(log_p1), np.exp(log_p2)
    if kind == 'mse':
        return ((z1 - z2) ** 2).sum() / (rows * classes), 0.0
    if kind == 'kl':
        return (p2 * (log_p2 - log_p1)).sum() / rows, 0.0
    if kind == 'ce':
        return -(p1 * log_p2).sum() / (rows * classes), 0.0
    p12 = np.exp(log_softmax(z12))
    agreement = 0.0
    for p in (p1, p2, p12):
        marginal = p.sum(axis=0) / rows
        agreement += (marginal * np.log(np.maximum(marginal, FLOAT64_EPSILON))).sum() / 3
    distance = np.abs(p12 - p1).sum() + np.abs(p12 - p2).sum()
    return agreement, divergence_weight * distance / (2 * rows * classes)


@pytest.mark.parametrize('images', [2, 3, 6, 12])
def test_the_agreement_of_groups_is_the_mean_over_the_groups(images):
    logits = random_logits(12, 5)
    groups = [expected_terms(*[z.numpy()[i:i + images] for z in logits])[0] for i in range(0, 12, images)]
    agreement, divergence = agreement_terms(*logits, marginal_images=images)
    assert agreement.item() == pytest.approx(sum(groups) / len(groups), rel=1e-12)
    assert divergence.item() == agreement_terms(*logits)[1].item()
    one_group = [agreement_terms(*logits, marginal_images=n)[0].item() for n in (None, 12)]
    assert one_group[0] == pytest.approx(one_group[1], rel=1e-14)


@pytest.mark.parametrize('classes', [2, 100])
def test_the_divergence_can_be_summed_over_the_classes(classes):
    logits = random_logits(6, classes)
    p1, p2, p12 = [np.exp(log_softmax(z.numpy())) for z in logits]
    expected = 0.5 * np.mean([np.abs(p12 - p).sum(axis=1) for p in (p1, p2)])
    agreement, divergence = agreement_terms(*logits, divergence_weight=0.5, divergence_reduction='sum')
    assert divergence.item() == pytest.approx(expected, rel=1e-12) and 0 < divergence <= 1
    assert agreement == agreement_terms(*logits)[0]


def test_gradients_of_groups_and_summed_divergence_equal_finite_differences():
    logits = [z.requires_grad_() for z in random_logits(4, 5, scale=1.5)]
    assert torch.autograd.gradcheck(
        lambda *z: agreement_terms(*z, marginal_images=2, divergence_reduction='sum'), logits)


def test_the_loss_uses_its_settings():
    z1, z2, z12 = random_logits(8, 7)
    settings = dict(marginal_images=4, divergence_reduction='sum')
    parts = AgMaxLoss(**settings)(torch.cat([z1, z2]), z12, torch.tensor(LABELS))
    terms = agreement_terms(z1, z2, z12, **settings)
    assert (parts['agreement'], parts['divergence']) == terms and terms != agreement_terms(z1, z2, z12)


@pytest.mark.parametrize('images, batch, message', [
    (3, 8, 'marginal_images 3 must divide the 8 images .*: use 2 or 4'),
    (100, 8, 'use 4 or 8'),
    (3, 2, 'use 2'),
])
def test_groups_that_do_not_fit_the_batch_are_refused(images, batch, message):
    with pytest.raises(ValueError, match=f'{message}$'):
        agreement_terms(*random_logits(batch, 3), marginal_images=images)


def test_invalid_settings_are_refused_by_the_constructor():
    with pytest.raises(ValueError, match='marginal_images must be 2 .*, got 1: '):
        AgMaxLoss(marginal_images=1)
    with pytest.raises(ValueError, match="divergence_reduction .*mean, sum, got 'max'"):
        AgMaxLoss(divergence_reduction='max')


def expected_cross_entropy(logits, soft_target):
    return -(soft_target * log_softmax(logits)).sum() / len(logits)


def expected_binary_cross_entropy(logits, soft_target):
    return (np.logaddexp(0, logits) - logits * soft_target).mean()


def random_logits(rows, classes, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(3)]


def arguments(logits, kind):
    return logits if kind == 'mi' else logits[:2]


def as_floats(terms):
    return [term.item() for term in terms]


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
@pytest.mark.parametrize('rows, classes', [(2, 2), (5, 3), (64, 10), (3, 1000)])
@pytest.mark.parametrize('divergence_weight', [4.0, 0.5])
def test_terms_equal_the_formulas(kind, rows, classes, divergence_weight):
    logits = random_logits(rows, classes)
    expected = expected_terms(*[z.numpy() for z in logits], kind, divergence_weight)
    terms = agreement_terms(*arguments(logits, kind), kind=kind, divergence_weight=divergence_weight)
    assert as_floats(terms) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float16, 1e-5), (torch.bfloat16, 1e-5)])
def test_low_precision_logits_give_float32_terms(kind, dtype, tolerance):
    logits = [z.to(dtype) for z in random_logits(16, 10)]
    expected = expected_terms(*[z.double().numpy() for z in logits], kind)
    terms = agreement_terms(*arguments(logits, kind), kind=kind)
    assert [term.dtype for term in terms] == [torch.float32] * 2
    assert [term.shape for term in terms] == [torch.Size([])] * 2
    assert as_floats(terms) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_gradients_equal_finite_differences(kind):
    logits = [z.requires_grad_() for z in arguments(random_logits(4, 5, scale=1.5), kind)]
    terms_with_gradient = 2 if kind == 'mi' else 1
    assert torch.autograd.gradcheck(lambda *z: agreement_terms(*z, kind=kind)[:terms_with_gradient], logits)


@pytest.mark.parametrize('classes', [2, 10, 1000])
def test_terms_of_uniform_predictions(classes):
    z = torch.full((6, classes), 7.0)
    agreement, divergence = agreement_terms(z, z, z)
    assert agreement.item() == pytest.approx(-math.log(classes), rel=1e-6)
    assert divergence.item() == 0


@pytest.mark.parametrize('classes, labels, expected', [
    (4, [0, 1, 2, 3], -math.log(4)),  # balanced: the best there is
    (4, [0, 0, 1, 1], -math.log(2)),
    (4, [2, 2, 2, 2], 0.0),  # collapsed: the worst
    (2, [0, 1], -math.log(2)),
    (2, [0, 0, 0, 1], 0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
])
def test_terms_of_identical_one_hot_predictions(classes, labels, expected):
    z = 1000.0 * nn.functional.one_hot(torch.tensor(labels), classes)
    agreement, divergence = agreement_terms(z, z, z)
    assert agreement.item() == pytest.approx(expected, rel=1e-6)
    assert divergence.item() == 0


@pytest.mark.parametrize('divergence_weight', [0.0, 1.0, 4.0])
def test_terms_of_views_of_opposite_classes(divergence_weight):
    z1, z2 = torch.tensor([[500.0, 0.0]] * 3), torch.tensor([[0.0, 500.0]] * 3)
    agreement, divergence = agreement_terms(z1, z2, z1, divergence_weight=divergence_weight)
    assert agreement.item() == 0
    # p12 = p1 differs from p2 by 1 in both classes: a mean over the 2B x K entries of 1/2
    assert divergence.item() == divergence_weight / 2


@pytest.mark.parametrize('gap, mean_log', [(-30.0, -31.0), (-50.0, math.log(2.2e-16)), (-100.0, math.log(2.2e-16))])
def test_marginals_have_a_floor_in_the_logarithm(gap, mean_log):
    """With marginals (1, p) and a tiny p: p ln p - p above the floor of 2.2e-16, p ln 2.2e-16 below it."""
    z = torch.tensor([[0.0, gap]] * 2, dtype=torch.float64)
    agreement, _ = agreement_terms(z, z, z)
    assert agreement.item() == pytest.approx(math.exp(gap) * mean_log, rel=2e-3)


def extreme_logits(pattern, rows, classes, largest):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    one_hot = nn.functional.one_hot(labels, classes).float()
    if pattern == 'flat':
        z = torch.full((rows, classes), largest)
        return z, -z, z
    if pattern == 'one-hot':
        z = largest * (2 * one_hot - 1)
        return z, z, z
    if pattern == 'opposed':
        z = largest * (2 * one_hot - 1)
        return z, -z, z.roll(1, 0)
    if pattern == 'underflow':
        z = -200 * (1 - one_hot)
        return z, z.roll(1, 0), torch.zeros(rows, classes)
    return [largest * (2 * torch.rand(rows, classes, generator=generator) - 1) for _ in range(3)]


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('classes', [2, 10, 21841])
@pytest.mark.parametrize('pattern', ['flat', 'one-hot', 'opposed', 'underflow', 'random'])
def test_extreme_logits_are_finite(kind, dtype, classes, pattern):
    rows = 4
    z1, z2, z12 = [z.to(dtype) for z in extreme_logits(pattern, rows, classes, largest=60_000.0)]
    logits = torch.cat([z1, z2]).requires_grad_()
    joint_logits = z12.requires_grad_() if kind == 'mi' else None
    target = torch.arange(2 * rows) % classes
    parts = AgMaxLoss(kind=kind)(logits, joint_logits, target)
    parts['loss'].backward()
    assert all(part.isfinite() for part in parts.values())
    assert all(z.grad.isfinite().all() for z in (logits, joint_logits) if z is not None)
    if kind == 'mi':
        assert -math.log(classes) - 1e-4 <= parts['agreement'] <= 0


@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_autocast_changes_nothing(kind):
    class MatrixLoss(nn.Module):
        """A matrix product, which autocast would round to bfloat16."""

        def forward(self, x, target):
            return nn.functional.cross_entropy(x @ torch.linspace(-1, 1, 49).view(7, 7), target)

    z1, z2, z12 = [z.float() for z in random_logits(8, 7)]
    z12 = z12 if kind == 'mi' else None
    loss = AgMaxLoss(MatrixLoss(), kind=kind)
    target = torch.arange(16) % 7
    expected = loss(torch.cat([z1, z2]), z12, target)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        parts = loss(torch.cat([z1, z2]), z12, target)
        assert agreement_terms(z1, z2, z12, kind) == (expected['agreement'], expected['divergence'])
    assert parts == expected


LABELS = np.arange(16) % 7
HARD = np.eye(7)[LABELS]
SMOOTH = 0.9 * HARD + 0.1 / 7
SOFT = np.exp(log_softmax(np.sin(np.arange(16 * 7.0)).reshape(16, 7)))


@pytest.mark.parametrize('criterion, target, expected', [
    (None, LABELS, (expected_cross_entropy, HARD)),
    (None, SOFT, (expected_cross_entropy, SOFT)),
    (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS, (expected_cross_entropy, SMOOTH)),
    (LabelSmoothingCrossEntropy(0.1), LABELS, (expected_cross_entropy, SMOOTH)),
    (SoftTargetCrossEntropy(), SOFT, (expected_cross_entropy, SOFT)),
    (BinaryCrossEntropy(0.1), LABELS, (expected_binary_cross_entropy, SMOOTH)),
    (BinaryCrossEntropy(0.1), SOFT, (expected_binary_cross_entropy, SOFT)),
], ids=['default-hard', 'default-soft', 'torch-smoothed', 'smoothed', 'soft', 'binary-hard', 'binary-soft'])
@pytest.mark.parametrize('kind', AGREEMENT_KINDS)
def test_loss_is_the_sum_of_its_parts(criterion, target, expected, kind):
    z1, z2, z12 = random_logits(8, 7)
    formula, distribution = expected
    ce = formula(torch.cat([z1, z2]).numpy(), distribution)
    agreement, divergence = expected_terms(z1.numpy(), z2.numpy(), z12.numpy(), kind, divergence_weight=2.0)
    loss = AgMaxLoss(criterion, kind=kind, weight=0.3, divergence_weight=2.0)
    parts = loss(torch.cat([z1, z2]), z12 if kind == 'mi' else None, torch.tensor(target))
    values = {name: part.item() for name, part in parts.items()}
    assert values == pytest.approx({
        'loss': ce + 0.3 * agreement + divergence,
        'ce': ce,
        'agreement': agreement,
        'divergence': divergence,
    }, rel=1e-6)


def test_defaults_are_the_published_objective():
    z1, z2, z12 = random_logits(8, 7)
    parts = AgMaxLoss()(torch.cat([z1, z2]), z12, torch.tensor(LABELS))
    expected = expected_cross_entropy(torch.cat([z1, z2]).numpy(), HARD)
    expected += sum(expected_terms(z1.numpy(), z2.numpy(), z12.numpy()))
    assert parts['loss'].item() == pytest.approx(expected, rel=1e-12)


def test_zero_weights_keep_the_joint_logits_in_the_graph():
    """DistributedDataParallel refuses parameters without a gradient."""
    z1, z2, z12 = random_logits(8, 7)
    z12.requires_grad_()
    parts = AgMaxLoss(weight=0.0, divergence_weight=0.0)(torch.cat([z1, z2]), z12, torch.tensor(LABELS))
    parts['loss'].backward()
    assert parts['loss'].item() == parts['ce'].item()
    assert torch.equal(z12.grad, torch.zeros_like(z12))


def zeros(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize('views, kind, message', [
    ((zeros(4, 3), zeros(4, 3), zeros(4, 3)), 'js', "one of mi, mse, kl, ce, got 'js'"),
    ((zeros(4, 3), zeros(5, 3), zeros(4, 3)), 'mi', r'one shape .* got \[4, 3\] and \[5, 3\]'),
    ((zeros(4, 3), zeros(1, 3)), 'mse', r'one shape .* got \[4, 3\] and \[1, 3\]'),
    ((zeros(4), zeros(4)), 'mse', r'one shape \[B, K\], got \[4\] and \[4\]'),
    ((zeros(4, 3), zeros(4, 3)), 'mi', r'needs joint logits \[4, 3\] .*, got None'),
    ((zeros(4, 3), zeros(4, 3), zeros(8, 3)), 'mi', r'joint logits \[4, 3\] .* got \[8, 3\]'),
    ((zeros(1, 3), zeros(1, 3), zeros(1, 3)), 'mi', 'batch of 2 images or more'),
])
def test_invalid_logits_are_refused(views, kind, message):
    with pytest.raises(ValueError, match=message):
        agreement_terms(*views, kind=kind)


@pytest.mark.parametrize('kind', ['mse', 'kl', 'ce'])
def test_one_image_is_accepted_without_marginals(kind):
    z1, z2, _ = random_logits(1, 3)
    terms = agreement_terms(z1, z2, kind=kind)
    assert as_floats(terms) == pytest.approx(expected_terms(z1.numpy(), z2.numpy(), kind=kind), rel=1e-12)


@pytest.mark.parametrize('logits, target', [
    (zeros(5, 3), zeros(5).long()),
    (zeros(6, 3), zeros(3).long()),
    (zeros(6, 3), zeros(3, 3)),
])
def test_logits_and_targets_that_are_not_pairs_are_refused(logits, target):
    with pytest.raises(ValueError, match=r'logits \[2B, K\] and as many targets, got'):
        AgMaxLoss(kind='mse')(logits, None, target)


def test_soft_targets_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match='3 classes, got 1000: .*num_classes=3'):
        AgMaxLoss(kind='mse')(zeros(6, 3), None, zeros(6, 1000))


@pytest.mark.parametrize('criterion, got', [
    (torch.nn.CrossEntropyLoss(reduction='none'), r'a tensor \[6\]'),
    (lambda logits, target: {'loss': logits.sum()}, 'dict'),
])
def test_a_criterion_without_a_scalar_is_refused(criterion, got):
    with pytest.raises(ValueError, match=f"a scalar, got {got}: give .*reduction='mean'"):
        AgMaxLoss(criterion, kind='mse')(zeros(6, 3), None, zeros(6).long())


def test_a_criterion_that_is_a_class_is_refused():
    with pytest.raises(ValueError, match=r'got the class CrossEntropyLoss: give CrossEntropyLoss\(\)'):
        AgMaxLoss(torch.nn.CrossEntropyLoss)


def test_an_unknown_kind_is_refused_by_the_constructor():
    with pytest.raises(ValueError, match="one of mi, mse, kl, ce, got 'jsd'"):
        AgMaxLoss(kind='jsd')
