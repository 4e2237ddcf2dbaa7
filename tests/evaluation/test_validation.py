"""validate.py: every flag against the same numbers computed in another way."""
import json
import os
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.models import create_model
from torch.utils.data import Dataset

from agmax_timm.assembly import datasets
from agmax_timm.assembly.model_input import build_data_config, input_channels
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import validate as validate_cli
from agmax_timm.evaluation import evaluated_model, metrics, passes, validation
from agmax_timm.options.parse import parse_validate_args
from agmax_timm.report import command as report
from tests.helpers.flags import SMALL_VALIDATION


@pytest.fixture
def subjects(monkeypatch):
    """List of the evaluated models."""
    seen, create = [], evaluated_model.create_evaluated_model

    def build(*args):
        seen.append(create(*args))
        return seen[-1]
    monkeypatch.setattr(evaluated_model, 'create_evaluated_model', build)
    return seen


def images_of(root, size=64, crop_pct=0.95, **kwargs):
    """All images [N, 3, H, W] and targets [N] of the folder's val, from timm's loader for test_resnet."""
    loader = create_loader(
        create_dataset('', str(root), split='val'), (3, size, size), 100, num_workers=0, device=torch.device('cpu'),
        interpolation='bilinear', mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=crop_pct, **kwargs)
    return next(iter(loader))


def top(logits, target, k):
    return 100 * np.mean([label in row for label, row in zip(
        target.tolist(), logits.double().argsort(1, descending=True)[:, :k].tolist())])


def check(results, logits, target):
    for k in (1, 5):
        assert results[f'top{k}'] == pytest.approx(top(logits, target, k), abs=1e-4)
        assert results[f'top{k}_err'] == pytest.approx(100 - results[f'top{k}'], abs=1e-4)
    assert results['loss'] == pytest.approx(F.cross_entropy(logits.double(), target).item(), rel=1e-4)


@pytest.mark.parametrize('flags', [[], ['--result-json']])
def test_a_terminal_shows_json_only_if_asked(photos, capsys, monkeypatch, flags):
    results = dict(model='test_resnet', top1=62.5, top1_err=37.5, loss=0.5)
    monkeypatch.setattr(validation, 'validate_model', lambda *args, **kwargs: results)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    validate_cli.main([*SMALL_VALIDATION, str(photos), '--model', 'test_resnet', *flags])
    printed = capsys.readouterr().out
    if flags:
        assert json.loads(printed.removeprefix('--result\n')) == results
    else:
        assert printed == 'test_resnet: top1 62.50, loss 0.5\n'


# ---- The model ----

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*torch.jit.script:FutureWarning')
@pytest.mark.parametrize('flags, kind', [
    ([], 'ResNet'),
    (['--torchscript'], 'RecursiveScriptModule'),
    (['--torchscript', '--fuser', 'te'], 'RecursiveScriptModule'),
    (['--torchcompile', 'eager'], 'OptimizedModule'),
    (['--aot-autograd'], '_FixedBatch'),
    (['--channels-last', '--no-prefetcher'], 'ResNet'),
    (['--retry'], 'ResNet'),
])
def test_metrics_are_equal_in_every_mode_of_execution(flags, kind, photos, weights, results_of, subjects):
    path, model = weights()
    results = results_of(photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path,
                         '--img-size', 64, *flags)
    images, target = images_of(photos)
    with torch.no_grad():
        check(results, model(images), target)
    assert type(subjects[0].model).__name__ == kind
    assert list(results)[:9] == ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size',
                                 'crop_pct', 'interpolation']


