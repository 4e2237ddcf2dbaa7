"""The objective of a run, from its options."""
import json
import logging
import re
from contextlib import nullcontext

import pytest
import torch
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    JsdCrossEntropy,
    PolyCrossEntropy,
)
from timm.models import create_model

from agmax_timm.assembly import objective
from agmax_timm.assembly.known_classes import check_teacher
from agmax_timm.assembly.model import Precision
from agmax_timm.assembly.objective import build_criterion
from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args


def build(*flags, num_classes=3):
    options = parse_train_args(['DIR', '--model', 'test_resnet', '--num-classes', str(num_classes), '--agmax', *flags])
    model = create_model('test_resnet', num_classes=num_classes)
    return objective.build_task(options, model, torch.device('cpu'), Precision())


def test_settings_of_the_loss_come_from_the_options():
    task = build('-b', '8', '--agmax-marginal-images', '4', '--agmax-divergence-reduction', 'sum', '--agmax-weight',
                 '2', '--agmax-divergence-weight', '3')
    assert (task.loss.kind, task.loss.weight, task.loss.divergence_weight, task.loss.marginal_images,
            task.loss.divergence_reduction) == ('mi', 2., 3., 4, 'sum')
    published = build('-b', '8').loss
    assert (published.marginal_images, published.divergence_reduction) == (None, 'mean')


@pytest.mark.parametrize('flags, ranks, said', [
    ('-b 8', 1, 'over all images; .* 8 images on 1 .*, 3 classes'),
    ('-b 8', 4, 'over all images; .* 32 images on 4 .*, 3 classes'),
    ('-b 8 --agmax-marginal-images 4', 4, 'over groups of 4 images; .* 32 images on 4 .*, 3 classes'),
    ('--train-img-sizes 24 32 --train-batch-sizes 8 4', 2, 'over all images; .* 16 images or 8 images on 2'),
    ('--naflex-loader', 1, 'over all images; .* several sizes on 1 .*, 3 classes'),
])
def test_the_log_states_images_and_classes_of_the_marginals(monkeypatch, caplog, flags, ranks, said):
    monkeypatch.setattr(objective, 'world_size', lambda: ranks)
    monkeypatch.setattr('agmax_timm.loss.world_size', lambda: ranks)
    with caplog.at_level(logging.INFO):
        build(*flags.split())
    assert re.search(f'Marginals of AgMax: {said}', caplog.text)
    caplog.clear()
    build('--agmax-loss', 'kl')
    assert 'Marginals' not in caplog.text


@pytest.mark.parametrize('flags, said', [
    ([], 'Label smoothing: 0, the default with --agmax'),
    (['--smoothing', '0'], 'Label smoothing: 0'),
    (['--smoothing', '0.1'], 'Label smoothing: 0.1'),
])
def test_the_log_states_the_label_smoothing(caplog, flags, said):
    with caplog.at_level(logging.INFO):
        build('-b', '8', *flags)
    assert said in caplog.messages


@pytest.mark.parametrize('flags, ranks, said', [
    ('-b 8 --agmax-marginal-images 3', 1, '--agmax-marginal-images 3 must divide the 8 images of a rank'),
    ('-b 8 --agmax-marginal-images 3', 1, ': use 2 or 4'),
    ('-b 8 --agmax-marginal-images 16', 1, 'use 4 or 8'),
    ('-b 8 --agmax-marginal-images 24', 4, 'use 16 or 32'),
    ('--train-img-sizes 24 32 --train-batch-sizes 8 6 --agmax-marginal-images 4', 1, 'divide the 6 images of a rank'),
    ('--train-img-sizes 24 32 --train-batch-sizes 8 1', 1, 'in a batch, got --train-batch-sizes 1'),
    ('-b 1 --train-batch-sizes 8 4', 1, 'in a batch, got --batch-size 1'),
    ('-b 1', 1, '--agmax needs 2 images or more in a batch, got --batch-size 1'),
])
def test_batch_sizes_that_do_not_fit_are_refused(monkeypatch, flags, ranks, said):
    monkeypatch.setattr(objective, 'world_size', lambda: ranks)
    monkeypatch.setattr('agmax_timm.loss.world_size', lambda: ranks)
    with pytest.raises(OptionError) as error:
        build(*flags.split())
    assert said in str(error.value) and str(error.value).count('--agmax') == 1


def test_accumulation_warns_unless_marginals_have_a_fixed_size(caplog):
    build('-b', '8', '--grad-accum-steps', '2', '--agmax-marginal-images', '4')
    assert 'marginals of AgMax' not in caplog.text
    build('-b', '8', '--grad-accum-steps', '2')
    assert '--grad-accum-steps 2: the marginals of AgMax' in caplog.text


# Criteria

def criterion(*argv):
    args = parse_train_args(['DIR', '--num-classes', '3', *argv])
    return build_criterion(args)


