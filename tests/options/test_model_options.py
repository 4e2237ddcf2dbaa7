"""Options that some of timm's models do not support: they are refused in one line, or have the right effect."""
import re

import pytest
import torch
from timm.models import create_model

from agmax_timm.assembly import loaders
from agmax_timm.assembly import model as build
from agmax_timm.base.errors import OptionError
from agmax_timm.evaluation.evaluated_model import create_evaluated_model
from agmax_timm.options import timm_names
from agmax_timm.options.parse import parse_train_args, validate_options

CPU = torch.device('cpu')
VIT = ['--model-kwargs', 'embed_dim=16', 'depth=1', 'num_heads=2', 'img_size=32']
# A linear layer, a convolution, a layer without a bias.
ONE_HEAD = [['test_resnet'], ['resnetv2_18'], ['deit_tiny_patch16_224', *VIT]]
OTHER_HEADS = [
    (['deit_tiny_distilled_patch16_224', *VIT], '2 heads'),
    (['levit_128s'], '2 heads'),
    (['caformer_s18'], 'a MlpHead'),
]


def built(model, *argv, size='32', classes='3'):
    args = parse_train_args(['data', '--model', model, '--num-classes', classes, '--img-size', size, *argv])
    return build.build_model(args, CPU, build.Precision())[0]


def refused(*argv, **kwargs):
    with pytest.raises(OptionError) as error:
        built(*argv, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('model', ['dla34', 'pit_ti_224', 'selecsls42', 'convit_tiny'])
def test_gradient_checkpointing_is_refused_for_models_without_it(model):
    args = parse_train_args(['data', '--model', model, '--grad-checkpointing'])
    with torch.device('meta'):
        network = create_model(model)
    with pytest.raises(OptionError, match=f'--grad-checkpointing.*{model}.*: drop it'):
        build._checkpoint_gradients(args, network)


def test_gradient_checkpointing_is_set():
    assert built('test_resnet', '--grad-checkpointing').grad_checkpointing is True


def test_gradient_checkpointing_is_refused_for_models_of_other_libraries(monkeypatch):
    monkeypatch.setattr(build, 'create_named_model', lambda *args, **kwargs: torch.nn.Linear(2, 2))
    args = parse_train_args(['data', '--num-classes', '2', '--grad-checkpointing'])
    with pytest.raises(OptionError, match='--grad-checkpointing'):
        build.build_model(args, CPU, build.Precision())


@pytest.mark.parametrize('model', ONE_HEAD, ids=lambda words: words[0])
def test_the_head_gets_its_initial_scale_and_bias(model):
    torch.manual_seed(1)
    plain = built(*model).get_classifier()
    torch.manual_seed(1)
    head = built(*model, '--head-init-scale', '0.5', '--head-init-bias', '-2').get_classifier()
    torch.testing.assert_close(head.weight, plain.weight * 0.5)
    torch.testing.assert_close(head.bias, torch.full((3,), -2.))


@pytest.mark.parametrize('model, words', OTHER_HEADS, ids=lambda words: str(words[0]))
@pytest.mark.parametrize('flag', ['--head-init-scale', '--head-init-bias'])
def test_heads_of_several_layers_are_refused(flag, model, words):
    name, *argv = model
    args = parse_train_args(['data', '--model', name, flag, '0.5'])
    with torch.device('meta'):
        network = create_model(name, num_classes=3)
    with pytest.raises(OptionError, match=f'{flag} 0.5 .*one linear layer.*{name}.* {words}: drop it'):
        build._init_head(args, network)


def test_head_init_bias_is_refused_for_a_head_without_bias():
    network = torch.nn.Module()
    network.get_classifier = lambda: torch.nn.Linear(2, 3, bias=False)
    with pytest.raises(OptionError, match='--head-init-bias 1.0 needs a head with a bias'):
        build._init_head(parse_train_args(['data', '--head-init-bias', '1']), network)


def test_torchscript_is_refused_for_models_it_cannot_script():
    args = parse_train_args(['data', '--torchscript'])
    network = torch.nn.Linear(2, 2)
    network.forward = lambda *values, **named: values
    with pytest.raises(OptionError, match="--torchscript: 'resnet50' cannot be scripted, so use --torchcompile: "):
        build.script_model(args, network)
    assert isinstance(build.script_model(args, torch.nn.Linear(2, 2)), torch.jit.ScriptModule)


def test_a_fuser_that_torch_does_not_have_is_refused(monkeypatch):
    def without_fuser(name):
        raise RuntimeError(name)
    monkeypatch.setattr(build.utils, 'set_jit_fuser', without_fuser)
    with pytest.raises(OptionError, match="--fuser 'nvfuser': .* no such fuser: leave it out, or use --torchcompile"):
        build.set_backend_options(parse_train_args(['data', '--torchscript', '--fuser', 'nvfuser']))


def test_patch_sizes_need_a_model_that_interpolates_patches():
    kwargs = dict(embed_dim=16, depth=1, num_heads=2, num_classes=3)
    network = create_model('naflexvit_base_patch16_gap', **kwargs)
    with pytest.raises(OptionError, match='--naflex-patch-sizes 8 16: .* enable_patch_interpolator=True, or drop it'):
        loaders.patch_size(network, [8, 16])
    assert loaders.patch_size(network, [16]) == loaders.patch_size(network) == (16, 16)
    network = create_model('naflexvit_base_patch16_gap', **kwargs, enable_patch_interpolator=True)
    assert loaders.patch_size(network, [8, 16]) == (16, 16)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(2)
    model = create_model('test_resnet', num_classes=5)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'five.pth.tar')
    return str(tmp_path / 'five.pth.tar'), model.state_dict()


