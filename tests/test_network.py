"""The Q-network."""
import math

import pytest
import torch

from agmax_timm import QNet


@pytest.mark.parametrize('num_classes, hidden', [
    (2, 128), (10, 128), (99, 128), (100, 512), (999, 512), (1000, 4096), (9999, 4096), (10_000, 8192), (21_841, 8192),
])
def test_the_width_of_the_qnet_depends_on_the_number_of_classes(num_classes, hidden):
    power = math.floor(math.log10(num_classes) + 1e-9)
    assert hidden == 128 * (2 ** power if power > 1 else 1) * (4 if num_classes >= 1000 else 1)
    qnet = QNet(num_classes, device='meta')
    shapes = {name: tuple(parameter.shape) for name, parameter in qnet.named_parameters()}
    assert shapes == {
        '0.weight': (hidden, 2 * num_classes), '0.bias': (hidden,),
        '2.weight': (num_classes, hidden), '2.bias': (num_classes,),
    }


@pytest.mark.parametrize('num_classes, hidden', [(1, None), (0, 8), (10, 0), (10, -1)])
def test_an_invalid_size_of_the_qnet_is_refused(num_classes, hidden):
    with pytest.raises(ValueError, match=f'got num_classes {num_classes} and hidden'):
        QNet(num_classes, hidden)


def test_the_qnet_computes_in_float32_under_autocast():
    qnet = QNet(10)
    logits = torch.randn(4, 20).bfloat16()
    expected = qnet(logits.float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        joint_logits = qnet(logits)
    assert joint_logits.dtype == torch.float32
    assert torch.equal(joint_logits, expected)