@pytest.mark.slow
def test_reparam_fuses_the_branches(photos, weights, results_of):
    path, model = weights('repvgg_a0')
    words = [photos, '--model', 'repvgg_a0', '--num-classes', 3, '--checkpoint', path, '--img-size', 32]
    results, fused = results_of(*words), results_of(*words, '--reparam')
    assert fused['top1'] == results['top1'] and fused['loss'] == pytest.approx(results['loss'], rel=1e-3)
    # one 3 x 3 convolution with bias in place of two convolutions and their batch norms
    kernels = sum(m.weight.numel() + m.out_channels for m in model.modules()
                  if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert fused['param_count'] == round((kernels + model.head.fc.weight.numel() + 3) / 1e6, 2)
    assert fused['param_count'] < results['param_count']


def test_test_pool_averages_windows_of_the_training_size(photos, weights, results_of, refusal):
    path, model = weights()
    words = [photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path, '--test-pool']
    results = results_of(*words, '--img-size', 224)
    images, target = images_of(photos, 224, crop_pct=1.)
    side = model.pretrained_cfg['pool_size'][0]
    with torch.no_grad():
        features = model.forward_features(images)
        windows = features.unfold(2, side, 1).unfold(3, side, 1).mean((-1, -2))  # [N, C, rows, columns]
        maps = torch.einsum('nchw,kc->nkhw', windows, model.fc.weight) + model.fc.bias[:, None, None]
    assert windows.shape[-1] > 1
    check(results, (maps.mean((2, 3)) + maps.amax((2, 3))) / 2, target)
    assert (results['crop_pct'], results['img_size']) == (1.0, 224)
    assert results_of(*words, '--img-size', 96)['crop_pct'] == 0.95  # nothing to pool over

    path, _ = weights('test_vit', img_size=192)
    line = refusal(photos, '--model', 'test_vit', '--num-classes', 3, '--checkpoint', path, '--test-pool',
                   '--img-size', 192, '--model-kwargs', 'img_size=192', built=True)
    assert "--test-pool: the configuration of 'test_vit' has no pool_size" in line


@pytest.mark.parametrize('name, reason', [
    ('test_convnext', 'its outputs at the training size change'),  # a layer norm after the pooling
    ('lcnet_050', "shape '[3, 256, 1, 1]' is invalid"),  # a convolution after the pooling, with more channels
])
def test_test_pool_is_refused_for_a_head_that_timm_would_change(name, reason, photos, weights, refusal):
    path, _ = weights(name)
    line = refusal(photos, '--model', name, '--num-classes', 3, '--checkpoint', path, '--test-pool', '--img-size', 256,
                   built=True)
    assert f"--test-pool: the head of '{name}' is not average pooling and one linear layer: " in line
    assert reason in line


@pytest.mark.parametrize('flags, named', [
    (['--num-gpu', 9999], '--num-gpu 9999'),
    (['--num-gpu', 0], '--num-gpu'),
    (['--fuser', 'fast'], '--fuser'),
    (['--crop-mode', 'centre'], "'centre'"),
    (['--naflex-loader'], '--naflex-loader needs a model that takes patches'),
    (['--naflex-loader', '--channels-last'], '--channels-last'),
    (['--tf-preprocessing', '--no-prefetcher'], '--no-prefetcher'),
    (['--real-labels', 'missing.json'], "--real-labels 'missing.json"),
    (['--valid-labels', 'missing.txt'], "--valid-labels 'missing.txt"),
    (['--results-file', 'missing/results.csv'], "--results-file 'missing/results.csv"),
    (['--task', 'multilabel'], '--task multilabel'),
    (['--task', 'multilabel', '--dataset', 'hfds/x', '--metrics-avg', 'macro'], '--metrics-avg'),
    (['--dataset', 'hfds/x', '--task', 'multilabel', '--multilabel-threshold', 1], '--multilabel-threshold'),
    (['--split', 'test'], "'test'"),
])
def test_invalid_options_are_refused_before_anything_is_built(flags, named, photos, refusal, weights):
    path, _ = weights()
    assert named in refusal(photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path, *flags)


def test_several_gpus_are_counted_from_0():
    with pytest.raises(OptionError, match='--device cuda:1 with --num-gpu 2: .* use --device cuda$'):
        evaluated_model._check_devices(Namespace(num_gpu=2), torch.device('cuda:1'))


@pytest.mark.parametrize('module, flags, built', [
    ('tensorflow', ['--tf-preprocessing'], False), ('functorch.compile', ['--aot-autograd'], True)])
def test_a_missing_package_is_named_in_one_line(module, flags, built, photos, refusal, weights, monkeypatch):
    path, _ = weights()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    line = refusal(photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path, *flags, built=built)
    assert flags[0] in line and module in line


# ---- Input ----

@pytest.mark.parametrize('mode', ['squash', 'border', 'center'])
def test_crop_mode_and_border_change_the_images(mode, photos, weights, results_of):
    path, model = weights()
    words = [photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path, '--img-size', 32]
    results = results_of(*words, '--crop-mode', mode, '--crop-pct', 0.8, '--crop-border-pixels', 9)
    images, target = images_of(photos, 32, crop_pct=0.8, crop_mode=mode, crop_border_pixels=9)
    plain, _ = images_of(photos, 32)
    assert (images - plain).abs().mean() > 0.01
    with torch.no_grad():
        check(results, model(images), target)


@pytest.mark.parametrize('flags', [[], ['--no-prefetcher']])
def test_naflex_metrics_equal_those_of_the_network(flags, weights, results_of, tmp_path):
    """64 x 64 pixels are 16 patches. With as many allowed, nothing is resized."""
    generator = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / 'data' / 'val' / f'class{number % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f'{number}.png')
    shape = dict(depth=1, embed_dim=32, num_heads=2)
    path, model = weights('naflexvit_base_patch16_gap', **shape)
    words = [tmp_path / 'data', '--model', 'naflexvit_base_patch16_gap', '--num-classes', 3, '--checkpoint', path,
             '--model-kwargs', *(f'{name}={value}' for name, value in shape.items())]
    words += ['--naflex-loader', '--naflex-max-seq-len']
    images, target = images_of(tmp_path / 'data', 64, crop_pct=1.)
    with torch.no_grad():
        logits = model(images)
    check(results_of(*words, 16, *flags), logits, target)
    fewer = results_of(*words, 4, *flags)['loss']
    assert abs(fewer - F.cross_entropy(logits, target).item()) > 1e-3  # the length is not ignored


@pytest.mark.parametrize('flags, size, channels', [
    ('', (1, 28, 28), 1), ('--in-chans 1', (1, 28, 28), 1), ('--in-chans 3', (3, 28, 28), 3),
    ('--img-size 64', (1, 64, 64), 1), ('--img-size 64 --in-chans 3', (3, 64, 64), 3),
    ('--input-size 3 32 32', (3, 32, 32), 3)])
def test_a_part_of_the_shape_of_the_input_leaves_the_rest_as_in_the_run(flags, size, channels):
    options = parse_validate_args(['DIR', '--checkpoint', 'FILE', *flags.split()])
    saved = dict(model='test_resnet', in_chans=1, img_size=28, input_size=(1, 28, 28))
    options = replace(options, **evaluated_model.options_of_run(options, saved))
    model = create_model('test_resnet', in_chans=input_channels(options))
    assert next(model.parameters()).shape[1] == channels
    assert build_data_config(options, model)['input_size'] == size


@pytest.mark.parametrize('flags, line', [
    ('--val-split-seed 7', '--val-split-seed 7 has images that the run trained on (it held out those of 42): leave the '
     'flag out'),
    ('--split 0.3', "--split '0.3' has images that the run trained on (it held out '0.1'): leave the flag out"),
    ('--split 0.05', None)])
def test_images_that_the_run_trained_on_warn(flags, line, caplog):
    options = parse_validate_args(['DIR', '--checkpoint', 'FILE', *flags.split()])
    evaluated_model.adopt_options(options, dict(model='test_resnet', val_split='0.1', train_split='train',
                                                val_split_seed=42))
    assert [record.getMessage() for record in caplog.records if record.levelname == 'WARNING'] == (
        [line] if line else [])


def test_the_weights_of_a_checkpoint_are_the_only_ones_that_are_loaded(weights, photos, monkeypatch):
    path, _ = weights()
    created = []
    create = evaluated_model.create_named_model
    monkeypatch.setattr(evaluated_model, 'create_named_model',
                        lambda *args, **kwargs: created.append(kwargs['pretrained']) or create(*args, **kwargs))
    validate_cli.main([str(photos), '--model', 'test_resnet', '--num-classes', '3', '--checkpoint', str(path),
                       '--pretrained', *SMALL_VALIDATION])
    assert created == [False]


def test_naflex_layout_without_naflex_warns(photos, capsys):
    parse_validate_args([str(photos), '--naflex-patchify-channels-first'])
    assert '--naflex-patchify-channels-first has no effect without --naflex-loader' in capsys.readouterr().err


# ---- Labels and metrics ----

def logits_of(model, root, **kwargs):
    images, target = images_of(root, **kwargs)
    with torch.no_grad():
        return model(images), target


def write_noise(root, counts):
    """Write images of coarse noise: so many of each class."""
    generator = np.random.default_rng(0)
    for label, count in enumerate(counts):
        (root / 'val' / str(label)).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(root / 'val' / str(label) / f'{number}.png')


def test_top5_of_eight_classes(weights, results_of, tmp_path):
    write_noise(tmp_path, [3] * 8)
    path, model = weights(num_classes=8)
    logits, target = logits_of(model, tmp_path)
    results = results_of(tmp_path, '--model', 'test_resnet', '--num-classes', 8, '--checkpoint', path, '--img-size', 64)
    check(results, logits, target)
    assert 0 < results['top1'] < results['top5'] < 100


def real_accuracy(logits, names, labels, k):
    """Share of the images with labels of which one of the first k predictions is a label."""
    hits = [bool(set(row[:k]) & set(labels[int(name[-13:-5]) - 1]))
            for row, name in zip(logits.argsort(1, descending=True).tolist(), names) if labels[int(name[-13:-5]) - 1]]
    return 100 * np.mean(hits)


def test_real_labels_replace_top1_and_top5(imagenet, weights, results_of, refusal, tmp_path, photos):
    path, model = weights(num_classes=8)
    labels = [[0], [1, 2], [], [7], [3, 4, 5], [2], [0, 7], [], [6], [5], [1], [3, 0]]
    (tmp_path / 'real.json').write_text(json.dumps(labels))
    words = ['--model', 'test_resnet', '--num-classes', 8, '--checkpoint', path, '--img-size', 64]
    words += ['--real-labels', tmp_path / 'real.json']
    logits, target = logits_of(model, imagenet)
    names = create_dataset('', str(imagenet), split='val').filenames(basename=True)
    results = results_of(imagenet, *words)
    for k in (1, 5):
        assert results[f'top{k}'] == pytest.approx(real_accuracy(logits, names, labels, k), abs=1e-4)
    assert results['top1_err'] == pytest.approx(100 - results['top1'], abs=1e-4)
    assert results['loss'] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-4)

    # outputs that are no classes are never predicted, and real labels keep the numbers of the outputs
    valid = logits.mean(0).argsort()[:3].tolist()
    (tmp_path / 'valid.txt').write_text(''.join(f'{output}\n' for output in valid))
    labels = [[valid[-1]]] * 12
    (tmp_path / 'real.json').write_text(json.dumps(labels))
    masked = torch.full_like(logits, -np.inf)
    masked[:, valid] = logits[:, valid]
    both = results_of(imagenet, *words, '--valid-labels', tmp_path / 'valid.txt')
    assert both['top1'] == pytest.approx(real_accuracy(masked, names, labels, 1), abs=1e-4)
    assert both['top1'] > real_accuracy(logits, names, labels, 1)

    assert 'ILSVRC2012_val' in refusal(photos, *words, built=True)
    (tmp_path / 'real.json').write_text('[[1]]')
    assert 'number of labels' in refusal(imagenet, *words, built=True)
    (tmp_path / 'real.json').write_text('[[')
    assert '--real-labels' in refusal(imagenet, *words, built=True)


