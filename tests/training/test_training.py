"""Complete runs of train.py and validate.py, against loops over timm's parts."""
import json
import math
import pickle
import re
import shlex
import sys
from argparse import Namespace

import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch.nn import CrossEntropyLoss

from agmax_timm import AgMaxTask, create_two_view_loader
from agmax_timm.assembly.model import Precision
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.training.output import log
from agmax_timm.training.output.log import plot_curves
from agmax_timm.training.updates import loop
from agmax_timm.training.updates.step import Step, Training
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.ranks import finish_ranks, logs, start_ranks
from tests.helpers.run_files import load, summary
from tests.helpers.updates import NoCheck

SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--log-interval', '1']


@pytest.fixture
def train(photos, tmp_path):
    """Function: a run of train.py with these flags on the photos; returns its folder."""
    def run(*argv, experiment='run'):
        train_cli.main([str(photos), *SMALL, '--output', str(tmp_path), '--experiment', experiment, *argv])
        return tmp_path / experiment
    return run


@pytest.fixture
def validate(photos, capsys):
    """Function: the results that validate.py prints."""
    def run(*argv):
        capsys.readouterr()
        validate_cli.main([str(photos), '-j', '0', *map(str, argv)])
        return json.loads(capsys.readouterr().out.split('--result\n')[1])
    return run


def reference_run(photos, two_views, epochs, accum_steps=1, mixup=None, model_ema_decay=None):
    """The same training as a plain loop over timm's parts; validation only draws its random numbers."""
    random_seed(42, 0)
    model = create_model('test_resnet', num_classes=3)
    train_set = create_dataset('', str(photos), split='train', is_training=True)
    eval_set = create_dataset('', str(photos), split='val')
    # Flags' defaults where they differ from create_loader's; mean and std are the model's.
    common = dict(mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device('cpu'), num_workers=0)
    loader_kwargs = dict(interpolation='random', scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], **common)
    if two_views:
        loader = create_two_view_loader(train_set, (3, 32, 32), 4, mixup=mixup, **loader_kwargs)
    else:
        loader = create_loader(train_set, (3, 32, 32), 4, is_training=True, **loader_kwargs)
    eval_loader = create_loader(eval_set, (3, 32, 32), 4, crop_pct=0.95, **common)
    hard = CrossEntropyLoss() if two_views else LabelSmoothingCrossEntropy(0.1)  # AgMax has none by default
    criterion = SoftTargetCrossEntropy() if mixup else hard
    task = AgMaxTask(model, criterion) if two_views else None
    trained = task.get_trainable_module() if two_views else model
    optimizer = create_optimizer_v2(trained, 'sgd', lr=0.05, weight_decay=2e-5, momentum=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=epochs, warmup_lr=1e-5)
    for epoch in range(epochs):
        trained.train()
        batches = list(loader)
        updates = [batches[i:i + accum_steps] for i in range(0, len(batches), accum_steps)]
        for update in updates:
            optimizer.zero_grad()
            for input, target in update:
                loss = task(input, target)['loss'] if two_views else criterion(model(input), target)
                (loss / len(update)).backward()
            optimizer.step()
        model.eval()
        for _ in eval_loader:
            pass
        scheduler.step(epoch + 1)
    return model, task


@pytest.mark.parametrize('accum_steps', [1, 2], ids=['', 'accumulation with a remainder'])
@pytest.mark.parametrize('two_views', [False, True], ids=['plain', 'agmax'])
def test_a_run_equals_a_plain_loop_to_the_last_bit(train, photos, two_views, accum_steps):
    flags = ['--agmax'] if two_views else []
    folder = train('--epochs', '2', '--grad-accum-steps', str(accum_steps), *flags)
    expected, task = reference_run(photos, two_views, epochs=2, accum_steps=accum_steps)
    checkpoint = load(folder / 'last.pth.tar')
    torch.testing.assert_close(checkpoint['state_dict'], dict(expected.state_dict()), rtol=0, atol=0)
    if two_views:
        torch.testing.assert_close(
            checkpoint['task_state']['qnet'], dict(task.get_task_state()['qnet']), rtol=0, atol=0)


def test_a_mixed_run_equals_a_plain_loop_to_the_last_bit(train, photos):
    folder = train('--epochs', '1', '--agmax', '--cutmix', '1', '--mixup', '0.5', '--mixup-mode', 'elem')
    mixup = dict(mixup_alpha=0.5, cutmix_alpha=1., mode='elem', label_smoothing=0., num_classes=3)
    expected, _ = reference_run(photos, True, epochs=1, mixup=mixup)
    torch.testing.assert_close(
        load(folder / 'last.pth.tar')['state_dict'], dict(expected.state_dict()), rtol=0, atol=0)


