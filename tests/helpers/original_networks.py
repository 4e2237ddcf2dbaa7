"""Networks and files in the form of the original, made independently of the code that reads them."""
import hashlib

import timm
import torch
from torch import nn

# Tensors in a checkpoint, and SHA-256 of the sorted lines 'name shape': read off the original's own classes, at 1,000
# classes, with the timm it asks for (0.4.12). The Q-network's units are 2048 for ResNet-50, 4096 elsewhere.
NAMES = {
    ('resnet50', False): (320, '516d7aa0a06648a5d8b59f24e508a5b214851ef5bbc8d333094d7a7852b18871'),
    ('resnet50', True): (324, 'b90f109e8828d4de2a1e315a83bec184c76b38af061faefb472f0ce93c8321e2'),
    ('resnet101', False): (626, '685649941f3d892dcd59d034d3a3b4fef568bb40533858b576e04526be9905f3'),
    ('resnet101', True): (630, 'e0950aa565aeb097f71ff638dad28ccba8d0faf57c754d6fe3e75cdb8cb36bae'),
    ('regnetx_002', False): (268, '4733bd01ef9f5c3dca724d8c71ffad46e6dcc062a960f3dfd596ff8b6dea21e1'),
    ('regnetx_002', True): (272, 'eaf67f415360feb736ac0cce21948c678af5fe8dbdb56cd6178900268a40d64c'),
    ('regnety_004', False): (386, 'ba44c16c064bc46b44a7fb23d52e24aa524e74e2265560da9d668fbc9c502b6b'),
    ('regnety_004', True): (390, 'e6b00052d2fe89842a440d12d010bad604cf454e9e04e3966044f23eeec57ad9'),
    ('efficientnet_b0', False): (362, '1f63a18d25d518cf0ffbae8413d497c5b6bbb7516addba6049ea5d30dbbbc833'),
    ('efficientnet_b0', True): (366, 'fbff38c4abc67d18c724bb3ff1fa6cfdb110d899426d50ad2f15be47f309ce11'),
    ('efficientnet_b1', False): (510, '6a41469062bf4b9a2e5d24a6b97d79b6aecc3cc36322255e4c610ab2809034e2'),
    ('efficientnet_b1', True): (514, '909fb52670e11becaea6a98f2043e5d4dd90191480a1cf733250b77f548f27a0'),
}


class WholeNetwork(nn.Module):
    """Features of a timm network with its unused head, as the original's RegNets and EfficientNets."""

    def __init__(self, name, **kwargs):
        super().__init__()
        self.features = timm.create_model(name, **kwargs)
        self.num_features = self.features.num_features

    def forward(self, x):
        return self.features.forward_features(x)


class Backbone(nn.Module):
    def __init__(self, name, num_classes, **kwargs):
        super().__init__()
        if 'resnet' in name:  # features that have timm's names, and no head
            self.feature_extractor = timm.create_model(name, num_classes=0, global_pool='', **kwargs)
        else:
            self.feature_extractor = WholeNetwork(name, **kwargs)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(self.feature_extractor.num_features, num_classes)

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.feature_extractor(x)), 1))


class QNetwork(nn.Module):
    def __init__(self, num_classes, units):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2 * num_classes, units), nn.ReLU(True), nn.Linear(units, num_classes))


class AgMaxNetwork(nn.Module):
    def __init__(self, backbone, num_classes, units):
        super().__init__()
        self.backbone = backbone
        self.qnet = QNetwork(num_classes, units)

    def forward(self, x):
        return self.backbone(x)


def original_network(name, agmax=True, num_classes=3, units=8, seed=0, **kwargs):
    """A network in the original's form on timm's `name`, in eval mode. All weights and statistics are random."""
    network = Backbone(name, num_classes, **kwargs)
    if agmax:
        network = AgMaxNetwork(network, num_classes, units)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in network.state_dict().items():
        if key.endswith('running_var'):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def original_checkpoint(network, data_parallel=True):
    """Checkpoint of the original, after one update by the weight decay alone."""
    network = nn.DataParallel(network) if data_parallel else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 60, 80], gamma=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler.step()
    return {
        'epoch': 88,
        'best_top1': 81.19,
        'best_top5': 95.5,
        'best_epoch': 88,
        'best_model': 'imagenet-agmax-mi-ResNet101-cutmix-auto_augment-81.19-mlp-4096.pth',
        'model_state_dict': network.state_dict(),
        'optimizer_state_dict': optimizer.state_dict(),
        'scheduler_state_dict': scheduler.state_dict(),
    }


def names_and_digest(state_dict):
    lines = sorted(f'{name} {tuple(tensor.shape)}' for name, tensor in state_dict.items())
    return len(lines), hashlib.sha256('\n'.join(lines).encode()).hexdigest()