def test_valid_labels_select_outputs(photos, weights, results_of, refusal, tmp_path):
    path, model = weights(num_classes=9)
    (tmp_path / 'valid.txt').write_text('8\n2\n5\n')
    words = [photos, '--model', 'test_resnet', '--num-classes', 9, '--checkpoint', path, '--img-size', 64,
             '--valid-labels', tmp_path / 'valid.txt']
    logits, target = logits_of(model, photos)
    check(results_of(*words), logits[:, [8, 2, 5]], target)
    for text, named in (('8\n2\n', 'has 2 lines, the data 3 classes'), ('8\n-1\n5', "line 2: '-1'"),
                        ('', 'is empty: write a line with the output of the model for each class of the data'),
                        ('8\n2\n9\n', "line 3: '9' is not an output of the model, which has 0 to 8: a line has the "
                         'output for one class of the data')):
        (tmp_path / 'valid.txt').write_text(text)
        line = refusal(*words, built=True)
        assert '--valid-labels' in line and named in line


def test_repeated_valid_labels_are_refused(tmp_path):
    (tmp_path / 'valid.txt').write_text('8\n\n2\n8\n')
    with pytest.raises(ValueError, match='line 4: .*8.* line 1'):
        metrics.read_valid_labels(str(tmp_path / 'valid.txt'), 9)


