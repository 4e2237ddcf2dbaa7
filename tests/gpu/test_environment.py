"""Device and timm's settings for it."""

import torch

from agmax_timm.assembly import model


def test_a_run_takes_the_device_with_timms_settings(device):
    assert model.init_device(device.type).type == device.type
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.benchmark == (device.type == 'cuda')
