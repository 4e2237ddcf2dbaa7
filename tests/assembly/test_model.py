"""The model of a run, from its options."""
import math
from dataclasses import replace

import pytest
import torch

from agmax_timm.assembly import model as build
from agmax_timm.assembly import objective
from agmax_timm.assembly.freezing import keep_statistics
from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args

CPU = torch.device('cpu')


def parameters(*flags):
    torch.manual_seed(0)
    model, _ = build.build_model(parse_train_args(
        ['DIR', '--model', 'test_resnet', '--num-classes', '3', *flags]), CPU, build.Precision())
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('flag', ['--init-std', '--agmax-init-std'])
def test_init_std_without_agmax_draws_normal_weights(flag):
    """Linear and Conv weights are normal with the given deviation; norms and biases stay as the model has them."""
    std, own, drawn = 0.2, parameters(), parameters(flag, '0.2')
    weights = {name for name, parameter in own.items() if parameter.ndim > 1}
    assert 'fc.weight' in weights and 'conv1.0.weight' in weights and len(weights) > 10
    for name, parameter in drawn.items():
        if name in weights:
            error = std / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(std, abs=5 * error)
            assert parameter.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(parameter.numel()))
        else:
            assert torch.equal(parameter, own[name])


def test_the_head_is_scaled_after_its_weights_are_drawn():
    drawn, scaled = (parameters('--init-std', '0.2', *more) for more in ([], ['--head-init-scale', '0.1']))
    torch.testing.assert_close(scaled['fc.weight'], 0.1 * drawn['fc.weight'])


def test_settings_of_the_model_come_from_the_options(monkeypatch):
    made, model = [], build.create_named_model('test_resnet', num_classes=3, in_chans=1)
    monkeypatch.setattr(build, 'create_named_model', lambda name, **kwargs: made.append(kwargs) or model)
    parameters('--drop', '0.1', '--drop-path', '0.2', '--drop-block', '0.3', '--bn-momentum', '0.4', '--bn-eps', '0.5',
               '--gp', 'max', '--in-chans', '1', '--pretrained-path', 'x.pth')
    assert made == [dict(
        num_classes=3, drop_rate=0.1, drop_path_rate=0.2, drop_block_rate=0.3, bn_momentum=0.4, bn_eps=0.5,
        global_pool='max', in_chans=1, pretrained=False, scriptable=None, checkpoint_path='',
        pretrained_cfg_overlay=dict(file='x.pth', num_classes=-1))]


@pytest.mark.parametrize('flags', ['--initial-checkpoint FILE', '--pretrained --pretrained-path FILE', '--pretrained'])
def test_a_resumed_run_reads_no_initial_weights(flags, tmp_path):
    """Its random weights and random state are those of a run without weights to start from."""
    options = parse_train_args(['DIR', '--model', 'test_resnet', '--num-classes', '3', '--resume', 'auto',
                                '--experiment', 'run', *flags.replace('FILE', str(tmp_path / 'missing')).split()])
    expected, state = parameters(), torch.get_rng_state()
    torch.manual_seed(0)
    model, _ = build.build_model(replace(options, resume='last.pth.tar'), CPU, build.Precision())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


def test_a_resumed_run_has_the_model_that_pretrained_stands_for():
    """timm's fbnetc_100 has the epsilon of its pretrained weights in batch norm."""
    options = parse_train_args(['DIR', '--model', 'fbnetc_100', '--img-size', '32', '--pretrained'])
    model, _ = build.build_model(replace(options, resume='last.pth.tar'), CPU, build.Precision())
    assert model.bn1.eps == 1e-3 != build.create_named_model('fbnetc_100').bn1.eps


def test_drawn_weights_are_those_of_the_baseline_with_agmax():
    """So both are paired by seed. The Q-network has weights of the same deviation."""
    baseline = parameters('--init-std', '0.2')
    options = parse_train_args(['DIR', '--model', 'test_resnet', '--num-classes', '3', '--agmax', '--init-std', '0.2'])
    torch.manual_seed(0)
    model, _ = build.build_model(options, CPU, build.Precision())
    qnet = objective.build_task(options, model, CPU, build.Precision()).trainable_module.qnet
    assert all(torch.equal(parameter, baseline[name]) for name, parameter in model.named_parameters())
    assert qnet[0].weight.std().item() == pytest.approx(0.2, rel=0.1)


def test_all_batch_norms_of_regnet_start_at_1_on_request():
    """As in the published AgMax runs of RegNet. By default, timm's RegNet starts the last one of each block at 0."""
    for argument, zeros in (('zero_init_last=True', 16), ('zero_init_last=False', 0)):
        torch.manual_seed(0)
        model, _ = build.build_model(parse_train_args(
            ['DIR', '--model', 'regnety_004', '--model-kwargs', argument]), CPU, build.Precision())
        norms = [module.weight for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert [len(norms), sum(not weight.any() for weight in norms)] == [53, zeros]
        assert not model.head.fc.bias.any()


FIXED = '--model test_vit --model-kwargs dynamic_img_size=False'  # takes images of 160 pixels


@pytest.mark.parametrize('flags, words', [
    (f'{FIXED} --train-img-sizes 160 128', "--model 'test_vit' does not take images of 3 x 128 x 128, as set"),
    (f'{FIXED} --img-size 160 --train-img-sizes 64', '3 x 64 x 64, as set by --train-img-sizes'),
    (f'{FIXED} --img-size 128 --train-img-sizes 160',
     '3 x 128 x 128, as set by --img-size, --input-size or --in-chans (a ViT takes --model-kwargs img_size=N): '),
    ('--train-img-sizes 64 32 --train-batch-sizes 4 1',
     '3 x 32 x 32, as set by --train-img-sizes: --batch-size 1 leaves'),
])
def test_each_size_of_the_training_images_is_tried(flags, words):
    with pytest.raises(OptionError) as error:
        parameters(*flags.split())
    assert words in str(error.value)


@pytest.mark.parametrize('flags', [
    '--train-img-sizes 24 48', f'{FIXED} --train-img-sizes 160',
    '--train-img-sizes 64 32 --train-batch-sizes 1 4', '--train-img-sizes 32 --train-batch-sizes 1 --agmax'])
def test_sizes_that_the_model_takes_are_accepted(flags):
    assert parameters(*flags.split())


def built(*flags, device=CPU):
    model, _ = build.build_model(parse_train_args(
        ['DIR', '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', *flags]), device, build.Precision())
    return model


def test_one_image_is_enough_for_frozen_batch_norm():
    model = built('-b', '1', '--linear-probe')
    keep_statistics(model.train())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(OptionError, match='--batch-size 1 leaves batch norm a single value'):
        built('-b', '1', '--freeze', 'conv1', 'bn1')


def test_one_image_is_enough_for_batch_norm_over_all_processes(monkeypatch):
    """torch has it for accelerators alone. Here it is on the device without memory, and does not train."""
    meta = torch.device('meta')
    monkeypatch.setattr(build, 'is_distributed', lambda: True)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in built(
        '-b', '1', '--sync-bn', device=meta).modules())
    with pytest.raises(OptionError, match='--batch-size 1 leaves batch norm a single value'):
        built('-b', '1', device=meta)


def test_one_image_is_enough_for_batch_norm_if_it_has_several_splits():
    assert built('-b', '1', '--aug-splits', '2').train()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(OptionError, match='--batch-size 1 leaves batch norm a single value'):
        built('-b', '1', '--aug-splits', '2', '--split-bn')
