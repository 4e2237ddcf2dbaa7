"""report.html: its numbers equal those of validate.py and scikit-learn, and its text is read as a browser reads it."""
import base64
import csv
import html
import io
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import to_tensor

from agmax_timm.base.errors import DataError
from agmax_timm.base.random_state import get_process_state
from agmax_timm.base.safe_load import read_file
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.shards import open_dataset
from agmax_timm.evaluation import passes, validation
from agmax_timm.evaluation.analysis import analyse
from agmax_timm.evaluation.outcomes import Mistake
from agmax_timm.options.changed_options import changed_options, train_command
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser
from agmax_timm.report import command, comparison, report
from agmax_timm.report import run as reported
from agmax_timm.report.page import Report, inline, render
from agmax_timm.weights.checkpoint import metadata_in, read_checkpoint, saved_options
from agmax_timm.weights.saved_model import read_model
from agmax_timm.weights.staging import recipe, stage

HOSTILE = {'ant': '<script>alert(1)<script>', 'bee': '"><img src=x onerror=alert(2)>', 'cat': "'&amp; ]]>"}
VOID = {'meta', 'img', 'br'}
# What can be wider than a phone, and what makes that no matter.
WIDE, SCROLLS = {'table'}, {'wide'}


class Page(HTMLParser):
    """A page as a browser reads it: `elements` (name, attributes, names and classes around it), `text`, `tables`.

    Raises AssertionError where a closing tag is not that of the element which is open.
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes, [*self.open]))
        if name == 'table':
            self.tables.append([])
        elif name == 'tr':
            self.tables[-1].append([])
        elif name in ('td', 'th'):
            self.tables[-1][-1].append('')
        if name not in VOID:
            self.open.append((name, attributes.get('class', '')))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, data):
        around = [name for name, _ in self.open]
        if 'style' not in around:
            self.text.append(data)
        if 'td' in around or 'th' in around:
            self.tables[-1][-1][-1] += data

    def all(self, name):
        return [attributes for found, attributes, _ in self.elements if found == name]

    def table(self, *head):
        return next(table[1:] for table in self.tables if table[0][:len(head)] == [*head])


def check_page(text):
    """Check that a page is well-formed, loads nothing, runs no script, and fits a phone."""
    page = Page(text)
    names = {name for name, _, _ in page.elements}
    assert not names & {'script', 'link', 'iframe', 'object', 'embed', 'form', 'base'}
    for name, attributes, around in page.elements:
        assert not [key for key in attributes if key.startswith('on') or key in ('href', 'srcset', 'action')]
        assert attributes.get('src', 'data:image/').startswith('data:image/')
        if name in WIDE:
            assert any(class_ in SCROLLS for _, class_ in around)
        if name == 'img':
            assert attributes['alt']
    assert not re.search(r'url\(|@import|https?:|//', text.split('</style>')[0])
    assert page.all('html')[0]['lang'] == 'en' and 'prefers-color-scheme: dark' in text
    assert [meta['content'] for meta in page.all('meta') if meta.get('http-equiv') == 'Content-Security-Policy'] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    return page


@pytest.fixture(scope='module')
def hostile_photos(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp('secret-place') / 'photos'
    for split in ('train', 'val'):
        for folder in (photos / split).iterdir():
            shutil.copytree(folder, root / split / HOSTILE[folder.name])
    return root


@pytest.fixture(scope='module')
def hostile_run(hostile_photos, tmp_path_factory):
    """Folder of a run with --report on classes whose names are HTML, and the class names in order."""
    output = tmp_path_factory.mktemp('secret-output')
    train_cli.main([
        str(hostile_photos), '--num-classes', '3', '-b', '4', '-j', '0', '--epochs', '2', '--model', 'test_resnet',
        '--img-size', '32', '--agmax', '--report', '--lr', '0.05', '--warmup-epochs', '0', '--color-jitter', '0',
        '--output', str(output), '--experiment', '<i>run'])
    return output / '<i>run'


@pytest.fixture(scope='module')
def hostile_page(hostile_run):
    return (hostile_run / 'report.html').read_text()


@pytest.fixture
def run_copy(ema_run, tmp_path):
    return shutil.copytree(ema_run, tmp_path / 'run')


def image_of(attributes):
    """The picture of an img element."""
    return Image.open(io.BytesIO(base64.b64decode(attributes['src'].split(',')[1]))).convert('RGB')


def predictions(monkeypatch, photos, *argv):
    """Classes that the model of validate.py predicts, the true classes, and the results."""
    seen = []
    evaluate = passes.evaluate

    def spy(*args, evaluator, **kwargs):
        update = evaluator.update
        evaluator.update = lambda output, target: (seen.append((output.argmax(1), target)), update(output, target))
        return evaluate(*args, evaluator=evaluator, **kwargs)
    monkeypatch.setattr(passes, 'evaluate', spy)
    args = parse_validate_args([str(photos), '-j', '0', *map(str, argv)])
    results = validation.validate_model(args, validation.start(args))
    return torch.cat([p for p, _ in seen]), torch.cat([t for _, t in seen]), results


def test_a_page_is_self_contained_and_escapes_names(hostile_page, hostile_run, hostile_photos):
    page = check_page(hostile_page)
    text = ''.join(page.text)
    names = sorted(HOSTILE.values(), key=str.lower)
    rows = page.table('class', 'precision', 'recall')
    assert sorted(row[0] for row in rows) == sorted(names)
    assert page.table('true \\ predicted') and all(name in text for name in names)
    assert page.all('h1') and '<i>run' in text and '<i>run' not in hostile_page
    for place in (hostile_photos.parent, hostile_run.parent):
        assert str(place) not in html.unescape(hostile_page) and place.name not in hostile_page
    assert len(hostile_page) < 2e6


def test_the_numbers_equal_those_of_validate(run_copy, photos, monkeypatch, capsys):
    from sklearn.metrics import precision_recall_fscore_support  # only here: the import takes seconds
    command.main([str(run_copy), '--device', 'cpu', '-j', '0'])
    assert capsys.readouterr().out == f'{run_copy}/report.html\n'
    page = check_page((run_copy / 'report.html').read_text())
    prediction, target, results = predictions(
        monkeypatch, photos, '--checkpoint', run_copy / 'model_best.pth.tar', '--use-ema', '--channels-last')
    text = ''.join(page.text)
    for value in (f"top-1 (%){results['top1']:.2f}", f"loss{results['loss']:.4g}", 'images12'):
        assert value in text, value
    assert f"top1 {results['top1']:.4g}" in text, 'as measured in training'
    assert 'model_best.pth.tar' in text and 'the EMA of the weights, by which' in text

    expected = precision_recall_fscore_support(target, prediction, labels=range(3), zero_division=0)
    rows = page.table('class', 'precision', 'recall', 'F1', 'images')
    assert [row[0] for row in rows] == ['ant', 'bee', 'cat']
    for row, *values, support in zip(rows, *expected):
        assert row[1:] == [*(f'{100 * value:.1f}' for value in values), str(support)]
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (target, prediction), 1)
    assert [[int(cell or 0) for cell in row[1:]] for row in page.table('true \\ predicted')] == confusion.tolist()
    assert len([1 for name, _, around in page.elements if name == 'img' and ('section', '') in around
                and not any(class_ == 'pair' for _, class_ in around)]) == confusion.sum() - confusion.trace()


def test_the_evaluation_equals_that_of_training_to_the_last_digit(run_copy, monkeypatch):
    seen = []
    evaluate = reported.evaluate
    monkeypatch.setattr(reported, 'evaluate', lambda *args: seen.extend([evaluate(*args), args[0]]) or seen[0])
    report.make_report(str(run_copy), device='cpu', workers=0)
    trained = read_model(str(run_copy), use_ema=True).metrics
    assert {name: trained[name] for name in ('loss', 'top1', 'top5')} == dict(seen[0].metrics)
    assert seen[1].channels_last, 'as in training'


def test_raw_evaluates_the_weights_without_averaging(run_copy, monkeypatch, capfd):
    seen = []
    evaluate = reported.evaluate
    monkeypatch.setattr(reported, 'evaluate', lambda *args: seen.append(evaluate(*args)) or seen[0])
    command.main([str(run_copy), '--device', 'cpu', '-j', '0', '--raw'])
    raw, ema = (read_model(str(run_copy), use_ema=use_ema).metrics for use_ema in (False, True))
    assert seen[0].metrics['loss'] == raw['loss'] != ema['loss']
    said = 'the raw weights; the run ranked'
    text = ''.join(check_page((run_copy / 'report.html').read_text()).text)
    assert all('model_best.pth.tar' in shown and said in shown for shown in (text, capfd.readouterr().err))
    assert f"in training: loss {raw['loss']:.4g}, top1 {raw['top1']:.4g}." in text  # no top-5


def test_the_curves_equal_the_summary(run_copy):
    report.make_report(str(run_copy), device='cpu', workers=0)
    page = check_page((run_copy / 'report.html').read_text())
    with open(run_copy / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    text = ''.join(page.text)
    for name, column in (('training', 'train_ce'), ('validation', 'eval_loss'), ('training', 'train_agreement'),
                         ('training', 'train_divergence'), ('validation of the EMA', 'ema_top1'),
                         ('validation', 'raw_top1'), ('learning rate', 'lr')):
        assert f'{name} {float(rows[-1][column]):.4g}' in text
    lines = page.all('polyline')
    assert len(lines) == 2 + 2 + 1 + 1 + 1 and all(len(line['points'].split()) == 4 for line in lines)


def test_the_head_states_the_share_of_the_most_frequent_class(run_copy):
    """Each of three classes has four images. There is no top-5 for so few classes."""
    report.make_report(str(run_copy), device='cpu', workers=0)
    page = check_page((run_copy / 'report.html').read_text())
    text = ''.join(page.text)
    cost = read_file(str(run_copy / 'last.pth.tar'))['agmax_state']['cost']
    best = read_file(str(run_copy / 'model_best.pth.tar'))['epoch']
    assert f'best epoch{best}' in text and 'majority class (%)33.33' in text and 'top-5' not in text
    assert f"on {cost['device']}, with {cost['images_per_second']:.0f} images/s" in text
    assert cost['date'] in text


def test_an_epoch_has_the_same_number_everywhere(run_copy, tmp_path):
    """From 0 on: in the log, summary.csv, file names, the last lines of the run, the report and the model card."""
    log = (run_copy / 'train.log').read_text()
    with open(run_copy / 'summary.csv', newline='') as f:
        top1 = {row['epoch']: float(row['eval_top1']) for row in csv.DictReader(f)}
    assert list(top1) == [str(number) for number in range(len(top1))]
    for pattern in (r'Train: (\d+) \[', r'Test \(EMA\) (\d+): '):
        assert list(dict.fromkeys(re.findall(pattern, log))) == list(top1)
    metric, best = re.search(r'Best metric: (\S+) \(epoch (\d+)\)', log).groups()
    assert float(metric) == pytest.approx(top1[best], rel=1e-5) and top1[best] == max(top1.values())
    assert {path.name for path in run_copy.glob('checkpoint-*')} == {f'checkpoint-{epoch}.pth.tar' for epoch in top1}
    report.make_report(str(run_copy), device='cpu', workers=0)
    page = (run_copy / 'report.html').read_text()
    assert f'best epoch{best}' in ''.join(check_page(page).text)
    assert set(re.findall(r'<title>[^,<]+, epoch (\d+): ', page)) == set(top1)
    stage(read_model(str(run_copy)), tmp_path / 'staged')
    assert f'after epoch {best} (counted from 0)' in (tmp_path / 'staged' / 'README.md').read_text()


def test_each_point_of_a_curve_has_its_value_as_title(run_copy):
    report.make_report(str(run_copy), device='cpu', workers=0)
    text = (run_copy / 'report.html').read_text()
    with open(run_copy / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        assert f"<title>validation, epoch {row['epoch']}: {float(row['eval_loss']):.5g}</title>" in text


def test_runs_are_compared_on_one_page(run_copy, photos, tmp_path, capsys):
    """A run and its copy with another option: the curves and recalls are equal."""
    other = shutil.copytree(run_copy, tmp_path / 'other <b>')
    for path in other.glob('*.pth.tar'):
        checkpoint = read_file(str(path))
        checkpoint['args'] = {**checkpoint['args'], 'lr': 0.125, 'output': 'elsewhere'}
        torch.save(checkpoint, path)
    page_path = tmp_path / 'both.html'
    command.main([str(run_copy), str(other), str(photos), '--device', 'cpu', '-j', '0', '--output', str(page_path)])
    assert capsys.readouterr().out == f'{page_path}\n'
    page = check_page(page_path.read_text())
    names = ['run', 'other <b>']
    assert page.table('option', *names) == [['lr', '0.05', '0.125']]
    metrics = {row[0]: row[1:] for row in page.table('', *names)}
    top1 = f"{read_model(str(run_copy), use_ema=True).metrics['top1']:.2f}"
    assert metrics['top-1 (%)'] == [top1, top1] and metrics['difference (points)'] == ['+0.00', '+0.00']
    assert metrics['best epoch'][0] == metrics['best epoch'][1] and metrics['device'][0].startswith('cpu')
    classes = page.table('class', *names, 'largest difference', 'images')
    evaluation = reported.evaluate_run(reported.read_run(str(run_copy), str(photos), None), 'cpu', 0)
    recall = {name: f'{100 * value:.1f}' for name, value in zip(
        evaluation.class_names, evaluation.analysis.per_class.recall.tolist())}
    assert {row[0]: row[1:3] for row in classes} == {name: [value, value] for name, value in recall.items()}
    lines = [line['class'] for line in page.all('polyline')]
    assert lines == ['line s0', 'line s1'] * (len(lines) // 2) and len(lines) == 2 * 7


def test_a_run_without_its_data_is_compared_by_the_metrics_of_training(run_copy, tmp_path, caplog):
    other = shutil.copytree(run_copy, tmp_path / 'other')
    path = comparison.compare_runs(
        [str(run_copy), str(other)], str(tmp_path / 'page.html'), str(tmp_path / 'nothing'), 'cpu', 0)
    page = check_page(Path(path).read_text())
    top1 = f"{read_model(str(run_copy), use_ema=True).metrics['top1']:.2f}"
    assert {row[0]: row[1:] for row in page.table('', 'run', 'other')}['top-1 (%)'] == [top1, top1]
    assert "other' is not evaluated" in caplog.text and 'its metrics are those of training' in ''.join(page.text)


def test_differences_are_relative_to_the_first_run_and_classes_sorted_by_them():
    def run_of(**metrics):
        return reported.ReportedRun('', {}, {}, '', {}, False, metrics, None, {})

    def evaluation_of(prediction, names=('a', 'b')):
        analysis = analyse(torch.tensor(prediction), torch.ones(4), torch.tensor([0, 0, 1, 1]), 2)
        return reported.RunResults(dict(top1=0.), 4, None, list(names), analysis)
    rows = {title: values for title, *values in comparison._metric_rows(
        [run_of(top1=50.), run_of(top1=52.5), run_of()], [None] * 3)}
    assert rows['top-1 (%)'] == ['50.00', '52.50', ''] and rows['difference (points)'] == ['+0.00', '+2.50', '']
    rows = {title: values for title, *values in comparison._metric_rows([run_of(), run_of(map=52.5)], [None, None])}
    assert rows['mAP (%)'] == ['', '52.50'] and rows['difference (points)'] == ['', '']
    evaluations = [evaluation_of([0, 0, 1, 1]), None, evaluation_of([0, 0, 0, 1]), evaluation_of([0] * 4, 'ac')]
    head, classes = comparison._class_rows(['x', 'y', 'z', 'other classes'], evaluations)
    assert head == ['class', 'x', 'z', 'largest difference', 'images']
    assert classes == [['b', '100.0', '50.0', '50.0', 2], ['a', '100.0', '100.0', '0.0', 2]]
    assert comparison.short_names(['runs/a', 'runs/b/']) == ['a', 'b']


def test_the_curves_of_runs_with_unequal_lines_share_their_axes(tmp_path):
    """One run with validation and EMA, one with validation, and one without."""
    summaries = dict(
        ema='epoch,train_loss,eval_loss,eval_top1,lr,raw_top1,ema_top1\n0,3,2,41,0.1,40,41\n',
        plain='epoch,train_loss,eval_loss,eval_top1,lr\n0,4,3,30,0.2\n',
        unseen='epoch,train_loss,lr\n0,5,0.3\n')
    runs = []
    for name, text in summaries.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'summary.csv').write_text(text)
        runs.append(reported.ReportedRun(str(tmp_path / name), {}, {}, '', {}, False, {}, None, {}))
    assert comparison._shared_panels(list(summaries), runs) == {
        'classification loss, training': {'ema': [(0, 3.)], 'plain': [(0, 4.)], 'unseen': [(0, 5.)]},
        'classification loss, validation': {'ema': [(0, 2.)], 'plain': [(0, 3.)]},
        'top-1 (%), validation': {'ema': [(0, 40.)], 'plain': [(0, 30.)]},
        'top-1 (%), validation of the EMA': {'ema': [(0, 41.)]},
        'learning rate': {'ema': [(0, .1)], 'plain': [(0, .2)], 'unseen': [(0, .3)]},
    }
    assert list(comparison._shared_panels(list(summaries), runs[2:])) == ['classification loss', 'learning rate']


@pytest.mark.parametrize('options, model, checked', [
    (dict(tta=0), 'test_resnet', True), (dict(tta=1), 'test_resnet', True), (dict(tta=2), 'test_resnet', False),
    (dict(world_size=2), 'test_resnet', True), (dict(world_size=2, dist_bn=''), 'test_resnet', False),
    (dict(world_size=2, dist_bn=''), 'test_vit', True),
    (dict(world_size=2, dist_bn='', sync_bn=True), 'test_resnet', True)])
def test_other_data_is_refused_if_an_evaluation_can_repeat_the_metric_of_training(options, model, checked):
    saved = {**vars(train_parser().parse_args([])), **options}
    run = reported.ReportedRun('', {}, saved, 'last.pth.tar', {}, False, dict(top1=90.), None, {})
    evaluation = reported.RunResults(dict(top1=10.), 12, SimpleNamespace(model=timm.create_model(model)), None)
    with pytest.raises(DataError, match='top1 10 on .* and training measured 90') if checked else nullcontext():
        reported._check_measured(run, evaluation)


def test_a_damaged_summary_leaves_out_only_the_curves(run_copy, caplog):
    (run_copy / 'summary.csv').write_text('epoch,train_loss\n0,abc\n')
    report.make_report(str(run_copy), device='cpu', workers=0)
    assert "summary.csv': lines that are no row of an epoch are left out: 1" in caplog.text
    assert (run_copy / 'report.html').exists()


def test_a_negative_number_of_workers_is_refused_in_one_line(run_copy, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main([str(run_copy), '-j', '-1'])
    assert exit_info.value.code == 2 and '--workers must be 0 or more, got -1' in capsys.readouterr().err


def test_the_views_are_two_draws_of_training_images(hostile_run, photo_numbers):
    saved = {**vars(train_parser().parse_args([])), **saved_options(str(hostile_run / 'model_best.pth.tar'))}
    names = sorted(HOSTILE.values())
    order = {name: index for index, name in enumerate(class_names(
        open_dataset('', root=saved['data_dir'], split='train')))}
    by_folder = {name: number for number, name in enumerate(HOSTILE.values())}
    torch.manual_seed(7)  # the report at the end of the run used the seed of the run
    before = get_process_state()
    views = report.training_views(saved, dict(
        input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear'),
        sorted(order, key=order.get))
    assert get_process_state() == before
    assert len(views) == 4 and sorted(order) == names
    seen = set()
    for images, label in views:
        numbers = photo_numbers(torch.stack([to_tensor(image) for image in images])).tolist()
        assert len(images) == 2 and numbers[0] == numbers[1] and numbers[0] // 4 == by_folder[label]
        assert images[0].tobytes() != images[1].tobytes(), 'two draws'
        seen.add(numbers[0])
    assert len(seen) == 4


def test_naflex_images_are_shown_and_evaluated_as_in_training(photos, photo_numbers, results_of, tmp_path):
    train_cli.main([
        str(photos), '--num-classes', '3', '-b', '8', '-j', '0', '--epochs', '1', '--agmax', '--report',
        '--save-images', '--model', 'naflexvit_base_patch16_gap', '--model-kwargs', 'embed_dim=16', 'depth=1',
        'num_heads=2', '--naflex-loader', '--naflex-train-seq-lens', '4', '--naflex-max-seq-len', '9',
        '--naflex-patchify-channels-first', '--lr', '0', '--warmup-epochs', '0', '--color-jitter', '0',
        '--output', str(tmp_path), '--experiment', 'run'])
    page = check_page((tmp_path / 'run' / 'report.html').read_text())
    shown = {kind: [attributes for name, attributes, around in page.elements if name == 'img'
                    and any(class_ == kind for _, class_ in around)] for kind in ('pair', 'mistakes')}
    assert len(shown['pair']) == 2 * 8
    assert 'at up to 9 patches (NaFlex).' in (tmp_path / 'run/report.html').read_text()
    results = results_of(photos, '--checkpoint', tmp_path / 'run' / 'model_best.pth.tar', '--naflex-loader', '-b', 8)
    saved = metadata_in(read_checkpoint(str(tmp_path / 'run' / 'model_best.pth.tar')))['metrics']['raw']
    assert results['loss'] == saved['loss'] and results['top1'] == round(saved['top1'], 4)
    assert len(shown['mistakes']) == 12 - round(0.12 * results['top1'])
    numbers = [photo_numbers(to_tensor(image_of(attributes))[None]).item() for attributes in shown['pair']]
    first, second = numbers[::2], numbers[1::2]
    assert first == second and len(set(first)) == 8
    assert (tmp_path / 'run' / 'views-0-0.png').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('argv', [
    ['/data/x', '--model', 'test_resnet', '--agmax', '--lr', '1e-05', '--experiment', 'x', '--output', '/home/secret'],
    ['--dataset', 'demo', '--val-split', '', '--scale', '0.2', '0.9', '--model-kwargs', 'a=1', 'b=word', 'c=(1,2)'],
    ['/data/x', '--head-init-bias=-1.5', '--opt-betas', '0.9', '0.99', '--opt', 'adamw', '--torchcompile',
     '--cutmix', '1.0', '--bce-loss', '--log-wandb', '--wandb-tags', 'a b', "it's",
     '--wandb-project=-x'],
    ['/data/x', '-b', '96', '-j', '2', '--dr', '0.5', '--amp', '--train-img-sizes', '128', '160', '--save-epochs', '3'],
])
def test_the_command_repeats_the_run(argv):
    options = vars(parse_train_args(argv))
    words = shlex.split(train_command(options))
    assert words[:2] == ['python', 'train.py'] and '/home/secret' not in words
    again = vars(parse_train_args(words[2:]))
    assert recipe(again) == recipe(options)
    changed = changed_options(options)
    assert set(changed) <= {name for name, value in options.items() if value != train_parser().get_default(name)}
    assert not set(changed) & {'data', 'data_dir', 'output', 'experiment'}


def test_the_command_has_files_without_their_folders():
    options = vars(parse_train_args(['/data/x', '--class-map', __file__]))
    command = train_command(options, processes=4)
    assert command.startswith('torchrun --nproc-per-node 4 train.py DIR ') and '--class-map test_report.py' in command


def test_a_run_of_a_former_version_may_lack_options(run_copy):
    options = yaml.safe_load((run_copy / 'args.yaml').read_text())
    del options['no_pin_mem']
    (run_copy / 'args.yaml').write_text(yaml.safe_dump(options))
    command.main([str(run_copy), '--device', 'cpu', '-j', '0', '--output', str(run_copy / 'page.html')])
    check_page((run_copy / 'page.html').read_text())


def test_data_may_be_in_another_folder(run_copy, photos, tmp_path, capsys):
    moved = shutil.copytree(photos / 'val', tmp_path / 'moved' / 'val')
    command.main([str(run_copy), str(moved.parent), '--device', 'cpu', '-j', '0'])
    text = ''.join(check_page((run_copy / 'report.html').read_text()).text)
    assert 'No training images are shown' in text and 'Most confident mistakes' in text


def test_validation_data_is_never_shown_as_training_data(run_copy, photos):
    """A folder of classes without folders of splits would be opened for both splits."""
    command.main([str(run_copy), str(photos / 'val'), '--device', 'cpu', '-j', '0'])
    text = ''.join(check_page((run_copy / 'report.html').read_text()).text)
    assert 'No training images are shown' in text and 'both training and validation data' in text
    assert 'Training images as the network saw them' not in text and 'Most confident mistakes' in text


@pytest.mark.parametrize('error, line', [
    (SyntaxError('broken PNG file'), 'broken PNG file'),
    (FileNotFoundError(2, 'No such file or directory', 'x.jpg'), "'x.jpg': No such file or directory"),
    (MemoryError('1 GB'), 'out of memory: 1 GB'),
    (AttributeError('ours'), None),
])
def test_unreadable_images_leave_out_only_the_pictures(run_copy, monkeypatch, error, line):
    def fail(*args):
        raise error

    monkeypatch.setattr('agmax_timm.assembly.loaders.build_train_loader', fail)
    if line is None:
        with pytest.raises(AttributeError, match='ours'):
            report.make_report(str(run_copy), device='cpu', workers=0)
        return
    report.make_report(str(run_copy), device='cpu', workers=0)
    text = ''.join(check_page((run_copy / 'report.html').read_text()).text)
    assert f'No training images are shown: {line}' in text and 'Most confident mistakes' in text


def test_a_run_without_validation_has_a_report(train_once, tmp_path):
    folder = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '1', '--val-split', '')
    folder = shutil.copytree(folder, tmp_path / 'run')
    report.make_report(str(folder), device='cpu', workers=0)
    page = check_page((folder / 'report.html').read_text())
    text = ''.join(page.text)
    assert 'nothing was evaluated' in text and 'Confusion' not in text and 'Training images' in text


@pytest.mark.parametrize('words, said', [
    (['{empty}'], 'not the folder of a run'),
    (['{run}', 'nowhere'], "'nowhere': no such folder: give folders of runs"),
    (['{run}', '{empty}'], '{empty}'),
    (['{run}', '--device', 'tpu'], "--device 'tpu"),
    (['{bare}'], 'no such checkpoint'),
    ([], 'RUN_FOLDER'),
    (['{run}', '--output', '{empty}/absent/page.html'], "--output '{empty}/absent/page.html': there is no such folder"),
])
def test_invalid_arguments_are_refused_in_one_line(words, said, run_copy, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bare').mkdir()
    shutil.copy(run_copy / 'args.yaml', tmp_path / 'bare')
    known = dict(run=run_copy, empty=tmp_path / 'empty', bare=tmp_path / 'bare')
    with pytest.raises(SystemExit) as end:
        command.main([*(word.format(**known) for word in words), *([] if '--device' in words else ['--device', 'cpu'])])
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == '' and 'Traceback' not in captured.err
    assert said.format(**known) in captured.err.splitlines()[-1]
    assert not (run_copy / 'report.html').exists()


def test_a_report_that_fails_does_not_fail_the_run(photos, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError('no space')
    monkeypatch.setattr(report, 'make_report', fail)
    train_cli.main([
        str(photos), '--num-classes', '3', '-b', '4', '-j', '0', '--epochs', '1', '--model', 'test_resnet',
        '--img-size', '32', '--report', '--output', str(tmp_path), '--experiment', 'run'])
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert f'no space; to make it: python -m agmax_timm.report {tmp_path}/run' in log
    assert json.loads(capsys.readouterr().out.split('--result\n')[1])


@pytest.mark.parametrize('path, shown', [
    (None, ''), ('a.jpg', 'a.jpg'), ('/home/ann/birds/robin/a.jpg', 'a.jpg'), ('robin/a.jpg', 'robin/a.jpg')])
def test_the_names_of_hfds_do_not_show_folders_of_the_machine(path, shown):
    reader_hfds = pytest.importorskip('timm.data.readers.reader_hfds')
    reader = reader_hfds.ReaderHfds.__new__(reader_hfds.ReaderHfds)
    reader.dataset, reader.image_key = [dict(image=dict(path=path))], 'image'
    assert reported._file_name(SimpleNamespace(reader=reader), 0) == shown


def test_every_text_of_the_page_is_escaped():
    texts = [f'<i onclick="{number}">&amp;\'</i>' for number in range(20)]
    (title, about, card, value, note, command, option, given, default, setting, chosen, package, version, panel, line,
     label, name, other, file, trained) = texts
    report = Report(
        title=title, about=about, trained=trained, headline=[(card, value)], notes=[note], command=command,
        changed={option: (given, default)}, options={setting: chosen}, versions={package: version},
        curves={panel: {line: [(1, 2.)]}}, views=[([Image.new('RGB', (4, 4))], label)], class_names=[name, other],
        analysis=analyse(torch.tensor([1, 0]), torch.tensor([0.5, 1.]), torch.tensor([0, 0]), 2),
        mistakes=[(Mistake(0, 0, 1, 0.5, Image.new('RGB', (4, 4))), file)])
    page = check_page(render(report))
    shown = ''.join(page.text).replace("''", "'")  # YAML doubles the quotes of options
    assert [text for text in texts if text not in shown] == []
    assert [image['alt'] for image in page.all('img')] == [f'{name}, taken for {other}', label]
    assert page.all('svg')[0]['aria-label'] == panel and page.all('i') == [{'class': 's0'}]


def test_a_small_picture_keeps_its_pixels_and_a_large_one_is_reduced():
    pixels = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    small = Image.fromarray(pixels[:20, :30])
    assert image_of(dict(src=inline(small)['source'])).tobytes() == small.tobytes()
    large = inline(Image.fromarray(pixels))
    assert image_of(dict(src=large['source'])).size == (large['width'], large['height']) == (168, 224)