def test_validate_repeats_the_metrics_of_training_for_raw_and_ema_weights(train, validate):
    folder = train('--agmax', '--epochs', '2', '--model-ema', '--model-ema-decay', '0.5')
    row = summary(folder)[-1]
    for prefix, flags in (('raw', []), ('ema', ['--use-ema'])):
        results = validate('--checkpoint', folder / 'last.pth.tar', *flags)
        assert results['loss'] == float(row[f'{prefix}_loss'])
        assert results['top1'] == round(float(row[f'{prefix}_top1']), 4)
        assert results['top5'] == round(float(row[f'{prefix}_top5']), 4)
    assert row['raw_loss'] != row['ema_loss']
    assert row['eval_loss'] == row['ema_loss']


def test_validation_on_two_ranks_counts_every_image_once(train, photos, tmp_path):
    folder = train('--agmax', '--epochs', '1')
    odd = tmp_path / 'odd'
    for i, path in enumerate(sorted((photos / 'val').rglob('*.jpg'))):
        if i != 5:  # 11 images: the sampler pads the second of two ranks
            link = odd / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    checkpoint = str(folder / 'last.pth.tar')
    argv = [str(odd), '-j', '0', '--checkpoint', checkpoint, '--results-format', 'json', '--results-file']
    validate_cli.main([*argv, str(tmp_path / 'single.json')])
    ranks = start_ranks(2, tmp_path, validate_cli.main, [*argv, str(tmp_path / 'double.json')])
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path)
    single, double = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('single', 'double'))
    assert single['top1'] * 11 % 100 < 0.01, 'of 11 images'
    assert (double['top1'], double['top5']) == (single['top1'], single['top5'])
    assert math.isclose(double['loss'], single['loss'], rel_tol=1e-6)


def test_two_ranks_print_one_result(photos, tmp_path):
    ranks = start_ranks(2, tmp_path, train_cli.main, [
        str(photos), *SMALL, '-b', '2', '--agmax', '--epochs', '2', '--model-ema', '--clip-grad', '1',
        '--grad-accum-steps', '2', '--output', str(tmp_path), '--experiment', 'run'])
    assert finish_ranks(ranks) == [0, 0], logs(tmp_path)
    rows = summary(tmp_path / 'run')
    assert [row['epoch'] for row in rows] == ['0', '1']
    printed = logs(tmp_path)
    assert printed.count('--result') == 1
    lines = [line for line in printed.splitlines() if line.startswith('Train: ')]
    assert len(lines) == 2 * 2, 'every update once: 12 images in 3 batches of 2 x 2, 2 batches an update'


def test_sync_bn_is_refused_without_an_accelerator(photos, tmp_path):
    argv = [str(photos), *SMALL, '--sync-bn', '--device', 'cpu', '--output', str(tmp_path / 'output')]
    assert finish_ranks(start_ranks(2, tmp_path, train_cli.main, argv)) == [2, 2]
    assert 'error: --sync-bn needs an accelerator, got --device cpu' in logs(tmp_path)
    assert not (tmp_path / 'output').exists()


def test_a_checkpoint_loads_in_plain_timm(train, tmp_path):
    folder = train('--agmax', '--epochs', '1', '--channels-last')
    total = run_in_plain_timm(
        'import sys, timm\n'
        'm = timm.create_model("test_resnet", num_classes=3, checkpoint_path=sys.argv[1])\n'
        'print(sum(p.sum().item() for p in m.parameters()))', folder / 'last.pth.tar', cwd=tmp_path)
    model = create_model('test_resnet', num_classes=3)
    model.load_state_dict(load(folder / 'last.pth.tar')['state_dict'])
    assert float(total) == sum(p.sum().item() for p in model.parameters())


def test_resume_continues_after_the_epoch_of_the_checkpoint(train):
    folder = train('--agmax', '--epochs', '4', '--model-ema')
    resumed = train('--agmax', '--epochs', '4', '--model-ema', '--resume', str(folder / 'checkpoint-1.pth.tar'),
                    experiment='resumed')
    assert summary(resumed) == summary(folder), 'rows before and after the interruption'


