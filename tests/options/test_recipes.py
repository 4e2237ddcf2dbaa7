"""The recipes of hparams/: they combine, build, and agree with the published settings."""
import math
import re
import shlex
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.task import ClassificationTask
from torchvision.transforms import InterpolationMode

from agmax_timm import AgMaxTask, TwoViews
from agmax_timm.assembly import datasets, loaders
from agmax_timm.assembly import model as build
from agmax_timm.assembly import optimizer as optimization
from agmax_timm.assembly.objective import build_task
from agmax_timm.options.derived import mixing
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser
from tests.helpers.paths import REPOSITORY

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


RESNETS = ('resnet50_in1k_90ep', 'resnet50_in1k_270ep', 'resnet101_in1k_90ep', 'resnet101_in1k_270ep')
COSINES = ('regnety_004_in1k_100ep', 'efficientnet_b0_in1k_100ep')
CIFAR, SVHN = WIDE = ('wide_resnet_cifar', 'wide_resnet_svhn')
BASES = (*RESNETS, *COSINES, *WIDE)
METHODS = {
    'baseline': dict(agmax=False, agmax_teacher='none', smoothing=0),
    'label_smoothing': dict(agmax=False, agmax_teacher='none', smoothing=0.1),
    'agmax': dict(agmax=True, agmax_teacher='none', agmax_loss='mi', agmax_weight=1.0, agmax_divergence_weight=4.0,
                  smoothing=0),
    'memory': dict(agmax=False, agmax_teacher='memory', agmax_teacher_weight=0.5, agmax_teacher_momentum=0.8,
                   agmax_teacher_ramp=0.2, smoothing=0),
}


def augmentations(policy, cutout, alpha, cutmix_prob):
    kinds = {
        'standard': {},
        'cutout': dict(cutout=cutout),
        'mixup': dict(mixup=alpha, mixup_prob=1.0),
        'cutmix': dict(cutmix=1.0, mixup_prob=cutmix_prob),
    }
    table = {}
    for suffix, aa in (('', ''), ('_aa', policy)):
        for kind, options in kinds.items():
            name = f'{kind}{suffix}' if kind != 'standard' or not suffix else 'aa'
            table[name] = {**dict(aa=aa, cutout=0, mixup=0, cutmix=0), **options}
    return table


AUGMENTATIONS = {
    'aug': augmentations('imagenet', 112, 0.2, 1.0), 'aug_cifar': augmentations('cifar10', 16, 1.0, 0.5)}
FAMILY = {base: 'aug_cifar' if base in WIDE else 'aug' for base in BASES}
# All pairs of files that may be combined: base and augmentation, base and method, augmentation and method. The family
# of WIDE has two bases. Each occurs twice, so that all four methods occur with each augmentation.
COMBINATIONS = [(base, f'{FAMILY[base]}/{name}', f'method/{[*METHODS][(row + column) % len(METHODS)]}')
                for row, base in enumerate((*BASES, *WIDE)) for column, name in enumerate(AUGMENTATIONS[FAMILY[base]])]
FILES = [*BASES, *(f'{family}/{name}' for family, table in AUGMENTATIONS.items() for name in table),
         *(f'method/{method}' for method in METHODS)]

PARAMETERS = {
    'resnet50': 25_557_032, 'resnet101': 44_549_160, 'regnety_004': 4_344_144, 'efficientnet_b0': 5_288_548,
    'wide_resnet40_2': 2_246_474, 'wide_resnet28_2': 1_469_642,
}

CPU = torch.device('cpu')
PRECISION = build.Precision()
SMALL_MODEL = ('--model', 'test_resnet', '--model-kwargs', '--num-classes', '3')
SMALL_DATA = ('--dataset', '', '-b', '4', '-j', '0')


def parse(*names, argv=()):
    """Options of composed recipes, for one process on the CPU."""
    files = [argument for name in names for argument in ('-c', str(REPOSITORY / 'hparams' / f'{name}.yaml'))]
    args = parse_train_args([*files, '--device', 'cpu', *argv])
    return args


def build_loaders(args, photos):
    args = replace(args, data_dir=str(photos))
    model, data_config = build.build_model(args, CPU, PRECISION)
    train, validation = datasets.build_datasets(args, data_config)
    return (
        model,
        loaders.build_train_loader(args, train, data_config, CPU, PRECISION),
        loaders.build_eval_loader(args, validation, data_config, CPU, PRECISION, args.batch_size),
    )


