"""Weights of the classes in the cross-entropy, against torch's own; counts of the training data, against a file."""
import json
import shutil

import numpy as np
import pytest
import torch
from timm.models import create_model
from torch.nn.functional import cross_entropy

from agmax_timm.assembly import objective
from agmax_timm.assembly.datasets import build_datasets
from agmax_timm.assembly.model import Precision
from agmax_timm.assembly.objective import build_criterion, build_task
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args
from tests.helpers.run_files import summary

COUNTS = [4, 2, 1]
AUTO = ['--class-stats', 'auto', '--loss-class-weight', 'inv_freq']
WEIGHTS = torch.tensor([1 / 4, 1 / 2, 1.]) * 7 / 3  # mean 1 over the 7 images


@pytest.fixture(scope='module')
def uneven(photos, tmp_path_factory):
    """Folder with 4 training images of ant, 2 of bee and 1 of cat."""
    root = shutil.copytree(photos, tmp_path_factory.mktemp('uneven') / 'photos')
    for name, count in zip(('ant', 'bee', 'cat'), COUNTS):
        for path in sorted((root / 'train' / name).iterdir())[count:]:
            path.unlink()
    return root


@pytest.fixture(scope='module')
def train_set(uneven):
    return create_dataset('', str(uneven), 'train')


def options_of(*argv):
    return parse_train_args(['DIR', '--num-classes', '3', *argv])


def batch(labels=(0, 0, 0, 0, 1, 1, 2)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(labels), 3, generator=generator, dtype=torch.float64), torch.tensor(labels)


@pytest.mark.parametrize('smoothing', ['0', '0.1'])
def test_cross_entropy_is_the_weighted_sum_of_torch_over_the_number_of_images(train_set, smoothing):
    criterion = build_criterion(options_of(*AUTO, '--smoothing', smoothing), train_set)
    for labels in ((0, 1, 2, 2, 1), (0, 0)):
        logits, target = batch(labels)
        expected = cross_entropy(
            logits, target, WEIGHTS.double(), label_smoothing=float(smoothing), reduction='sum') / len(labels)
        torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-6, atol=0)


def test_cross_entropy_is_the_weighted_mean_of_torch_if_the_batch_is_like_the_data(train_set):
    logits, target = batch()
    criterion = build_criterion(options_of(*AUTO, '--smoothing', '0'), train_set)
    expected = torch.nn.CrossEntropyLoss(weight=torch.tensor([1 / 4, 1 / 2, 1.], dtype=torch.float64))
    torch.testing.assert_close(criterion(logits, target), expected(logits, target), rtol=1e-6, atol=0)


