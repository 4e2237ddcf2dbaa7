"""AgMax with each of timm's single-label losses: each equals the loss alone, on the logits of both views."""
import numpy as np
import pytest
import timm
import torch
from timm.loss import LOSS_TYPES, MULTI_LABEL_LOSS_TYPES, create_classification_loss

from agmax_timm import AgMaxLoss, AgMaxTask

ROWS, CLASSES = 12, 5
LABELS = np.tile(np.arange(ROWS // 2) % CLASSES, 2)  # of two views
HARD = np.eye(CLASSES)[LABELS]
SMOOTH = 0.9 * HARD + 0.1 / CLASSES
SOFT = 0.7 * HARD + 0.3 * HARD[::-1]  # as MixUp makes them
WEIGHTS = np.linspace(0.5, 2.0, CLASSES)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z, t):
    return -(t * np.log(softmax(z))).sum(axis=1).mean()


def binary_cross_entropy(z, t, weight=1.0, pos_weight=1.0):
    p = 1 / (1 + np.exp(-z))
    return -(weight * (pos_weight * t * np.log(p) + (1 - t) * np.log(1 - p))).mean()


def asymmetric(z, t, gamma_pos=1, gamma_neg=4):
    """Sum of -t (1 - p)^gamma_pos ln p at the label and -t p^gamma_neg ln p elsewhere, arXiv 2009.14119."""
    p = softmax(z)
    focus = np.where(HARD == 1, (1 - p) ** gamma_pos, p ** gamma_neg)
    return -(t * focus * np.log(p)).sum(axis=1).mean()


def poly(z, t, epsilon=2.0):
    """Cross-entropy + epsilon (1 - p_t), arXiv 2204.12511."""
    return cross_entropy(z, t) + epsilon * (1 - (t * softmax(z)).sum(axis=1)).mean()


# options of create_classification_loss, target, closed form, the distribution that the closed form takes
CASES = {
    'ce': ({'loss_type': 'ce'}, LABELS, cross_entropy, HARD),
    'ce-smooth': ({'loss_type': 'ce', 'smoothing': 0.1}, LABELS, cross_entropy, SMOOTH),
    'ce-soft': ({'loss_type': 'ce', 'soft_targets': True}, SOFT, cross_entropy, SOFT),
    'bce': ({'loss_type': 'bce'}, LABELS, binary_cross_entropy, HARD),
    'bce-smooth': ({'loss_type': 'bce', 'smoothing': 0.1}, LABELS, binary_cross_entropy, SMOOTH),
    'bce-soft': ({'loss_type': 'bce', 'soft_targets': True}, SOFT, binary_cross_entropy, SOFT),
    'bce-threshold': ({'loss_type': 'bce', 'soft_targets': True, 'bce_target_thresh': 0.2}, SOFT,
                      binary_cross_entropy, (SOFT > 0.2).astype(float)),
    'bce-sum': ({'loss_type': 'bce', 'bce_sum': True}, LABELS,
                lambda z, t: CLASSES * binary_cross_entropy(z, t), HARD),
    'bce-weights': ({'loss_type': 'bce', 'class_weight': WEIGHTS, 'pos_weight': 3.0}, LABELS,
                    lambda z, t: binary_cross_entropy(z, t, WEIGHTS, 3.0), HARD),
    'asl': ({'loss_type': 'asl'}, LABELS, asymmetric, HARD),
    'asl-smooth': ({'loss_type': 'asl', 'smoothing': 0.1, 'asl_gamma_pos': 0, 'asl_gamma_neg': 2}, LABELS,
                   lambda z, t: asymmetric(z, t, 0, 2), SMOOTH),
    'poly': ({'loss_type': 'poly'}, LABELS, poly, HARD),
    'poly-smooth': ({'loss_type': 'poly', 'smoothing': 0.1, 'poly_epsilon': -1.0}, LABELS,
                    lambda z, t: poly(z, t, -1.0), SMOOTH),
    'poly-soft': ({'loss_type': 'poly', 'soft_targets': True}, SOFT, poly, SOFT),
}


def as_tensor(target):
    target = torch.tensor(target)
    return target.float() if target.is_floating_point() else target


def logits_of_views():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, CLASSES, generator=generator).mul(2).requires_grad_() for rows in (ROWS, ROWS // 2)]


@pytest.mark.parametrize('options, target, formula, distribution', CASES.values(), ids=CASES)
def test_the_part_of_the_criterion_equals_the_criterion_alone(options, target, formula, distribution):
    criterion = create_classification_loss(**options)
    logits, joint_logits = logits_of_views()
    target = as_tensor(target)
    parts = AgMaxLoss(criterion, weight=0.5, divergence_weight=2.0)(logits, joint_logits, target)
    assert parts['ce'].item() == pytest.approx(formula(logits.detach().double().numpy(), distribution), rel=1e-5)
    alone = criterion(logits, target)
    assert torch.equal(parts['ce'], alone)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (parts['ce'], alone)]
    assert torch.equal(*gradients)
    agreeing = torch.autograd.grad(0.5 * parts['agreement'] + parts['divergence'], logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(parts['loss'], logits)[0], gradients[1] + agreeing)


@pytest.mark.parametrize('options, target, formula, distribution', CASES.values(), ids=CASES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_loss_of_float32(options, target, formula, distribution, dtype):
    """Large logits in half precision, under autocast."""
    criterion = AgMaxLoss(create_classification_loss(**options))
    logits, joint_logits = [logits.detach().mul(20).to(dtype) for logits in logits_of_views()]
    target = as_tensor(target)
    expected = criterion(logits.float(), joint_logits.float(), target)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        parts = criterion(logits, joint_logits, target)
    assert parts['ce'].dtype == torch.float32 and parts['ce'].isfinite()
    torch.testing.assert_close(parts, expected, rtol=0, atol=0)


@pytest.mark.parametrize('options, target, formula, distribution', CASES.values(), ids=CASES)
def test_the_task_trains_with_each_criterion(options, target, formula, distribution):
    torch.manual_seed(0)
    task = AgMaxTask(timm.create_model('test_resnet', num_classes=CLASSES), create_classification_loss(**options),
                     init_std=0.2, verbose=False)
    result = task(torch.randn(ROWS, 3, 32, 32), as_tensor(target))
    result['loss'].backward()
    expected = formula(result['output'].detach().double().numpy(), distribution)
    assert result['ce'].item() == pytest.approx(expected, rel=1e-5)
    assert all(p.grad.isfinite().all() for p in task.parameters())


def test_every_single_label_loss_is_tested():
    """Except JSD: its first split is an image without augmentation, and AgMax augments both views."""
    single_label = {name for name in LOSS_TYPES if name not in ('twoway', 'zlpr', 'db')}
    assert single_label - {options['loss_type'] for options, *_ in CASES.values()} == {'jsd'}
    for name in set(LOSS_TYPES) - single_label:
        assert name in MULTI_LABEL_LOSS_TYPES
        with pytest.raises(ValueError, match='requires multi-label targets'):
            create_classification_loss(name)


def test_asymmetric_loss_refuses_soft_targets():
    with pytest.raises(ValueError, match='does not support Mixup/CutMix'):
        create_classification_loss('asl', soft_targets=True)
