"""validate.py on corrupted, attacked and augmented images, and on subsets of the classes."""
import csv
import json
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, create_dataset, create_loader
from timm.models import create_model
from timm.utils import random_seed

from agmax_timm.assembly.model import Precision
from agmax_timm.commands import validate as validate_cli
from agmax_timm.evaluation import evaluated_model, robustness_columns
from agmax_timm.evaluation.calibration import CalibrationBins
from agmax_timm.evaluation.passes import Evaluation
from agmax_timm.evaluation.robustness import attacked
from agmax_timm.evaluation.robustness.attacks import pgd, random_start
from agmax_timm.evaluation.robustness.corruptions import ALEXNET_ERRORS
from agmax_timm.evaluation.robustness.seeding import sample_seed
from agmax_timm.options.parse import parse_validate_args
from tests.helpers.flags import SMALL_VALIDATION
from tests.helpers.ranks import finish_ranks, logs, start_ranks

SIZE = 32
RESNET = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', str(SIZE)]


@pytest.fixture(scope='module')
def textures(tmp_path_factory):
    """Folder with the split val: 12 images of smooth noise in 3 classes, of the size that is evaluated."""
    root, draws = tmp_path_factory.mktemp('textures'), np.random.default_rng(0)
    for number in range(12):
        folder = root / 'val' / ('ant', 'bee', 'cat')[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((SIZE, SIZE), Image.BICUBIC).save(folder / f'{number}.png')
    return root


@pytest.fixture(scope='module')
def weights(textures, tmp_path_factory):
    """Function: the path of a file of weights of test_resnet, and the model, which is right on the textures.

    Its features are random, its head is fitted to them by least squares; `outputs` are those of the three classes.
    """
    folder = tmp_path_factory.mktemp('weights')

    def make(outputs=(0, 1, 2), num_classes=3, seed=3):
        random_seed(seed)
        model = create_model('test_resnet', num_classes=num_classes).eval()
        images, target = pixels_of(textures)
        with torch.no_grad():
            features = model.forward_head(model.forward_features((images - 0.5) / 0.5), pre_logits=True)
            wanted = 4 * F.one_hot(torch.tensor(outputs)[target], num_classes) + torch.rand(len(target), num_classes)
            centre = features.mean(0)
            model.fc.weight.copy_((torch.linalg.pinv(features - centre) @ (wanted - wanted.mean(0))).T)
            model.fc.bias.copy_(wanted.mean(0) - model.fc.weight @ centre)
        path = folder / f'{seed}-{num_classes}.pth'
        torch.save(model.state_dict(), path)
        return str(path), model
    return make


def pixels_of(root, **kwargs):
    """All images [N, 3, H, W] in [0, 1] and targets [N] of the folder's val, as test_resnet gets them."""
    loader = create_loader(
        create_dataset('', str(root), split='val'), (3, SIZE, SIZE), 100, num_workers=0, device=torch.device('cpu'),
        interpolation='bilinear', mean=(0.,) * 3, std=(1.,) * 3, **{'crop_pct': 0.95, **kwargs})
    return next(iter(loader))


def top1(logits, target):
    return 100 * (logits.argmax(1) == target).double().mean().item()


# ---- Attacks ----

@pytest.mark.slow
@pytest.mark.parametrize('attack, norm, epsilons', [
    ('fgsm', 'linf', ['1', '6']), ('pgd', 'linf', ['2']), ('pgd', 'l2', ['0.3'])])
def test_attack_results_equal_those_of_attacked_pixels(attack, norm, epsilons, textures, weights, results_of):
    path, model = weights()
    model.requires_grad_(False)
    images, target = pixels_of(textures)
    results = results_of(textures, *RESNET, '--checkpoint', path, '--attack', attack, '--attack-norm', norm,
                         '--attack-eps', *epsilons, *(['--attack-steps', 3] if attack == 'pgd' else []))
    for word in epsilons:
        epsilon = float(word) / (255 if norm == 'linf' else 1)
        steps, size, start = 1, epsilon, None
        if attack == 'pgd':
            seeds = [sample_seed(42, index) for index in range(12)]
            steps, size, start = 3, 2.5 * epsilon / 3, random_start((3, SIZE, SIZE), epsilon, norm, seeds)
        attacked = pgd(lambda x: model((x - 0.5) / 0.5), images, target, epsilon, norm, steps, size, start)
        logits = model((attacked - 0.5) / 0.5)
        assert results[f'{attack}_{norm}_{word}_top1'] == pytest.approx(top1(logits, target), abs=1e-3)
    assert results['top1'] == pytest.approx(top1(model((images - 0.5) / 0.5), target), abs=1e-3)


class RecordsInputs(torch.nn.Module):
    """A model that records its inputs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs = model, []

    def forward(self, input):
        self.inputs.append(input)
        return self.model(input)


@pytest.fixture
def passes(monkeypatch):
    """List of the evaluations after that of the clean images: inputs [N, 3, H, W] and metrics of each."""
    seen, evaluate = [], Evaluation.evaluate

    def watched(evaluation, name, *args):
        model = RecordsInputs(evaluation.subject.model)
        metrics = evaluate(replace(evaluation, subject=replace(evaluation.subject, model=model)), name, *args)
        if name != 'Test':
            seen.append((torch.cat(model.inputs), metrics))
        return metrics
    monkeypatch.setattr(Evaluation, 'evaluate', watched)
    return seen


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*torch.jit.script:FutureWarning')
@pytest.mark.parametrize('flags', [
    ['--attack', 'fgsm'], ['--attack', 'pgd', '--attack-steps', '3'],
    ['--attack', 'pgd', '--attack-norm', 'l2', '--attack-steps', '3', '--attack-step-size', '0.2', '--channels-last'],
    ['--attack', 'fgsm', '--amp', '--amp-dtype', 'bfloat16', '--no-prefetcher'],
    ['--attack', 'fgsm', '--amp', '--amp-dtype', 'float16', '--attack-norm', 'l2'],
    ['--attack', 'fgsm', '--torchscript', '--reparam']])
def test_attacked_inputs_are_within_their_bounds(flags, textures, weights, results_of, passes):
    path, _ = weights()
    norm = 'l2' if 'l2' in flags else 'linf'
    epsilons = ['0', '0.1', '0.4', '1'] if norm == 'l2' else ['0', '1', '4', '16']
    results = results_of(textures, *RESNET, '--checkpoint', path, *flags, '--attack-eps', *epsilons)
    pixels, _ = pixels_of(textures)
    assert len(passes) == 4
    for word, (inputs, _) in zip(epsilons, passes):
        attacked = inputs * 0.5 + 0.5
        assert attacked.min() >= -1e-6 and attacked.max() <= 1 + 1e-6
        change = (attacked - pixels).flatten(1)
        size = change.norm(dim=1) if norm == 'l2' else 255 * change.abs().amax(1)
        assert (size <= float(word) * (1 + 1e-4) + 1e-3).all() and (size > 0.5 * float(word) - 1e-3).all()
    # Nothing is changed by no epsilon, to the last bit, and accuracy falls from one to the next.
    accuracies = [results[f'{flags[1]}_{norm}_{word}_top1'] for word in epsilons]
    assert accuracies[0] == results['top1'] and passes[0][1]['loss'] == results['loss']
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0]


def test_the_start_of_an_attack_depends_on_image_and_seed_only(textures, weights, results_of, passes):
    path, _ = weights()
    words = [textures, *RESNET, '--checkpoint', path, '--attack', 'pgd', '--attack-eps', '4', '--attack-steps', '1',
             '--attack-step-size', '0.1']
    for batch_size, seed in ((5, 42), (3, 42), (5, 7)):
        results_of(*words, '--seed', seed, '-b', batch_size)
    inputs = [inputs for inputs, _ in passes]
    assert (inputs[0] - inputs[1]).abs().max() < 2.01 * 0.1 / 255 / 0.5  # where rounding turns a sign
    assert (inputs[0] - inputs[2]).abs().mean() > 1e-3


def attack_of(epsilon=4.):
    """An Attack on a linear model of 3 classes, with the mean and standard deviation of ImageNet."""
    args = parse_validate_args(['x', '--attack', 'pgd', '--seed', '5'])
    torch.manual_seed(0)
    subject = types.SimpleNamespace(
        model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 3)), num_classes=3,
        data_config=dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD),
        options=args, device=torch.device('cpu'), precision=Precision())
    return attacked.Attack(subject, epsilon)


def test_an_attack_of_epsilon_0_changes_no_bit_of_any_level():
    levels = torch.arange(256.).expand(2, 3, 1, 256)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    input = (levels - 255 * mean) / (255 * std)
    assert torch.equal(attack_of(epsilon=0.)(input, torch.tensor([0, 1])), input)
    pixels = attack_of(epsilon=4.)(input, torch.tensor([0, 1])) * std + mean
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 and (pixels - levels / 255).abs().max() < 4.001 / 255


def test_ranks_start_attacks_like_one_process(monkeypatch):
    """The second of two ranks has every other image, beginning with the second."""
    of_one = attack_of()._start(torch.zeros(10, 3, 1, 256))
    monkeypatch.setattr(attacked, 'rank', lambda: 1)
    monkeypatch.setattr(attacked, 'world_size', lambda: 2)
    attack, images = attack_of(), torch.zeros(5, 3, 1, 256)
    starts = torch.cat([attack._start(images[:3]), attack._start(images[:2])])
    assert torch.equal(starts, of_one[1::2]) and not torch.equal(of_one[0], of_one[1])


def test_attacks_use_only_outputs_of_valid_labels(textures, weights, results_of, tmp_path):
    path, model = weights((8, 2, 5), num_classes=9)
    model.requires_grad_(False)
    (tmp_path / 'valid.txt').write_text('8\n2\n5\n')
    results = results_of(textures, '--model', 'test_resnet', '--num-classes', 9, '--img-size', SIZE, '--checkpoint',
                         path, '--valid-labels', tmp_path / 'valid.txt', '--attack', 'fgsm', '--attack-eps', 3)
    images, target = pixels_of(textures)

    def classify(x):
        return model((x - 0.5) / 0.5)[:, [8, 2, 5]]
    attacked = pgd(classify, images, target, 3 / 255, steps=1, step_size=3 / 255)
    assert results['fgsm_linf_3_top1'] == pytest.approx(top1(classify(attacked), target), abs=1e-3)


# ---- Corruptions ----

@pytest.fixture(scope='module')
def corrupted(textures, tmp_path_factory):
    """Folder of darker textures: dark/1 and dark/4 by 40 and 160 levels, and gray ones: extra/grey/2."""
    root = tmp_path_factory.mktemp('corrupted')
    for name, severity in (('dark', 1), ('dark', 4), ('extra/grey', 2)):
        for source in (textures / 'val').rglob('*.png'):
            path = root / name / str(severity) / source.relative_to(textures / 'val')
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(source)).astype(int)
            pixels = (pixels - 40 * severity).clip(0) if name == 'dark' else pixels.mean(2, keepdims=True).repeat(3, 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def error_on(model, root, folder):
    os.makedirs(root / 'link' / folder.replace('/', '-'), exist_ok=True)
    link = root / 'link' / folder.replace('/', '-') / 'val'
    if not link.exists():
        link.symlink_to(root / folder)
    images, target = pixels_of(link.parent, crop_pct=1.)
    with torch.no_grad():
        return 100 - top1(model((images - 0.5) / 0.5), target)


def test_errors_of_a_folder_of_corruptions(textures, corrupted, weights, results_of, tmp_path):
    path, model = weights()
    words = [textures, *RESNET, '--checkpoint', path, '--corruptions-dir', corrupted]
    results = results_of(*words)
    expected = {folder: error_on(model, corrupted, folder) for folder in ('dark/1', 'dark/4', 'extra/grey/2')}
    assert len(set(expected.values())) > 1
    for name, folder in (('dark_1_err', 'dark/1'), ('dark_4_err', 'dark/4'), ('grey_2_err', 'extra/grey/2')):
        assert results[name] == pytest.approx(expected[folder], abs=1e-3)
    dark = (expected['dark/1'] + expected['dark/4']) / 2
    assert results['dark_err'] == pytest.approx(dark, abs=1e-3)
    assert results['corruption_err'] == pytest.approx((dark + expected['extra/grey/2']) / 2, abs=1e-3)
    assert 'mce' not in results, 'not ImageNet-C'
    some = results_of(*words, '--corruptions', 'dark', '--severities', 4)
    assert [name for name in some if name.endswith('_err') and 'top' not in name] == [
        'dark_4_err', 'dark_err', 'corruption_err']


def test_corrupted_images_of_other_classes_are_refused(textures, weights, refusal, tmp_path):
    path, _ = weights()
    for name in ('ant', 'bee'):
        (tmp_path / 'fog' / '1' / name).mkdir(parents=True)
        Image.new('RGB', (SIZE, SIZE)).save(tmp_path / 'fog' / '1' / name / '0.png')
    line = refusal(textures, *RESNET, '--checkpoint', path, '--corruptions-dir', tmp_path, built=True)
    assert '--corruptions-dir' in line and 'other classes' in line


def test_imagenet_c_has_errors_relative_to_alexnet(monkeypatch, textures, corrupted, weights, results_of):
    """It needs all 15 corruptions at all severities, and the classes of ImageNet."""
    listed = [robustness_columns.Corruption(name, severity, str(corrupted / 'dark' / '4'))
              for name in ALEXNET_ERRORS for severity in range(1, 6)]
    monkeypatch.setattr(robustness_columns, 'list_corruptions', lambda args: listed)
    monkeypatch.setattr(Evaluation, 'run', lambda *args, **kwargs: dict(top1=60., top5=90., loss=1.))
    monkeypatch.setattr(ImageNetInfo, 'label_names', lambda self: ['cat', 'ant', 'bee'])
    results = results_of(textures, *RESNET, '--checkpoint', weights()[0], '--corruptions-dir', corrupted)
    assert results['mce'] == pytest.approx(np.mean([4000 / error for error in ALEXNET_ERRORS.values()]), abs=1e-3)
    assert results['corruption_err'] == 40.


@pytest.fixture
def package(monkeypatch):
    """A replacement of imagecorruptions-imaug: `fog` is noise of numpy's generator, `dark` draws no number."""
    package, module = types.ModuleType('imagecorruptions'), types.ModuleType('imagecorruptions.corruptions')

    def glass_blur(x, severity, seed):
        return x

    def impulse_noise(x, severity, seed):
        return x

    def corrupt(image, severity, name, **own):
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        if name == 'dark':
            return (image.astype(int) - 40 * severity).clip(0).astype(np.uint8)
        return np.random.randint(0, 256, image.shape).astype(np.uint8)
    module.glass_blur, module.impulse_noise = glass_blur, impulse_noise
    package.corruptions, package.corrupt = module, corrupt
    package.get_corruption_names = lambda subset: ['fog', 'dark']
    monkeypatch.setitem(sys.modules, 'imagecorruptions', package)
    monkeypatch.setitem(sys.modules, 'imagecorruptions.corruptions', module)


def test_images_are_corrupted_when_they_are_read(package, textures, corrupted, weights, results_of, passes):
    path, model = weights()
    words = [textures, *RESNET, '--checkpoint', path, '--corruptions', 'all', '--crop-pct', 1]
    results = results_of(*words, '--severities', 4, 1)
    assert results['dark_4_err'] == pytest.approx(error_on(model, corrupted, 'dark/4'), abs=1e-3)
    assert results['dark_1_err'] == pytest.approx(error_on(model, corrupted, 'dark/1'), abs=1e-3)
    assert list(results)[-6:] == ['fog_4_err', 'dark_1_err', 'dark_4_err', 'fog_err', 'dark_err', 'corruption_err']
    # The same noise for another checkpoint, with workers, without the prefetcher.
    results_of(textures, *RESNET, '--checkpoint', weights(seed=4)[0], '--corruptions', 'fog', '--severities', 1,
               '--crop-pct', 1, '--no-prefetcher')
    assert (passes[0][0] - passes[-1][0]).abs().max() < 1e-6


# ---- Stress, agreement, calibration ----

def test_stress_is_drawn_by_image_and_seed(textures, weights, results_of, passes):
    path, _ = weights()
    words = [textures, *RESNET, '--checkpoint', path, '--stress', 'jitter', 'crop']
    results = results_of(*words)
    assert list(results)[-2:] == ['jitter_top1', 'crop_top1']
    assert {**results_of(*words, '-b', 3), 'loss': 0} == {**results, 'loss': 0}
    results_of(*words, '--seed', 1)
    plain, _ = pixels_of(textures)
    for first in range(2):
        inputs = [inputs for inputs, _ in passes[first::2]]
        assert torch.equal(inputs[0], inputs[1]) and not torch.equal(inputs[0], inputs[2])
        assert (inputs[0] * 0.5 + 0.5 - plain).abs().mean() > 0.02


def test_agreement_without_augmentation_is_complete(ema_run, photos, results_of, weights, monkeypatch, passes):
    """Agreement uses the augmentation of the run. Without augmentation, a model agrees with itself."""
    path = str(ema_run / 'last.pth.tar')
    words = [photos, '--checkpoint', path, '--use-ema', '--agreement', '-j', '0', '--device', 'cpu']
    results = results_of(*words)
    assert 0 <= results['agreement'] <= 100 and results['agreement_kl'] > 0
    assert results_of(*words)['agreement_kl'] == results['agreement_kl']
    saved = evaluated_model.saved_options
    monkeypatch.setattr(
        evaluated_model, 'saved_options', lambda path, **given: {**saved(path, **given), 'no_aug': True})
    still = results_of(*words)
    assert still['agreement'] == 100. and still['agreement_kl'] == pytest.approx(0., abs=1e-4)
    images, _ = pixels_of(photos, crop_pct=1., crop_mode='squash')
    for view in passes[-1][0].unflatten(0, (6, 2, 2)).unbind(1):  # of 6 batches of 2 images
        torch.testing.assert_close(view.flatten(0, 1), (images - 0.5) / 0.5, rtol=0, atol=1e-5)
    assert {name: still[name] for name in still if 'agree' not in name} == {
        name: results[name] for name in results if 'agree' not in name}


def test_calibration_error_equals_that_of_the_outputs(textures, weights, results_of):
    path, model = weights()
    images, target = pixels_of(textures)
    with torch.no_grad():
        totals = CalibrationBins()
        totals.update(model((images - 0.5) / 0.5), target)
    expected = totals.compute().error
    results = results_of(textures, *RESNET, '--checkpoint', path, '--calibration')
    assert results['ece'] == pytest.approx(100 * expected, abs=1e-3) and expected > 0.01


# ---- Everything at once ----

ALL = ['--calibration', '--agreement', '--stress', 'crop', '--attack', 'pgd', '--attack-eps', '4', '--attack-steps',
       '2']


def test_results_of_ranks_equal_those_of_one_process(textures, corrupted, weights, results_of, tmp_path):
    words = [str(textures), *RESNET, '--checkpoint', weights()[0], *ALL, '--corruptions-dir', str(corrupted),
             '--results-file', str(tmp_path / 'ranks'), '--results-format', 'json', '--report-dir', str(tmp_path / 'r')]
    ranks = start_ranks(2, tmp_path / 'logs', validate_cli.main, [*words, *SMALL_VALIDATION])
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path / 'logs')
    of_ranks, of_one = json.loads((tmp_path / 'ranks').read_text()), results_of(*words)
    assert of_ranks == {name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                        for name, value in of_one.items()}
    assert {'ece', 'agreement', 'agreement_kl', 'crop_top1', 'dark_err', 'pgd_linf_4_top1'} <= set(of_one)