def test_losses_equal_those_of_timm(tmp_path):
    stats = tmp_path / 'stats.json'
    stats.write_text(json.dumps(dict(pos_counts=[2, 4, 8], num_samples=16)))
    several = ['--task', 'multilabel', '--dataset', 'hfds/x']
    logits, dense = torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5, 3)).double()
    for argv, expected in (
            (['--bce-loss', '--bce-pos-weight', '2'], BinaryCrossEntropy(0., smooth_dense=True, pos_weight=2.)),
            (['--loss-pos-weight', 'neg_pos', '--class-stats', str(stats)],
             BinaryCrossEntropy(0., pos_weight=torch.tensor([7., 3., 1.]))),
            (['--loss', 'asl', '--asl-gamma-neg', '2', '--asl-clip', '0'],
             AsymmetricLossMultiLabel(gamma_neg=2., gamma_pos=1., clip=0., reduction='batchmean')),
            (['--loss', 'db', '--class-stats', str(stats), '--db-focal-gamma', '1'],
             DistributionBalancedLoss(torch.tensor([2., 4., 8.]), 16, focal_gamma=1.)),
    ):
        torch.testing.assert_close(criterion(*several, *argv)(logits, dense), expected(logits, dense))
    target = torch.randint(3, (6,))
    logits = torch.randn(6, 3)
    torch.testing.assert_close(
        criterion('--loss', 'poly', '--poly-epsilon', '-1')(logits, target),
        PolyCrossEntropy(epsilon=-1., smoothing=0.1)(logits, target))
    torch.testing.assert_close(
        criterion('--jsd-loss', '--aug-splits', '3')(logits, target),
        JsdCrossEntropy(num_splits=3, smoothing=0.1)(logits, target))


@pytest.mark.parametrize('argv, words', [
    ('--loss-class-weight 1,2', ['--loss-class-weight', '2 entries', '3 classes']),
    ('--loss-class-weight nowhere.json', ['nowhere.json']),
    ('--loss bce --loss-pos-weight neg_pos', ["--loss-pos-weight 'neg_pos'", '--class-stats auto']),
])
def test_invalid_options_of_losses_are_refused_in_one_line(argv, words):
    with pytest.raises(OptionError) as error_info:
        criterion(*argv.split())
    message = str(error_info.value)
    assert '\n' not in message and all(word in message for word in words), message


@pytest.mark.parametrize('kept, words', [([], '10 .* 5 images'), (['--agmax-teacher-topk', '4'], '4 .* 5 images')])
def test_remembered_predictions_that_need_too_much_memory_name_the_remedy(monkeypatch, kept, words):
    """A smaller batch, which is the remedy for other errors of this kind, would not help."""
    def fail(*args, **kwargs):
        raise RuntimeError('[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory')

    monkeypatch.setattr(objective, 'AgMaxMemoryTask', fail)
    options = parse_train_args(['DIR', '--num-classes', '10', '--agmax-teacher', 'memory', *kept])
    with pytest.raises(OptionError, match=f'no memory for {words} .*CPUAllocator.*a smaller --agmax-teacher-topk'):
        objective.build_task(
            options, create_model('test_resnet', num_classes=10), torch.device('cpu'), Precision(), range(5))


@pytest.mark.parametrize('kind', ['logit', 'feature'])
@pytest.mark.parametrize('flags, mean, std', [
    ('', 0.5, 0.5), ('--mean 0.25 --std 0.125', 0.25, 0.125), ('--mean 0.25 0.25 0.25', 0.25, 0.5)])
def test_a_teacher_of_timm_gets_images_with_its_own_normalisation(monkeypatch, kind, flags, mean, std):
    """The loader normalises by --mean and --std, or else by the 0.5 and 0.5 of the student."""
    def create(name, *args, **kwargs):
        model = create_model('test_resnet', num_classes=3)
        model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'std': (0.2, 0.3, 0.4)}
        return model

    monkeypatch.setattr(objective, 'create_named_model', create)
    options = parse_train_args(['DIR', '--model', 'test_resnet', '--num-classes', '3', '--kd-model-name', 'test_resnet',
                                '--kd-distill-type', kind, *flags.split()])
    task = objective.build_task(
        options, create_model('test_resnet', num_classes=3), torch.device('cpu'), Precision())
    inputs = []
    task.teacher.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    pixels = torch.rand(2, 3, 32, 32)
    task((pixels - mean) / std, torch.tensor([0, 1]))
    of_teacher = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(inputs, [(pixels - next(of_teacher)) / next(of_teacher)])


@pytest.mark.parametrize('channels', [1, 4])
def test_a_teacher_of_timm_with_another_normalisation_needs_three_channels(monkeypatch, channels, caplog):
    """timm has three values, which make three channels of one and do not fit four."""
    def create(name, *args, **kwargs):
        model = create_model('test_resnet', num_classes=3, in_chans=channels)
        model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.1, 0.2, 0.3)}
        return model

    monkeypatch.setattr(objective, 'create_named_model', create)
    config = dict(input_size=(channels, 32, 32))
    model = create_model('test_resnet', num_classes=3, in_chans=channels)
    for agmax, refused in (
            ([], pytest.raises(OptionError, match=f'--kd-model-name .* 3 channels, got {channels}')),
            (['--agmax'], nullcontext())):
        options = parse_train_args(['DIR', '--model', 'test_resnet', '--num-classes', '3', '--in-chans', str(channels),
                                    '-b', '4', '--kd-model-name', 'test_resnet', *agmax])
        task = objective.build_task(options, model, torch.device('cpu'), Precision())
        with refused:
            check_teacher(options, task, [], config)
    assert 'has weights of 1000 classes, so its head of 3 classes is untrained: train the teacher on' in caplog.text
    input, target = torch.randn(8, channels, 32, 32), torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])
    assert task(input, target)['kd_loss'].isfinite()