@pytest.mark.parametrize('average', ['macro', 'micro', 'weighted'])
def test_precision_recall_and_f1_equal_their_formulas(average, weights, results_of, tmp_path):
    write_noise(tmp_path, [2, 4, 9])
    path, model = weights()
    logits, target = logits_of(model, tmp_path)
    with torch.no_grad():
        model.fc.bias -= logits.mean(0)  # so that it predicts several classes
    torch.save(model.state_dict(), path)
    logits, target = logits_of(model, tmp_path)
    results = results_of(tmp_path, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', path, '--img-size',
                         64, '--metrics-avg', average)
    predicted = logits.argmax(1)
    assert len(predicted.unique()) == 3
    hit = torch.tensor([((predicted == c) & (target == c)).sum() for c in range(3)]).double()
    given = torch.tensor([(predicted == c).sum() for c in range(3)]).double()
    there = torch.tensor([(target == c).sum() for c in range(3)]).double()
    if average == 'micro':
        hit, given, there = hit.sum(0, True), given.sum(0, True), there.sum(0, True)
    weight = there / there.sum() if average == 'weighted' else torch.ones_like(there) / len(there)
    expected = dict(precision=hit / given.clamp(min=1), recall=hit / there, f1_score=2 * hit / (given + there))
    for name, value in expected.items():
        assert results[f'{average}_{name}'] == pytest.approx(100 * (weight * value).sum().item(), abs=1e-4)


