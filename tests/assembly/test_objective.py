"""The objective of a run, from its options."""
import logging

import pytest
import torch
from timm.models import create_model

from agmax_timm.assembly import objective
from agmax_timm.assembly.model import Precision
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
    ('-b 8', 1, 'over all images; a batch has 8 images on 1 rank(s), 3 classes'),
    ('-b 8', 4, 'over all images; a batch has 32 images on 4 rank(s), 3 classes'),
    ('-b 8 --agmax-marginal-images 4', 4, 'over groups of 4 images; a batch has 32 images on 4 rank(s), 3 classes'),
    ('--train-img-sizes 24 32 --train-batch-sizes 8 4', 2, 'over all images; a batch has 16 images or 8 images on 2'),
    ('--naflex-loader', 1, 'over all images; a batch has several sizes on 1 rank(s), 3 classes'),
])
def test_the_log_states_images_and_classes_of_the_marginals(monkeypatch, caplog, flags, ranks, said):
    monkeypatch.setattr(objective, 'world_size', lambda: ranks)
    monkeypatch.setattr('agmax_timm.loss.world_size', lambda: ranks)
    with caplog.at_level(logging.INFO):
        build(*flags.split())
    assert f'Marginals of AgMax: {said}' in caplog.text
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
