"""WideResNets: against a network written from the paper, with the tensor names of the original's checkpoints."""
import json

import pytest
import timm
import torch
from torch import nn

from agmax_timm import convert, export, predict
from agmax_timm.assembly.model import create_named_model
from agmax_timm.base.errors import OptionError
from agmax_timm.weights.original import original_to_timm
from agmax_timm.weights.released import package_of
from agmax_timm.weights.staging import stage
from tests.helpers.original_networks import AgMaxNetwork, original_checkpoint
from tests.helpers.plain_timm import ALLOW_AGMAX, run_in_plain_timm

torch.set_num_threads(1)

SMALL = dict(depth=10, width=1)
SMALL_RUN = ('--model', 'wide_resnet40_2', '--model-kwargs', 'depth=10', 'width=1', '--agmax', '--epochs', '1',
             '--train-crop-mode', 'pad')


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride) if inside != outside or stride != 1 else None

    def forward(self, x):
        """x + F(x), pre-activated; a projection of the activation where the shape changes (arXiv 1605.07146)."""
        active = self.bn1(x).relu()
        x = x if self.shortcut is None else self.shortcut(active)
        return x + self.conv2(self.bn2(self.conv1(active)).relu())


class Features(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        number, channels = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        for stage_number in (1, 2, 3):
            before, after = channels[stage_number - 1:stage_number + 1]
            setattr(self, f'layer{stage_number}', nn.Sequential(*(
                Block(after if i else before, after, 2 if stage_number > 1 and not i else 1) for i in range(number))))
        self.bn = nn.BatchNorm2d(channels[-1])

    def forward(self, x):
        return self.bn(self.layer3(self.layer2(self.layer1(self.conv(x))))).relu()


class Backbone(nn.Module):
    def __init__(self, depth, width, num_classes=10):
        super().__init__()
        self.feature_extractor = Features(depth, width)
        self.classifier = nn.Linear(64 * width, num_classes)

    def forward(self, x):
        return self.classifier(self.feature_extractor(x).mean((2, 3)))


def network(depth, width, agmax=True):
    """A network with the names of the original, and random weights and statistics."""
    torch.manual_seed(0)
    network = Backbone(depth, width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return AgMaxNetwork(network, 10, 8) if agmax else network


@pytest.mark.parametrize('name, parameters', [
    ('wide_resnet40_2', 2_246_474), ('wide_resnet28_10', 36_489_290), ('wide_resnet28_2', 1_469_642)])
def test_the_published_networks_have_their_parameters_and_settings(name, parameters):
    depth, width = map(int, name.removeprefix('wide_resnet').split('_'))
    with torch.device('meta'):
        model, oracle = timm.create_model(name), Backbone(depth, width)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in oracle.parameters()) == parameters
    assert (model.num_classes, model.default_cfg['input_size'], model.default_cfg['crop_pct']) == (10, (3, 32, 32), 1)
    assert package_of(name) == 'agmax_timm' and package_of('resnet50') == 'timm'


@pytest.mark.parametrize('data_parallel', [True, False], ids=['module.', ''])
@pytest.mark.parametrize('agmax', [True, False], ids=['agmax', 'standard'])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_the_logits_equal_those_of_the_paper(training, agmax, data_parallel):
    oracle = network(16, 2, agmax).train(training)
    model = timm.create_model('wide_resnet40_2', depth=16, width=2)
    model.load_state_dict(original_to_timm(original_checkpoint(oracle, data_parallel)))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits, expected = model.train(training)(images), oracle(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('depth', [4, 12, 27, 29])
def test_a_depth_without_a_network_is_refused(depth):
    with pytest.raises(OptionError, match=f"--model 'wide_resnet28_2': depth {depth} is not 6 \\* n \\+ 4"):
        create_named_model('wide_resnet28_2', depth=depth)


def test_the_initial_weights_are_those_of_torch():
    """Uniform within 1 / sqrt(fan-in), for weights and biases of convolutions and the classifier."""
    torch.manual_seed(0)
    layers = [layer for layer in timm.create_model('wide_resnet28_10').modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 29
    for layer in layers:
        bound = (layer.weight[0].numel()) ** -0.5
        assert bound * 0.95 < layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.1)


def test_feature_maps_have_the_strides_of_feature_info():
    model = timm.create_model('wide_resnet28_2', features_only=True, in_chans=1)
    assert model.feature_info.reduction() == [1, 1, 2, 4]
    assert [tuple(maps.shape) for maps in model(torch.zeros(1, 1, 32, 32))] == [
        (1, 16, 32, 32), (1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]


@pytest.mark.slow
def test_a_checkpoint_of_the_original_is_converted_and_evaluated_as_published(tmp_path, capsys):
    oracle = network(40, 2).eval()
    torch.save(original_checkpoint(oracle), tmp_path / 'cifar10.pth')
    folder = tmp_path / 'folder'
    convert.main([str(tmp_path / 'cifar10.pth'), str(folder), '--model', 'wide_resnet40_2'])
    assert f"import agmax_timm; timm.create_model('local-dir:{folder}', pretrained=True)" in capsys.readouterr().out
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=0, atol=1e-5)
    config = timm.data.resolve_model_data_config(model)
    assert (config['input_size'], config['crop_pct'], config['mean'][0], config['std'][0]) == (
        (3, 32, 32), 1, 0.4914, 0.2023)


def test_a_run_is_evaluated_predicted_and_exported(train_once, results_of, photos, tmp_path, capsys):
    folder = train_once(*SMALL_RUN)
    results = results_of(photos, '--checkpoint', folder / 'last.pth.tar')
    assert (results['img_size'], results['param_count']) == (32, 0.08)
    predict.main([str(folder), str(photos / 'val'), '--format', 'json', '-j', '0'])
    assert len(json.loads(capsys.readouterr().out)) == 12
    export.main([str(folder), str(tmp_path / 'exported')])
    said = capsys.readouterr().out.splitlines()[-1].partition('logits: ')[2]
    again = results_of(photos, '--model', f'local-dir:{tmp_path / "exported"}', '--pretrained')
    assert again['loss'] == results['loss']
    # What export prints is true of a process that has not imported this package.
    plain = said.removeprefix('import agmax_timm; ')
    assert plain != said
    run_in_plain_timm(f'{ALLOW_AGMAX}import timm; {said}', cwd=tmp_path)
    with pytest.raises(AssertionError, match='Unknown model .wide_resnet40_2'):
        run_in_plain_timm(f'import timm; {plain}', cwd=tmp_path)


def test_the_card_states_that_timm_needs_this_package(make_saved, tmp_path):
    stage(make_saved('wide_resnet40_2', model_args=SMALL), tmp_path / 'wide')
    stage(make_saved(), tmp_path / 'other')
    card = (tmp_path / 'wide' / 'README.md').read_text()
    assert 'wide_resnet40_2, which agmax_timm adds to [timm]' in card
    assert 'timm loads these files only after `import agmax_timm`.' in card and 'without any other package' not in card
    blocks = [block.split('```')[0] for block in card.split('```python\n')[1:3]]  # timm, transformers
    assert all(block.startswith('import agmax_timm  # registers wide_resnet40_2 with timm\n') for block in blocks)
    other = (tmp_path / 'other' / 'README.md').read_text()
    assert 'timm loads them without any other package.' in other and 'import agmax_timm' not in other