class SeveralLabels(Dataset):
    """Random images with label indices, or with vectors of 0 and 1."""

    def __init__(self, multihot):
        generator = np.random.default_rng(5)
        self.images = generator.integers(0, 256, (11, 40, 40, 3), np.uint8)
        self.labels = generator.random((11, 4)) < 0.4
        self.multihot, self.transform, self.target_transform = multihot, None, None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        labels = self.labels[index]
        image = self.transform(Image.fromarray(self.images[index]))
        target = labels.astype(int).tolist() if self.multihot else np.flatnonzero(labels).tolist()
        return image, self.target_transform(target)


@pytest.mark.parametrize('format', ['indices', 'multihot'])
def test_metrics_of_several_labels_per_image_equal_their_formulas(format, weights, results_of, monkeypatch):
    path, model = weights(num_classes=4)
    data = SeveralLabels(format == 'multihot')
    monkeypatch.setattr(datasets, 'open_dataset', lambda *args, **kwargs: data)
    results = results_of('--dataset', 'hfds/x', '--model', 'test_resnet', '--num-classes', 4, '--checkpoint', path,
                         '--img-size', 32, '--task', 'multilabel', '--target-format', format,
                         '--multilabel-threshold', 0.3)
    images = torch.stack([torch.as_tensor(data[i][0]) for i in range(len(data))]).float()
    with torch.no_grad():
        logits = model((images / 255 - 0.5) / 0.5).double()
    there, predicted = torch.from_numpy(data.labels), logits.sigmoid() >= 0.3

    def f1(dim):
        both, all = (there & predicted).sum(dim).double(), there.sum(dim) + predicted.sum(dim)
        return 100 * (2 * both / all.clamp(min=1)).mean().item()

    def precision_at_each_hit(scores, labels):
        ranked = labels[scores.argsort(descending=True)].double()
        return ((ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)) * ranked).sum() / ranked.sum()
    expected = dict(
        map=100 * np.mean([precision_at_each_hit(logits[:, i], there[:, i]) for i in range(4)]),
        micro_f1=f1((0, 1)), macro_f1=f1(0), sample_f1=f1(1))
    assert list(results)[:5] == ['model', *expected]
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-4)
    assert results['loss'] == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, there.double()).item(), rel=1e-4)


