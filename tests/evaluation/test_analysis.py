"""Numbers beyond accuracy, against scikit-learn, closed forms and matrices made by hand."""
import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from agmax_timm.data.pictures import ToPicture
from agmax_timm.evaluation import outcomes as outcomes_module
from agmax_timm.evaluation.analysis import Pair, analyse, class_counts, confused_pairs, confusion, per_class
from agmax_timm.evaluation.calibration import CalibrationBins
from agmax_timm.evaluation.outcomes import Outcomes

TARGET = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTION = torch.tensor([0, 1, 1, 1, 2, 0])


@pytest.fixture
def guesses():
    """Predictions and classes of 400 images, of 12 classes. Class 10 is never predicted, class 11 does not occur."""
    generator = np.random.default_rng(5)
    target = generator.integers(0, 11, 400)
    guess = np.where(generator.random(400) < 0.6, target, generator.integers(0, 10, 400))
    return torch.from_numpy(np.where(guess == 10, 0, guess)), torch.from_numpy(target)


def calibration(confidence, correct, bins=15):
    totals = CalibrationBins(bins)
    totals.add(confidence, correct)
    return totals.compute()


def column(result, name):
    return [getattr(one, name) for one in result.bins]


def test_a_confusion_matrix_by_hand():
    expected = [[1, 2, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion(PREDICTION, TARGET, 4).tolist() == expected
    assert confused_pairs(PREDICTION, TARGET, 4) == [Pair(0, 1, 2), Pair(1, 2, 1), Pair(2, 0, 1)]


@pytest.mark.slow
def test_the_confusion_matrix_equals_that_of_scikit_learn(guesses):
    from sklearn import metrics  # only here: the import takes seconds
    prediction, target = guesses
    expected = metrics.confusion_matrix(target, prediction, labels=range(12))
    assert confusion(prediction, target, 12).tolist() == expected.tolist()
    pairs = confused_pairs(prediction, target, 12)
    assert all(expected[pair.target, pair.prediction] == pair.count for pair in pairs)
    assert [pair.count for pair in pairs] == sorted(expected[~np.eye(12, dtype=bool)], reverse=True)[:20]


@pytest.mark.slow
def test_precision_and_recall_of_classes_equal_those_of_scikit_learn(guesses):
    from sklearn import metrics  # only here: the import takes seconds
    prediction, target = guesses
    ours = per_class(class_counts(prediction, target, 12))
    expected = metrics.precision_recall_fscore_support(target, prediction, labels=range(12), zero_division=0)
    for values, of_sklearn in zip(ours, expected):
        np.testing.assert_allclose(values, of_sklearn, rtol=1e-12)
    assert ours.precision[10] == 0 and ours.support[11] == 0
    for how in ('macro', 'weighted', 'micro'):
        expected = metrics.precision_recall_fscore_support(target, prediction, average=how, zero_division=0)
        assert ours.average(how) == pytest.approx(expected[:3], rel=1e-12)


@pytest.mark.parametrize('confidence, right', [(0.5, 10), (0.93, 4), (1., 0), (0.35, 3)])
def test_the_error_of_a_constant_predictor_is_confidence_minus_accuracy(confidence, right):
    result = calibration(torch.full((10,), confidence), torch.arange(10) < right)
    assert result.error == pytest.approx(abs(confidence - right / 10), abs=1e-7)
    assert sorted(column(result, 'count')) == [0] * 14 + [10]


def test_a_calibrated_predictor_has_error_0():
    tenths = torch.arange(1, 11).repeat_interleave(10)
    correct = torch.arange(10).repeat(10) < tenths
    assert calibration(tenths.double() / 10, correct).error == pytest.approx(0, abs=1e-12)
    assert calibration(tenths.double() / 10, ~correct).error > 0.4


def test_bins_contain_their_upper_bound():
    result = calibration(torch.tensor([0., 0.25, 0.26, 0.5, 1.]), torch.tensor([0, 1, 0, 0, 1]), bins=4)
    assert column(result, 'count') == [2, 2, 0, 1]
    assert column(result, 'accuracy') == [0.5, 0, 0, 1]
    assert column(result, 'confidence') == pytest.approx([0.125, 0.38, 0, 1])


def test_the_calibration_error_is_the_weighted_mean_over_the_bins():
    generator = np.random.default_rng(3)
    confidence, correct = generator.random(500), generator.random(500) < 0.4
    expected = 0.
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    result = calibration(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert result.error == pytest.approx(expected, rel=1e-9)


def test_no_images_or_many_classes_can_be_analysed():
    nothing = torch.zeros(0, dtype=torch.long)
    result = analyse(nothing, nothing.double(), nothing, 3)
    assert result.calibration.error == 0 and result.confused == [] and result.confusion.sum() == 0
    classes = torch.tensor([9999, 5])
    result = analyse(classes, torch.ones(2), classes.flip(0), 10_000)
    assert result.confusion is None and set(result.confused) == {Pair(5, 9999, 1), Pair(9999, 5, 1)}


def test_the_most_confident_mistakes_are_kept_over_all_batches():
    generator = torch.Generator().manual_seed(1)
    logits, target = 2 * torch.randn(60, 4, generator=generator), torch.randint(4, (60,), generator=generator)
    pixels = torch.randint(256, (60, 3, 6, 5), generator=generator, dtype=torch.uint8)
    outcomes = Outcomes(ToPicture(dict(mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 6, 5))))
    for batch in torch.arange(60).split(11):
        outcomes.update((pixels[batch] / 255 - 0.5) / 0.25, logits[batch], target[batch])
    confidence, prediction = logits.softmax(1).max(1)
    expected = [i for i in confidence.argsort(descending=True).tolist() if prediction[i] != target[i]][:24]
    assert [mistake.index for mistake in outcomes.mistakes] == expected
    for mistake in outcomes.mistakes:
        assert (mistake.target, mistake.prediction) == (target[mistake.index], prediction[mistake.index])
        assert mistake.confidence == confidence[mistake.index]
        assert (pil_to_tensor(mistake.picture).int() - pixels[mistake.index].int()).abs().max() <= 1
    analysis = outcomes.analyse(4)
    assert analysis.confusion.tolist() == confusion(prediction, target, 4).tolist()
    assert analysis.calibration.error == pytest.approx(calibration(confidence, prediction == target).error, abs=1e-12)


def test_a_batch_that_fills_the_list_of_mistakes_may_replace_earlier_ones(monkeypatch):
    monkeypatch.setattr(outcomes_module, 'MOST_MISTAKES', 4)
    outcomes = Outcomes(lambda input, index: None)
    for confidences in ([.60, .61, .62], [.99, .98, .97], [.63, .5]):
        logits = torch.tensor([confidences, [1 - value for value in confidences]]).T.log()
        outcomes.update(logits, logits, torch.ones(len(logits), dtype=torch.long))
    assert [round(mistake.confidence, 2) for mistake in outcomes.mistakes] == [.99, .98, .97, .63]


def test_outputs_that_are_not_finite_have_confidence_0():
    outcomes = Outcomes(ToPicture(dict(mean=(0.5,), std=(0.5,), input_size=(1, 4, 4))))
    outcomes.update(torch.zeros(2, 1, 4, 4), torch.tensor([[float('nan'), 1.], [0., 9.]]), torch.tensor([1, 1]))
    assert column(outcomes.analyse(2).calibration, 'count') == [1] + [0] * 13 + [1]