def build_optimizer(args):
    model, _ = build.build_model(args, CPU, PRECISION)
    task = build_task(args, model, CPU, PRECISION)
    args = optimization.with_learning_rate(args, args.batch_size)
    return task, optimization.build_optimizer(args, task)


def train_steps(*recipes, photos):
    """The steps of the training transform."""
    _, loader, _ = build_loaders(parse(*recipes, argv=(*SMALL_MODEL, *SMALL_DATA)), photos)
    transform = loader.dataset.transform
    while not hasattr(transform, 'transforms'):  # two views; on arrays
        transform = transform.transform
    return transform.transforms


def names(steps):
    return [type(step).__name__ for step in steps]


def header(name):
    lines = (REPOSITORY / 'hparams' / f'{name}.yaml').read_text().splitlines()
    return [line for line in lines if line.startswith('#')]


def commands(name):
    """The commands in a recipe's header, as lists of arguments."""
    text = '\n'.join(line.removeprefix('#') for line in header(name)).replace('\\\n', ' ')
    return [shlex.split(line) for line in re.findall(r'^ +python (.*)$', text, re.MULTILINE)]


# Composition


@pytest.mark.slow
@pytest.mark.parametrize('base, augmentation, method', COMBINATIONS)
def test_every_combination_builds(base, augmentation, method, photos):
    args = parse(base, augmentation, method, argv=(*SMALL_MODEL, *SMALL_DATA))
    model, train, validation = build_loaders(args, photos)
    task = build_task(args, model, CPU, PRECISION, train.dataset)
    agmax = method == 'method/agmax'

    assert isinstance(task, AgMaxTask if agmax else ClassificationTask)
    assert isinstance(train.dataset.transform, TwoViews) == agmax
    assert len(train) == len(validation) == 3
    expected = {**AUGMENTATIONS[FAMILY[base]][augmentation.split('/')[1]], **METHODS[method.split('/')[1]]}
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize('base, augmentation, method', [
    ('resnet50_in1k_90ep', 'aug/standard', 'method/baseline'),
    ('resnet50_in1k_270ep', 'aug/cutout_aa', 'method/agmax'),
    ('resnet101_in1k_270ep', 'aug/cutmix_aa', 'method/agmax'),
    ('efficientnet_b0_in1k_100ep', 'aug/mixup', 'method/label_smoothing'),
    (CIFAR, 'aug_cifar/cutmix_aa', 'method/agmax'),
    (CIFAR, 'aug_cifar/cutout', 'method/baseline'),
])
def test_combinations_give_batches_and_a_finite_loss(base, augmentation, method, photos):
    args = parse(base, augmentation, method, argv=(*SMALL_MODEL, *SMALL_DATA))
    model, train, _ = build_loaders(args, photos)
    input, target = next(iter(train))

    views = 8 if args.agmax else 4
    size = 32 if base in WIDE else 224
    assert input.shape == (views, 3, size, size) and input.dtype == torch.float32
    if mixing(args):
        assert target.shape == (views, 3)
        torch.testing.assert_close(target.sum(1), torch.ones(views))
    else:
        assert target.shape == (views,) and target.dtype == torch.int64
    if args.cutout:
        # The mean colour is zero, and a square has its quarter or more within the image, whatever its centre.
        assert ((input == 0).all(1).sum((1, 2)) >= (args.cutout // 2) ** 2).all()
    assert torch.isfinite(build_task(args, model, CPU, PRECISION)(input, target)['loss'])


@pytest.mark.parametrize('family', AUGMENTATIONS)
def test_the_last_augmentation_overrides_earlier_ones(family):
    base = next(base for base in BASES if FAMILY[base] == family)
    for before in ('aug/cutout_aa', 'aug/cutmix_aa', 'aug_cifar/mixup_aa', 'aug_cifar/cutmix'):
        for name, expected in AUGMENTATIONS[family].items():
            args = parse(before, base, 'method/baseline', f'{family}/{name}')
            assert {key: getattr(args, key) for key in expected} == expected


def test_the_last_method_overrides_earlier_ones():
    for first in METHODS:
        for last, expected in METHODS.items():
            args = parse(f'method/{first}', 'resnet50_in1k_90ep', 'aug/standard', f'method/{last}')
            assert {key: getattr(args, key) for key in expected} == expected


# The published settings


@pytest.mark.parametrize('family', AUGMENTATIONS)
def test_augmentations_equal_the_table(family):
    folder = REPOSITORY / 'hparams' / family
    assert {file.stem: yaml.safe_load(file.read_text()) for file in folder.iterdir()} == AUGMENTATIONS[family]


def test_methods_equal_the_table():
    folder = REPOSITORY / 'hparams' / 'method'
    found = {file.stem: yaml.safe_load(file.read_text()) for file in folder.iterdir()}
    assert found == METHODS
    for name in ('agmax_loss', 'agmax_weight', 'agmax_divergence_weight'):
        assert found['agmax'][name] == train_parser().get_default(name)
    for name in ('agmax_teacher_weight', 'agmax_teacher_momentum', 'agmax_teacher_ramp'):
        assert found['memory'][name] == train_parser().get_default(name)


@pytest.mark.parametrize('base, milestones', [
    ('resnet50_in1k_90ep', (30, 60, 80)), ('resnet101_in1k_90ep', (30, 60, 80)),
    ('resnet50_in1k_270ep', (75, 150, 225)), ('resnet101_in1k_270ep', (75, 150, 225))])
def test_step_schedules_equal_those_of_torch(base, milestones):
    args = parse(base, argv=SMALL_MODEL)
    _, optimizer = build_optimizer(args)
    scheduler, epochs = optimization.build_scheduler(args, optimizer, 5)
    assert epochs == int(base.split('_')[-1].removesuffix('ep'))

    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1)
    expected = torch.optim.lr_scheduler.MultiStepLR(peer, milestones, gamma=0.1)
    for epoch in range(epochs):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected.get_last_lr()[0]), epoch
        scheduler.step(epoch + 1)
        peer.step()
        expected.step()