# ---- The end ----

def test_an_interruption_of_the_only_model_is_one_line(weights, photos, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(passes, 'evaluate', interrupted)
    with pytest.raises(SystemExit) as end:
        validate_cli.main([str(photos), '--model', 'test_resnet', '--num-classes', '3', '--checkpoint', weights()[0],
                         '--img-size', '32', *SMALL_VALIDATION])
    captured = capsys.readouterr()
    assert end.value.code == 130 and captured.out == ''
    assert 'error: interrupted' in captured.err.splitlines()[-1] and 'Traceback' not in captured.err


def test_results_that_cannot_be_written_are_still_printed(weights, photos, results_of, caplog):
    words = [photos, '--model', 'test_resnet', '--num-classes', 3, '--checkpoint', weights()[0], '--img-size', 32]
    expected = results_of(*words)
    assert results_of(*words, '--results-file', '/dev/full', status=1) == expected
    assert "cannot write '/dev/full': No space left on device" in caplog.text


# ---- The classes of a checkpoint ----

@pytest.mark.parametrize('command', ['validate', 'report'])
def test_classes_in_another_order_than_in_training_are_refused(command, ema_run, photos, tmp_path, refusal, capsys):
    """Without the folder of the first of three classes, labels would be wrong by one."""
    for name in ('bee', 'cat'):
        os.makedirs(tmp_path / 'val', exist_ok=True)
        os.symlink(photos / 'val' / name, tmp_path / 'val' / name)
    if command == 'validate':
        line = refusal(tmp_path, '--checkpoint', ema_run / 'last.pth.tar', built=True)
    else:
        with pytest.raises(SystemExit) as end:
            report.main([str(ema_run), str(tmp_path), '--device', 'cpu', '-j', '0'])
        assert end.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
    assert "class 0 of the data is 'bee'" in line and "'ant'" in line
    (tmp_path / 'val' / 'ant').mkdir()
    (tmp_path / 'val' / 'ant' / '0.jpg').symlink_to(next((photos / 'val' / 'ant').iterdir()))
    if command == 'validate':
        validate_cli.main([str(tmp_path), '--checkpoint', str(ema_run / 'last.pth.tar'), *SMALL_VALIDATION])


def test_classes_with_other_names_warn(ema_run, photos, tmp_path, results_of, caplog):
    for name in ('ant', 'bee', 'cat'):
        os.makedirs(tmp_path / 'val', exist_ok=True)
        os.symlink(photos / 'val' / name, tmp_path / 'val' / f'{name}s')
    words = ['--checkpoint', ema_run / 'last.pth.tar']
    assert results_of(tmp_path, *words) == results_of(photos, *words)
    assert caplog.text.count('check that both names mean the same class') == 1
