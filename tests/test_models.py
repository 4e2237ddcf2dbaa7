"""Every family of timm's classifiers trains without changes."""
import math

import pytest
import timm
import torch
from torch import nn

from agmax_timm import AgMaxTask

torch.set_num_threads(1)  # small tensors: more threads only wait for each other

CLASSES = 10
SIZE = 32
LARGE = 64  # at 32, attention in windows has one token in some stage, and no gradient

MODELS = {
    'resnet18': {},
    'resnet50': {'layers': (1, 1, 1, 1)},
    'efficientnet_b0': {},
    'regnety_002': {},
    'convnext_atto': {'depths': (1, 1, 2, 1)},
    'vit_tiny_patch16_224': {'img_size': SIZE, 'depth': 2},
    'deit3_small_patch16_224': {'img_size': SIZE, 'depth': 2},
    'swin_tiny_patch4_window7_224': {'img_size': LARGE, 'window_size': 2, 'depths': (1, 1, 1, 1), 'embed_dim': 48},
    'mobilenetv4_conv_small': {},
    'coatnet_pico_rw_224': {'img_size': LARGE, 'depths': (1, 1, 1, 1)},
    'maxvit_rmlp_pico_rw_256': {'img_size': LARGE, 'depths': (1, 1, 1, 1)},
    'test_byobnet': {},
    'test_coatnet': {'img_size': LARGE},
    'test_convnext': {},
    'test_efficientnet': {},
    'test_efficientnet_ln': {},
    'test_mambaout': {},
    'test_maxvit': {'img_size': LARGE},
    'test_nfnet': {},
    'test_resnet': {},
    'test_vit': {'img_size': SIZE},
    'test_vit3': {'img_size': SIZE},
}


def random_images(rows, name):
    size = MODELS[name].get('img_size', SIZE)
    return torch.randn(rows, 3, size, size, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_model_of_each_family_trains(name):
    torch.manual_seed(0)
    # float64: behind a layer scale of 1e-5, three updates are below float32's resolution
    model = timm.create_model(name, num_classes=CLASSES, **MODELS[name]).double()
    task = AgMaxTask(model, verbose=False)
    parameters = dict(task.get_trainable_module().named_parameters())
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01, momentum=0.9)
    target = torch.arange(2).repeat(2)
    for _ in range(3):
        result = task(random_images(4, name), target)
        optimizer.zero_grad()
        result['loss'].backward()
        assert [key for key, parameter in parameters.items()
                if parameter.grad is None or not parameter.grad.isfinite().all()] == []
        optimizer.step()
        assert result['output'].shape == (4, CLASSES)
        torch.testing.assert_close(result['loss'], result['ce'] + result['agreement'] + result['divergence'])
        torch.testing.assert_close(result['ce'], nn.functional.cross_entropy(result['output'], target))
        assert -math.log(CLASSES) - 1e-9 <= result['agreement'] <= 0 <= result['divergence']
    assert [key for key in before if torch.equal(parameters[key], before[key])] == []
    with torch.no_grad():
        logits = task.get_eval_model().eval()(random_images(3, name))
    assert logits.shape == (3, CLASSES)
    assert logits.isfinite().all()