@pytest.mark.parametrize('base', COSINES)
def test_cosine_schedules_with_warmup_equal_the_formula(base):
    args = parse(base, argv=SMALL_MODEL)
    _, optimizer = build_optimizer(args)
    scheduler, epochs = optimization.build_scheduler(args, optimizer, 4)
    assert epochs == 100
    for update in range(4 * epochs):
        time = update / 4
        expected = 0.1 * time / 5 if time < 5 else 0.05 * (1 + math.cos(math.pi * time / 100))
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected), update
        scheduler.step_update(update + 1)
        if (update + 1) % 4 == 0:
            scheduler.step((update + 1) // 4)  # each epoch's call leaves it as it is


@pytest.mark.parametrize('base, expected_epochs', [(CIFAR, 200), (SVHN, 160)])
def test_cosine_schedules_of_small_images_equal_the_formula(base, expected_epochs):
    args = parse(base, argv=SMALL_MODEL)
    _, optimizer = build_optimizer(args)
    scheduler, epochs = optimization.build_scheduler(args, optimizer, 5)
    assert epochs == expected_epochs
    for epoch in range(epochs):
        expected = 0.05 * (1 + math.cos(math.pi * epoch / epochs))
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected), epoch
        scheduler.step(epoch + 1)


@pytest.mark.parametrize('base, images, weight_decay', [
    *((base, 256, 1e-4) for base in RESNETS), *((base, 128, 5e-5) for base in COSINES),
    *((base, 128, 5e-4) for base in WIDE)])
def test_learning_rates_are_proportional_to_the_batch_size(base, images, weight_decay):
    for factor in (1, 2):
        args = parse(base, argv=('-b', str(factor * images)) if factor > 1 else ())
        args = optimization.with_learning_rate(args, args.batch_size)
        assert (args.batch_size, args.lr) == (factor * images, pytest.approx(factor * 0.1))
    assert args.weight_decay == weight_decay