def test_soft_targets_are_weighted_by_class_and_not_smoothed_again(train_set):
    logits, target = batch()
    soft = torch.nn.functional.one_hot(target, 3).double() * 0.7 + 0.1
    criterion = build_criterion(options_of(*AUTO, '--mixup', '0.2'), train_set)
    expected = -(WEIGHTS.double() * soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(criterion(logits, soft), expected, rtol=1e-6, atol=0)


def test_the_loss_of_a_batch_is_the_mean_of_its_shares(train_set):
    """The shares are those of several ranks or of gradient accumulation."""
    logits, target = batch((0, 0, 0, 1, 2, 1))
    criterion = build_criterion(options_of(*AUTO), train_set)
    parts = [criterion(logits[half], target[half]) for half in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(parts) / 2, criterion(logits, target))


def test_half_precision_is_computed_in_float32(train_set):
    logits, target = batch()
    criterion = build_criterion(options_of(*AUTO), train_set)
    rounded = logits.bfloat16()
    assert torch.equal(criterion(rounded, target), criterion(rounded.float(), target))


@pytest.mark.parametrize('flags', [
    ('--loss-class-weight', 'inv_freq'), ('--loss-class-weight', 'inv_freq', '--loss-weight-power', '0.5'),
    ('--loss-class-weight', 'effective_num', '--loss-weight-beta', '0.9'),
    ('--loss-class-weight', 'inv_freq', '--loss', 'bce'), ('--loss-pos-weight', 'neg_pos', '--loss', 'bce')])
def test_counts_of_the_data_equal_counts_from_a_file(train_set, tmp_path, flags):
    (tmp_path / 'stats.json').write_text(json.dumps(dict(pos_counts=COUNTS, num_samples=7)))
    counted = build_criterion(options_of('--class-stats', 'auto', *flags), train_set)
    read = build_criterion(options_of('--class-stats', str(tmp_path / 'stats.json'), *flags))
    assert [*counted.state_dict()] and all(
        torch.equal(value, read.state_dict()[name]) for name, value in counted.state_dict().items())


def test_images_that_are_held_out_are_not_counted(uneven):
    options = parse_train_args([str(uneven / 'train'), '--num-classes', '3', '--val-split', '0.5', *AUTO])
    dataset, held_out = build_datasets(options, dict(input_size=(3, 32, 32)))
    assert (len(dataset), len(held_out)) == (4, 3)
    assert build_criterion(options, dataset).weight.tolist() == pytest.approx([2 / 3, 4 / 3, 4 / 3])  # of 2, 1, 1


def test_a_class_without_images_has_a_finite_weight(train_set):
    criterion = build_criterion(parse_train_args(['DIR', '--num-classes', '4', *AUTO]), train_set)
    assert criterion.weight.isfinite().all() and criterion.weight[3] == criterion.weight[2]


def test_the_largest_weight_is_that_of_the_option(train_set):
    free = build_criterion(options_of(*AUTO), train_set).weight
    limit = float(free.min() + free.max()) / 2
    weight = build_criterion(options_of(*AUTO, '--loss-weight-max', str(limit)), train_set).weight
    torch.testing.assert_close(weight, free.clamp(max=limit))
    assert float(free.min()) < limit < float(free.max())


def test_the_mean_weight_is_1_by_the_counts_of_a_file_with_another_number_of_samples(tmp_path):
    (tmp_path / 'stats.json').write_text(json.dumps({'pos_counts': [900, 90, 10], 'num_samples': 50000}))
    weight = build_criterion(options_of('--loss-class-weight', 'inv_freq', '--class-stats', str(tmp_path / 'stats.json')
                                        )).weight
    torch.testing.assert_close(weight, torch.tensor([1000 / 3 / 900, 1000 / 3 / 90, 1000 / 3 / 10]))


@pytest.mark.parametrize('stats', [(), ('--class-stats', 'auto')])
@pytest.mark.parametrize('value, weights', [('1,2,5', [1, 2, 5]), ('2', [2, 2, 2])])
def test_weights_given_by_the_user_are_used_unchanged(train_set, value, weights, stats):
    """A single number is the weight of every class, as in timm. Counts have no effect."""
    logits, target = batch()
    criterion = build_criterion(options_of('--loss-class-weight', value, *stats, '--smoothing', '0'), train_set)
    expected = cross_entropy(logits, target, torch.tensor(weights).double(), reduction='sum') / len(target)
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('argv, words', [
    (['--loss-class-weight', 'inv_freq'], ["--loss-class-weight 'inv_freq'", '--class-stats auto']),
    (['--num-classes', '2', *AUTO], ['--class-stats', '3 entries', '2 classes']),
    (['--loss-class-weight', 'freq'], ["--loss-class-weight 'freq': ", 'give inv_freq or effective_num, a number']),
    (['--loss-class-weight', '1,-2,3'], ["--loss-class-weight '1,-2,3': ", 'give inv_freq or']),
    (['--loss', 'bce', '--loss-pos-weight', 'inv_freq', *AUTO[:2]],
     ["--loss-pos-weight 'inv_freq': ", 'give neg_pos, ']),
    (['--loss-class-weight', '0,0,0'], ["--loss-class-weight '0,0,0' leaves nothing of the loss", 'above 0']),
])
def test_invalid_weights_are_refused_in_one_line(train_set, argv, words):
    with pytest.raises(OptionError) as error:
        build_criterion(options_of(*argv), train_set)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('agmax', [[], ['--agmax']], ids=['plain', 'agmax'])
def test_tasks_use_the_class_weights(train_set, agmax):
    torch.manual_seed(0)
    device = torch.device('cpu')
    task = build_task(options_of(*AUTO, '--smoothing', '0', *agmax), create_model('test_resnet', num_classes=3), device,
                      Precision(), train_set)
    target = torch.tensor([0, 1, 2, 2]).repeat(2 if agmax else 1)
    result = task(torch.randn(len(target), 3, 32, 32), target)
    expected = cross_entropy(result['output'], target, WEIGHTS, reduction='sum') / len(target)
    torch.testing.assert_close(result['ce' if agmax else 'loss'], expected)


@pytest.mark.slow
def test_a_run_combines_class_weights_and_balanced_sampling(uneven, tmp_path, monkeypatch):
    """The counts are those of the images, not of what the sampler draws."""
    built = []
    monkeypatch.setattr(objective, 'build_criterion', lambda *args: built.append(build_criterion(*args)) or built[-1])
    train_cli.main([
        str(uneven), '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--lr',
        '0.05', '--warmup-epochs', '0', '--epochs', '2', '--agmax', '--balanced-sampling', *AUTO, '--output',
        str(tmp_path), '--experiment', 'run'])
    criterion, = built
    torch.testing.assert_close(criterion.weight, WEIGHTS)
    assert len(summary(tmp_path / 'run')) == 2
    assert np.isfinite(float(summary(tmp_path / 'run')[-1]['train_ce']))
