"""--freeze and --linear-probe, against timm's own freezing and against the weights that a run starts from."""
import copy
from dataclasses import replace

import pytest
import timm
import torch
from timm.utils import freeze as timm_freeze

from agmax_timm import AgMaxTask
from agmax_timm.assembly.freezing import freeze, keep_statistics
from agmax_timm.assembly.optimizer import build_optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import TrainOptions
from agmax_timm.training import batch_norm
from agmax_timm.training import run as training
from tests.helpers.exact import FLAGS
from tests.helpers.run_files import load

STEM = ['conv1', 'bn1', 'layer[12]']
OPTIONS = TrainOptions(model='test_resnet', initial_checkpoint='x', agmax=True, weight_decay=0.)


def resnet():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=3)


def gradients(model, images, target):
    torch.nn.functional.cross_entropy(model(images), target).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_and_statistics_equal_those_after_freezing_by_timm():
    ours, theirs = resnet(), resnet()
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for model in (ours, theirs):
        model(images)  # statistics of a trained model
    freeze(replace(OPTIONS, freeze=STEM), ours)
    timm_freeze(theirs, ['conv1', 'bn1', 'layer1', 'layer2'])
    keep_statistics(ours.train())
    before = copy.deepcopy(ours.state_dict())
    expected = gradients(theirs.train(), images, target)
    found = gradients(ours, images, target)
    assert found.keys() == expected.keys() and 'layer3.0.conv1.weight' in found
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    changed = {name for name, value in ours.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not {name for name in changed if not name.startswith(('layer3', 'layer4'))}
    assert ours.state_dict().keys() == resnet().state_dict().keys()  # timm's freezing drops num_batches_tracked


@pytest.mark.parametrize('flags', [dict(freeze=STEM), dict(linear_probe=True)])
def test_the_optimizer_has_the_trained_parameters_and_the_qnetwork(flags):
    model = resnet()
    freeze(replace(OPTIONS, **flags), model)
    task = AgMaxTask(model)
    optimizer = build_optimizer(replace(OPTIONS, lr=0.1), task)
    names = {id(parameter): name for name, parameter in task.get_trainable_module().named_parameters()}
    trained = {names[id(parameter)] for group in optimizer.param_groups for parameter in group['params']}
    expected = {f'model.fc.{name}' for name in ('weight', 'bias')} | {name for name in names.values() if 'qnet' in name}
    if 'freeze' in flags:
        expected |= {name for name in names.values() if name.startswith(('model.layer3', 'model.layer4'))}
    assert trained == expected


def test_patterns_also_match_parameters():
    model = timm.create_model('test_vit', num_classes=3)
    freeze(replace(OPTIONS, freeze=['patch_embed', 'pos_*', 'cls_token', 'blocks.0']), model)
    frozen = {name.partition('.')[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {'patch_embed', 'pos_embed', 'cls_token', 'blocks'}
    assert all(parameter.requires_grad for parameter in model.blocks[1].parameters())


@pytest.mark.parametrize('flags, words', [
    (dict(freeze=['layr1']),
     ["--freeze 'layr1' matches no part of --model 'test_resnet' (", '), did you mean layer1?', 'bn1']),
    (dict(freeze=['*']), ["--freeze '*' leaves nothing of --model 'test_resnet' to train"]),
])
def test_invalid_patterns_are_refused(flags, words):
    with pytest.raises(OptionError) as error:
        freeze(replace(OPTIONS, **flags), resnet())
    assert all(word in str(error.value) for word in words)


def test_a_pattern_that_is_near_no_name_gets_no_proposal():
    with pytest.raises(OptionError) as error:
        freeze(replace(OPTIONS, freeze=['h']), resnet())
    assert str(error.value).endswith(' and 2 more)')


def test_a_linear_probe_needs_a_head():
    for model in (timm.create_model('test_resnet', num_classes=0), torch.nn.Linear(2, 3)):
        with pytest.raises(OptionError, match='--linear-probe .*the head .*--model .*test_resnet'):
            freeze(replace(OPTIONS, linear_probe=True), model)


@pytest.mark.parametrize('kept', ['--freeze conv1', '--linear-probe'])
def test_init_std_with_frozen_weights_is_refused(kept, capsys):
    with pytest.raises(SystemExit):
        parse_train_args(['x', '--agmax', '--init-std', '0.2', *kept.split()])
    assert f'--init-std draws new weights over those of {kept.split()[0]}' in capsys.readouterr().err


@pytest.mark.parametrize('flags, trained', [('--freeze conv1 bn1 layer[12]', ('layer3', 'layer4', 'fc')),
                                            ('--linear-probe', ('fc',))])
def test_a_run_changes_only_trained_parameters(photos, tmp_path, caplog, flags, trained):
    start = resnet()
    start(torch.randn(4, 3, 32, 32))
    torch.save(start.state_dict(), tmp_path / 'start.pth')
    training.train(parse_train_args([
        str(photos), *FLAGS, '--epochs', '2', '-j', '0', '--agmax', '--model-ema', '--model-ema-decay', '0.9',
        '--output', str(tmp_path), '--experiment', 'run', '--initial-checkpoint', str(tmp_path / 'start.pth'),
        *flags.split()]))
    last = load(tmp_path / 'run' / 'last.pth.tar')
    for weights in (last['state_dict'], last['state_dict_ema']):
        same = {name for name, value in start.state_dict().items() if torch.equal(weights[name], value)}
        assert same == {name for name in weights if not name.startswith(trained)}
    assert 'Frozen: ' in caplog.text and 'keeps the random' not in caplog.text


@pytest.mark.parametrize('how, sync_bn, factor', [
    ('reduce', False, 3.5 / 3), ('broadcast', False, 2), ('', False, 1), ('reduce', True, 1), ('broadcast', True, 1)])
def test_ranks_share_only_the_statistics_of_trained_layers(monkeypatch, how, sync_bn, factor):
    """The mean of three equal values can differ from them in the last bit. With --sync-bn, ranks have equal ones."""
    model = resnet()
    model(torch.randn(4, 3, 32, 32))
    freeze(replace(OPTIONS, freeze=STEM), model)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(batch_norm, 'is_distributed', lambda: True)
    monkeypatch.setattr(batch_norm, 'world_size', lambda: 3)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda tensor, **_: tensor.mul_(3.5))
    monkeypatch.setattr(torch.distributed, 'broadcast', lambda tensor, _: tensor.mul_(2))
    batch_norm.distribute_batch_norm(replace(OPTIONS, dist_bn=how, sync_bn=sync_bn), model)
    for name, value in model.state_dict().items():
        shared = factor != 1 and 'running_' in name and name.startswith(('layer3', 'layer4'))
        if shared:
            torch.testing.assert_close(value, factor * before[name])
        assert torch.equal(value, before[name]) != shared, name