def test_a_checkpoint_with_another_number_of_classes_is_refused_with_a_remedy(checkpoint):
    path, tensors = checkpoint
    message = refused('test_resnet', '--initial-checkpoint', path)
    assert message.startswith(f"--initial-checkpoint '{path}' has 5 classes")
    assert f": use --pretrained --pretrained-path '{path}" in message
    loaded = built('test_resnet', '--pretrained', '--pretrained-path', path).state_dict()
    same = [name for name in tensors if not name.startswith('fc.')]
    torch.testing.assert_close({name: loaded[name] for name in same}, {name: tensors[name] for name in same})
    assert loaded['fc.weight'].shape[0] == 3
    for more in ([], ['--pretrained']):  # a recipe may set it; nothing is downloaded
        loaded = built('test_resnet', '--initial-checkpoint', path, *more, classes='5').state_dict()
        torch.testing.assert_close(dict(loaded), dict(tensors))


def test_a_checkpoint_of_another_model_is_refused(checkpoint):
    message = refused('test_byobnet', '--initial-checkpoint', checkpoint[0])
    assert re.search(f'--initial-checkpoint .*{checkpoint[0]}.* not a checkpoint of .*test_byobnet', message)
    assert 'classes' not in message


@pytest.mark.parametrize('model, warned', [('test_vit', True), ('test_resnet', False)])
@pytest.mark.parametrize('flags', [['--sync-bn'], ['--split-bn', '--aug-splits', '2']], ids=lambda flags: flags[0])
def test_options_of_batch_norm_warn_for_a_model_without_it(caplog, flags, model, warned):
    built(model, *flags, size='160')
    assert bool(re.search(f'{flags[0]} has no effect: .*{model}.* batch norm', caplog.text)) is warned


@pytest.mark.parametrize('model, warned', [('repvgg_a0', False), ('test_byobnet', True)])
def test_reparam_warns_for_a_model_without_branches(caplog, tmp_path, model, warned):
    torch.save(create_model(model, num_classes=3).state_dict(), tmp_path / 'weights.pth')
    args = validate_options(model=model, num_classes=3, reparam=True, checkpoint=str(tmp_path / 'weights.pth'))
    create_evaluated_model(args, CPU, build.Precision())
    assert bool(re.search(f'--reparam has no effect: .*{model}.* branches', caplog.text)) is warned


def test_only_the_first_process_warns_about_optimizers(caplog, monkeypatch):
    args = parse_train_args(['data', '--opt', 'sgd', '--opt-eps', '0.1'])
    timm_names.check_optimizer(args)
    assert caplog.text.count("--opt-eps has no effect: --opt 'sgd' has none") == 1
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_RANK', '1')
    timm_names.check_optimizer(args)
    assert caplog.text.count('no effect') == 1


@pytest.mark.parametrize('argument, flag', [
    ('momentum=0.8', '--momentum'), ('lr=1', '--lr'), ('eps=1e-3', '--opt-eps'), ('layer_decay=0.5', '--layer-decay')])
def test_an_argument_of_the_optimizer_that_has_a_flag_names_it(argument, flag):
    argv = ['data', '--opt', 'adamw', '--opt-eps', '1e-8', '--layer-decay', '0.7', '--opt-kwargs', argument]
    with pytest.raises(OptionError, match=f'--opt-kwargs {argument.split("=")[0]}=.*: use {flag}$'):
        timm_names.check_optimizer(parse_train_args(argv))


@pytest.mark.parametrize('argv, message', [
    ("--torchcompile --torchcompile-mode reduce-overhead", "--torchcompile-mode 'reduce-overhead' records CUDA graphs"),
    ("--torchcompile --torchcompile-mode max-autotune", "--torchcompile-mode 'max-autotune' records CUDA graphs"),
    ('--torchcompile cudagraphs', "--torchcompile 'cudagraphs' records CUDA graphs"),
    ('--torchcompile', None),
    ('--torchcompile --torchcompile-mode default', None),
    ('--torchcompile --torchcompile-mode max-autotune-no-cudagraphs', None),
    ('--torchcompile aot_eager', None),
])
def test_cuda_graphs_with_accumulation_are_refused_on_cuda(monkeypatch, argv, message):
    def check(*more):
        timm_names.check_compiler(parse_train_args(['data', *argv.split(), *more]))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    if message is None:
        check('--grad-accum-steps', '2')
        return
    with pytest.raises(OptionError) as error:
        check('--grad-accum-steps', '2')
    said = str(error.value)
    assert said.startswith(message) and '--grad-accum-steps 2' in said and ': use --torchcompile' in said
    remedy = said.partition(': use ')[2].partition(' or ')[0].split()  # is taken
    timm_names.check_compiler(parse_train_args(['data', *argv.split(), *remedy, '--grad-accum-steps', '2']))
    check('--grad-accum-steps', '1')
    check('--grad-accum-steps', '2', '--device', 'cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)  # the run falls back to the CPU
    check('--grad-accum-steps', '2')