@pytest.mark.slow
def test_a_folder_of_checkpoints_has_a_row_and_a_column_for_each(textures, weights, results_of, tmp_path):
    for seed in (3, 4):
        os.link(weights(seed=seed)[0], tmp_path / f'{seed}.pth')
    rows = results_of(textures, *RESNET, '--checkpoint', tmp_path, *ALL, '--report-dir', tmp_path / 'report')
    with open(tmp_path / 'report' / 'robustness.csv', newline='') as f:
        read = list(csv.DictReader(f))
    assert [row['checkpoint'] for row in read] == [row['checkpoint'] for row in rows] and len(rows) == 2
    for row in rows:
        alone = results_of(textures, *RESNET, '--checkpoint', row['checkpoint'], *ALL)
        assert {**alone, 'aliases': row['aliases']} == row
    lines = (tmp_path / 'report' / 'robustness.md').read_text().splitlines()
    assert lines[0] == '|  | ' + ' | '.join(os.path.basename(row['checkpoint']) for row in rows) + ' |'
    assert any(line.startswith('| pgd_linf_4_top1 | ') for line in lines)


# ---- Refusals ----

@pytest.mark.parametrize('flags, named', [
    (['--corruptions-dir', 'missing'], "--corruptions-dir 'missing"),
    (['--corruptions-dir', '.'], 'has no folders NAME/1'),
    (['--attack-eps', '-1', '--attack', 'fgsm'], '--attack-eps'),
    (['--attack', 'cw'], '--attack'),
    (['--attack', 'pgd', '--attack-steps', '0'], '--attack-steps'),
    (['--attack', 'pgd', '--attack-step-size', '0'], '--attack-step-size'),
    (['--attack', 'pgd', '--model-dtype', 'bfloat16'], '--model-dtype bfloat16'),
    (['--attack', 'pgd', '--aot-autograd'], '--aot-autograd'),
    (['--attack', 'pgd', '--naflex-loader'], '--naflex-loader'),
    (['--severities', '6', '--corruptions', 'fog'], '--severities'),
    (['--stress', 'rain'], '--stress'),
    (['--stress', 'crop', '--dataset', 'wds/x'], "--dataset 'wds/x"),
    (['--agreement', '--dataset', 'hfds/x', '--task', 'multilabel'], '--task multilabel'),
    (['--calibration', '--dataset', 'hfds/x', '--task', 'multilabel'], '--task multilabel'),
    (['--report-dir', 'file/x'], "--report-dir 'file/x'"),
])
def test_invalid_options_are_refused_before_anything_is_built(
        flags, named, textures, weights, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    assert named in refusal(textures, *RESNET, '--checkpoint', weights()[0], *flags)


def test_unknown_corruptions_are_refused(package, corrupted, textures, weights, refusal, tmp_path):
    words = [textures, *RESNET, '--checkpoint', weights()[0]]
    assert "--corruptions 'rain': 'imagecorruptions-imaug' has 'fog', 'dark" in refusal(*words, '--corruptions', 'rain')
    assert "has 'dark', 'grey'" in refusal(*words, '--corruptions', 'rain', '--corruptions-dir', corrupted)
    line = refusal(*words, '--corruptions', 'common', '--corruptions-dir', corrupted)
    assert f"--corruptions common: '{corrupted}' has none of the 15 common ones, only 'dark', 'grey': name" in line
    assert '--severities 5' in refusal(*words, '--severities', 5, '--corruptions-dir', corrupted)
    assert '32 pixels' in refusal(*words[:-3], '28', *words[-2:], '--corruptions', 'fog', built=True)


def test_a_missing_package_is_named(textures, weights, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    assert 'agmax_timm[robust]' in refusal(textures, *RESNET, '--checkpoint', weights()[0], '--corruptions', 'fog')


@pytest.mark.parametrize('flags, warned', [
    (['--attack-eps', '1'], '--attack-eps has no effect without --attack'),
    (['--attack', 'fgsm', '--attack-steps', '3'], '--attack-steps has no effect without --attack pgd'),
    (['--severities', '3'], '--severities has no effect')])
def test_options_without_effect_warn(flags, warned, capsys):
    parse_validate_args(['data', *flags])
    assert warned in capsys.readouterr().err


# ---- Classes of ImageNet ----

@pytest.mark.parametrize('subset, count', [('imagenet-a', 200), ('imagenet-r', 200), ('mini-imagenet', 100)])
def test_subsets_of_imagenet_classes_equal_those_of_timm(subset, count, results_of, refusal, tmp_path, monkeypatch):
    """The first pixel of an image names the output that the model predicts."""
    known = ImageNetInfo().label_names()
    info = os.path.join(os.path.dirname(timm.data.__file__), '_info', subset.replace('-', '_') + '_synsets.txt')
    with open(info) as f:
        synsets = f.read().split()
    for synset in synsets:
        (tmp_path / 'val' / synset).mkdir(parents=True)
        index = known.index(synset)
        pixels = np.full((SIZE, SIZE, 3), (index % 256, index // 256 * 60, 0), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'val' / synset / 'x.png')
    monkeypatch.setattr(evaluated_model, 'create_named_model', lambda *args, **kwargs: ReadsItsClass())
    words = [tmp_path, '--model', 'test_resnet', '--valid-labels', subset]
    assert len(synsets) == count and results_of(*words, '--crop-pct', 1)['top1'] == 100.
    os.rename(tmp_path / 'val' / synsets[3], tmp_path / 'val' / 'n00000001')
    line = refusal(*words, built=True)
    assert '--valid-labels' in line and 'n00000001' in line


class ReadsItsClass(torch.nn.Module):
    """Logits of 1,000 classes. The class with the highest logit is red + 256 * green / 60."""
    pretrained_cfg = dict(input_size=(3, SIZE, SIZE), mean=(0., 0., 0.), std=(1., 1., 1.), crop_pct=1.)
    num_classes = 1000

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        red, green = (255 * x[:, channel].mean((1, 2)) for channel in range(2))
        index = red + 256 * (green / 60)
        return self.factor * -(index[:, None] - torch.arange(1000.)).abs()


def test_label_files_of_timm_are_found_by_name():
    assert parse_validate_args(['x', '--real-labels', 'imagenet']).real_labels.endswith('imagenet_real_labels.json')
    assert parse_validate_args(['x', '--valid-labels', 'imagenet-r']).valid_labels.endswith('imagenet_r_indices.txt')
    for words in (['--real-labels', 'imagenet-a'], ['--valid-labels', 'imagenet-z'], ['--valid-labels', '../x']):
        with pytest.raises(SystemExit):
            parse_validate_args(['x', *words])


def test_an_ambiguous_corruption_name_is_refused(textures, weights, refusal, tmp_path):
    for folder in ('blur/2', 'blur_2/1'):
        for name in ('ant', 'bee', 'cat'):
            (tmp_path / folder / name).mkdir(parents=True)
    line = refusal(textures, *RESNET, '--checkpoint', weights()[0], '--corruptions-dir', tmp_path)
    assert "'blur_2'" in line and 'rename' in line