def test_a_run_writes_its_files(train, monkeypatch):
    monkeypatch.setattr(log, 'plot_curves', plot_curves)
    folder = train(
        '--agmax', '--epochs', '2', '--mixup', '1', '--save-images', '--model-ema', '--recovery-interval', '2')
    names = {path.name for path in folder.iterdir()}
    assert {'args.yaml', 'summary.csv', 'train.log', 'curves.png', 'last.pth.tar', 'model_best.pth.tar',
            'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'views-0-0.png', 'recovery-1-1.pth.tar'} <= names
    assert Image.open(folder / 'curves.png').size[0] > 1000
    assert list(summary(folder)[0]) == [
        'epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr',
        'train_ce', 'train_agreement', 'train_divergence',
        'raw_loss', 'raw_top1', 'raw_top5', 'ema_loss', 'ema_top1', 'ema_top5']
    row = {name: float(value) for name, value in summary(folder)[0].items()}
    parts = row['train_ce'] + row['train_agreement'] + row['train_divergence']
    assert math.isclose(row['train_loss'], parts, abs_tol=1e-5)
    line = next(line for line in (folder / 'train.log').read_text().splitlines() if 'Train: 1 [' in line)
    number = r'-?[\d.]+(e[+-]?\d+)?'
    assert re.search(
        rf'Train: 1 \[   0/3 \( 33%\)\]  Loss: {number} \({number}\)  CE: {number} \({number}\)  '
        rf'Agreement: {number} \({number}\)  Divergence: {number} \({number}\)  '
        rf'Time: {number}s, +{number}/s  \({number}s, +{number}/s\)  LR: {number}  Data: {number} \({number}\)', line)


def test_a_run_ends_with_five_lines_of_summary(train, tmp_path, caplog):
    """The metric with its name, and commands that a shell accepts."""
    folder = train('--epochs', '2', '--model-ema', '--model-ema-decay', '0.5', experiment='my run')
    last = load(folder / 'last.pth.tar')
    metric, place, spent, report, predict = [record.getMessage() for record in caplog.records][-5:]
    best = max(last['saver']['checkpoint_files'] + [(None, last['metric'])], key=lambda file: file[1])[1]
    of_best = load(folder / 'model_best.pth.tar')
    assert of_best['metric'] == pytest.approx(best)
    assert metric.startswith(f"*** Best metric: {best:.6g} (epoch {of_best['epoch']}): top1 of the EMA")
    assert place == f"Folder: '{folder}'" and shlex.split(place) == ['Folder:', str(folder)]
    assert re.fullmatch(r'Time: 0\d:\d\d, \d+ images/s in the last epoch', spent)
    assert report == f"Report: python -m agmax_timm.report '{folder}'"
    assert predict == f"Predict: python -m agmax_timm.predict '{folder}' IMAGES"
    assert (folder / 'train.log').read_text().splitlines()[-1].endswith(predict)
    cost = last['agmax_state']['cost']
    assert 0 < cost['seconds'] < 60 and cost['images_per_second'] > 0 and cost['device'].startswith('cpu, ')


@pytest.mark.parametrize('flags, printed', [([], False), (['--result-json'], True)])
def test_a_terminal_shows_json_only_if_asked(train, capsys, monkeypatch, flags, printed):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    train('--epochs', '1', *flags)
    assert ('--result\n' in capsys.readouterr().out) is printed


def test_args_yaml_repeats_a_resumed_run_under_another_name(train, tmp_path):
    folder = train('--agmax', '--epochs', '2', '--stop-epoch', '1')
    train('--agmax', '--epochs', '2', '--resume', str(folder / 'last.pth.tar'))
    train_cli.main(['-c', str(folder / 'args.yaml'), '--experiment', 'again', '--resume', ''])
    once, again = (load(path / 'last.pth.tar')['state_dict'] for path in (folder, tmp_path / 'again'))
    torch.testing.assert_close(again, once, rtol=0, atol=0)
    assert len(summary(tmp_path / 'again')) == 2


def test_the_best_epoch_is_the_last_of_the_result(train, capsys):
    folder = train('--agmax', '--epochs', '3')
    results = json.loads(capsys.readouterr().out.split('--result\n')[1])
    top1 = [result['validation']['top1'] for result in results]
    assert top1 == sorted(top1)
    assert top1[-1] == max(float(row['eval_top1']) for row in summary(folder))
    assert load(folder / 'model_best.pth.tar')['metric'] == top1[-1]


def test_a_loss_of_nan_ends_the_run_and_is_not_saved(train, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train('--agmax', '--epochs', '3', '--lr', '1e30')
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'nan' in message and 'ce' in message and 'update' in message
    assert not list((tmp_path / 'run').glob('*.pth.tar'))
    assert not (tmp_path / 'run' / 'summary.csv').exists()


@pytest.mark.parametrize('flags', ['--in-chans 1', '--input-size 1 32 48', '--input-size 3 48 32 --channels-last',
                                   '--in-chans 1 --no-prefetcher --cutout 8 --mixup 1 --bce-loss',
                                   '--amp --amp-dtype bfloat16 --lighting 0.1 --train-crop-mode pad',
                                   '--torchcompile eager --model-ema --layer-decay 0.7 --clip-grad 1 --clip-mode agc'])
def test_validate_repeats_the_loss_of_training_with_common_flags(train, validate, flags):
    folder = train('--agmax', '--epochs', '1', *flags.split())
    row = summary(folder)[0]
    amp = ['--amp', '--amp-dtype', 'bfloat16'] if '--amp' in flags else []
    layout = [flag for flag in ('--no-prefetcher', '--channels-last') if flag in flags]
    results = validate('--checkpoint', folder / 'last.pth.tar', *amp, *layout)
    assert results['loss'] == float(row['raw_loss' if '--model-ema' in flags else 'eval_loss'])


def test_without_validation_the_training_loss_selects_the_best(train):
    folder = train('--agmax', '--epochs', '2', '--val-split', '')
    rows = summary(folder)
    assert 'eval_top1' not in rows[0]
    assert load(folder / 'model_best.pth.tar')['metric'] == min(float(row['train_loss']) for row in rows)


def test_the_device_is_read_only_at_log_intervals(photos, monkeypatch):
    """On a GPU, each read would wait for it."""
    reads = []
    for name in ('item', 'tolist', '__bool__', '__float__', '__int__', 'numpy'):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args, _name=name, _original=original, **kwargs: (
            reads.append(_name), _original(self, *args, **kwargs))[1])
    args = Namespace(agmax=True, aug_splits=0, grad_accum_steps=1, no_prefetcher=False, channels_last=False,
                     clip_grad=None, clip_mode='norm', world_size=1, synchronize_step=False, log_interval=4)
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(3, (4,)).repeat(2)) for _ in range(8)]
    task = AgMaxTask(create_model('test_resnet', num_classes=3))
    task(*batches[0])  # the first forward pass compares the targets of both views
    reads.clear()
    task.setup_ema()
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'sgd', lr=0.01)
    reports = []
    step = Step(Training(task, optimizer, args, torch.device('cpu'), Precision()), NoCheck())
    loop.train_one_epoch(0, step, batches, on_log=reports.append)
    assert [report.update_index for report in reports] == [0, 4, 7]
    assert reads == ['tolist'] * 4, 'one for each report, and one for the means of the epoch'


