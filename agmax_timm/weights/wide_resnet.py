"""WideResNets for images of 32 pixels, as in the CIFAR and SVHN runs of AgMax. https://arxiv.org/abs/1605.07146"""
from collections import OrderedDict
from functools import partial
from typing import Any

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import ResNetV2, build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class WideResNet(ResNetV2):
    """WideResNet: timm's pre-activation ResNet with a stem of 3 x 3 and stride 1, and torch's own initial weights.

    The feature maps of the stem and of the three stages have strides 1, 1, 2 and 4. Convolutions have biases.

    Args:
        depth: Number of layers with weights, 6 * n + 4.
        width: Factor of the numbers of channels 16, 32 and 64.
        in_chans: Number of channels of the images.
        **kwargs: Further arguments of timm's ResNetV2.

    Raises:
        ValueError: No network has this depth.
    """

    def __init__(self, depth: int, width: int, in_chans: int = 3, **kwargs: Any):
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f'depth {depth} is not 6 * n + 4 with n of 1 or more: use 10, 16, 22, 28, ...')
        conv = partial(create_conv2d, bias=True)
        channels = tuple(width * base for base in (16, 32, 64))
        super().__init__(
            [(depth - 4) // 6] * 3, channels, in_chans=in_chans, stem_chs=16, basic=True, bottle_ratio=1.,
            conv_layer=conv, norm_layer=BatchNormAct2d, **kwargs)
        self.stem = nn.Sequential(OrderedDict(conv=conv(in_chans, 16, 3)))
        for info, stride in zip(self.feature_info, (1, 1, 2, 4)):
            info['reduction'] = stride

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Keep the initial weights of torch's layers."""


default_cfgs = generate_default_cfgs(dict.fromkeys(('wide_resnet28_2', 'wide_resnet28_10', 'wide_resnet40_2'), dict(
    num_classes=10,
    input_size=(3, 32, 32),
    pool_size=(8, 8),
    crop_pct=1.,
    interpolation='bilinear',
    mean=CIFAR_MEAN,
    std=CIFAR_STD,
    first_conv='stem.conv',
    classifier='head.fc',
)))


def _create(name: str, pretrained: bool, depth: int, width: int, kwargs: dict[str, Any]) -> WideResNet:
    feature_cfg = dict(flatten_sequential=True, out_indices=(0, 1, 2, 3))
    return build_model_with_cfg(
        WideResNet, name, pretrained, feature_cfg=feature_cfg, **{'depth': depth, 'width': width, **kwargs})


@register_model
def wide_resnet28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WideResNet-28-2, of the published SVHN runs: 1.5 million parameters."""
    return _create('wide_resnet28_2', pretrained, 28, 2, kwargs)


@register_model
def wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WideResNet-28-10, of the published CIFAR runs: 36.5 million parameters."""
    return _create('wide_resnet28_10', pretrained, 28, 10, kwargs)


@register_model
def wide_resnet40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WideResNet-40-2, of the published CIFAR runs: 2.2 million parameters."""
    return _create('wide_resnet40_2', pretrained, 40, 2, kwargs)