@pytest.mark.slow
@pytest.mark.parametrize('base', BASES)
def test_models_and_optimizers_have_the_published_settings(base):
    args = parse(base, f'{FAMILY[base]}/standard', 'method/agmax')
    task, optimizer = build_optimizer(args)
    model = task.get_eval_model()
    assert model.num_classes == (10 if base in WIDE else 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[args.model]

    assert type(optimizer) is torch.optim.SGD
    decayed = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    assert decayed == {id(parameter) for parameter in task.get_trainable_module().parameters()}
    for group in optimizer.param_groups:
        assert group['weight_decay'] == args.weight_decay
        assert (group['momentum'], group['nesterov'], group['lr']) == (0.9, True, 0.1)
    if base in RESNETS:
        # What the published runs also began with, with and without their own initial weights.
        assert all((block.bn3.weight == 0).all() for block in model.layer1)


# What happens to an image


@pytest.mark.parametrize('base', BASES)
def test_evaluation_transforms_have_the_published_settings(base, photos):
    _, _, loader = build_loaders(parse(base, 'method/baseline', argv=(*SMALL_MODEL, *SMALL_DATA)), photos)
    resize, crop, *_ = loader.dataset.transform.transforms
    assert (resize.size, resize.interpolation) == (32 if base in WIDE else 256, InterpolationMode.BILINEAR)
    assert crop.size == ((32, 32) if base in WIDE else (224, 224))


@pytest.mark.parametrize('base', [base for base in BASES if base not in WIDE])
def test_pixels_are_normalised_as_for_imagenet(base):
    args = parse(base)
    with torch.device('meta'):
        model = timm.create_model(args.model)
    config = timm.data.resolve_data_config(vars(args), model=model)
    assert (config['mean'], config['std']) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize('base', [base for base in BASES if base not in WIDE])
def test_training_transforms_have_the_published_settings(base, photos):
    crop, flip, jitter, lighting, _ = steps = train_steps(base, 'aug/standard', 'method/agmax', photos=photos)
    assert names(steps[:4]) == ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'ColorJitter', 'Lighting']
    assert (crop.size, crop.scale, crop.interpolation) == ((224, 224), (0.08, 1.0), InterpolationMode.BILINEAR)
    assert flip.p == 0.5 and lighting.std == 0.1
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4) and jitter.hue is None


def test_training_transforms_with_auto_augment_have_the_published_settings(photos):
    steps = train_steps('resnet50_in1k_90ep', 'aug/aa', 'method/baseline', photos=photos)
    assert names(steps[1:5]) == ['RandomHorizontalFlip', 'AutoAugment', 'ColorJitter', 'Lighting']
    assert steps[3].brightness == steps[3].contrast == steps[3].saturation == (0.6, 1.4) and steps[3].hue is None


def test_training_transforms_of_cifar_have_the_published_settings(photos):
    crop, flip, policy, *rest = train_steps(CIFAR, 'aug_cifar/aa', 'method/agmax', photos=photos)
    assert names(crop.transforms) == ['Resize', 'RandomCrop']
    assert (crop.transforms[1].size, crop.transforms[1].padding) == ((32, 32), [4, 4])
    assert names([flip, policy]) == ['RandomHorizontalFlip', 'AutoAugment']
    assert not {'ColorJitter', 'Lighting'} & set(names(rest))


# The headers


@pytest.mark.parametrize('name', FILES)
def test_commands_in_headers_parse(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    train, *others = commands(name)
    assert train[0] == 'train.py'
    args = parse_train_args(train[1:])
    assert args.data in ('/data/imagenet', '/data/cifar', '/data/svhn')
    assert f'hparams/{name}.yaml' in train
    assert [argument for argument in train if argument.startswith('hparams/method/')]

    assert bool(others) == (name in COSINES)
    for script, *argv in others:
        assert script == 'validate.py'
        test = parse_validate_args(argv)
        assert test.checkpoint == f'output/train/{args.experiment}/model_best.pth.tar'
        resize = create_transform(test.img_size, crop_pct=test.crop_pct, interpolation='bilinear').transforms[0]
        assert (test.img_size, resize.size) == (256, 288)

    assert 'Not run by us' in ' '.join(header(name))
    assert 5 <= len(header(name)) <= 18


@pytest.mark.parametrize('name', FILES)
def test_files_named_in_headers_exist(name):
    for file in re.findall(r'hparams/[\w/]+\.yaml', '\n'.join(header(name))):
        assert (REPOSITORY / file).is_file(), file


@pytest.mark.parametrize('name, changed', [
    ('finetune', [{}, dict(linear_probe=True), dict(agmax=True, smoothing=0.)]),
    ('finetune_vit', [{}, dict(freeze=['patch_embed', 'blocks.[0-5]'])])])
def test_commands_of_fine_tuning_recipes_have_the_described_options(name, changed, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    expected = dict(pretrained=True, num_classes=2, epochs=20, smoothing=0.1, agmax=False, freeze=[],
                    linear_probe=False)
    found = [parse_train_args(words[1:]) for words in commands(name)]
    assert [{key: getattr(options, key) for key in expected} for options in found] == [
        {**expected, **values} for values in changed]
    rate = optimization.with_learning_rate(found[0], found[0].batch_size).lr
    assert rate == found[0].lr_base and 0 < found[0].warmup_epochs < 5 and 0 < found[0].layer_decay < 1