@pytest.mark.parametrize('argv, words', [
    (['--model', 'resnet1001'], ['--model', 'resnet1001']),
    (['--num-classes', '2'], ['3 classes', '--num-classes 3']),
    (['-b', '64'], ['64', '12 images']),
    (['--val-split', 'nowhere'], ['nowhere', 'train']),
    (['--data-dir', 'nowhere'], ['nowhere']),
    (['--resume', 'nowhere.pth.tar'], ['nowhere.pth.tar']),
    (['--dataset', 'torch/nothing'], ['torch/nothing']),
    (['--dataset', 'wds/nothing', '--train-split', 'x'], ['wds/nothing', "'x'"]),
])
def test_runs_that_cannot_be_built_are_refused_in_one_line(train, capsys, tmp_path, argv, words):
    with pytest.raises(SystemExit) as exit_info:
        train('--agmax', '--epochs', '1', *argv)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'error:' in message and all(word in message for word in words), message
    assert not (tmp_path / 'run').exists()


def test_a_folder_without_splits_is_not_used_for_training_and_validation(train, photos, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train('--agmax', '--data-dir', str(photos / 'train'))
    assert exit_info.value.code == 2
    assert "--val-split ''" in capsys.readouterr().err.splitlines()[-1]
    assert 'eval_top1' not in summary(train('--epochs', '1', '--data-dir', str(photos / 'train'), '--val-split', ''))[0]


def test_validate_refuses_files_that_are_not_checkpoints(validate, tmp_path, capsys):
    path = tmp_path / 'evil.pth.tar'
    path.write_bytes(pickle.dumps(print))
    for checkpoint in (path, tmp_path / 'nowhere.pth'):
        with pytest.raises(SystemExit) as exit_info:
            validate('--model', 'test_resnet', '--checkpoint', checkpoint)
        assert exit_info.value.code == 2
        assert checkpoint.name in capsys.readouterr().err
