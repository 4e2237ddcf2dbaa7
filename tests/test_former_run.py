"""A run of version 0.1 can be resumed, evaluated, exported, reported and published by the present version."""
import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file

from agmax_timm import export, predict, publish
from agmax_timm.commands import train
from agmax_timm.report import command as report
from tests.helpers import hub_server
from tests.helpers.run_files import load

FORMER = Path(__file__).parent / 'fixtures' / 'run_0_1'
DATA = Path('data')
RUN = Path('out') / 'run'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Copy the run and its data to the working directory. The run names both by relative paths."""
    shutil.copytree(FORMER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def summary(path):
    with open(path, newline='') as f:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(f)]


def assert_close(ours, expected, where=''):
    """Equal except for the rounding of other processors and other versions of torch."""
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for name in expected:
            assert_close(ours[name], expected[name], f'{where}.{name}')
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected), where
        for number, values in enumerate(zip(ours, expected)):
            assert_close(*values, f'{where}[{number}]')
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f'{where}: {text}')
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5), where
    else:
        assert ours == expected, where


@pytest.mark.parametrize('unnamed', [(), ('smoothing', 'agmax_init_std')])
def test_it_resumes_within_an_epoch_and_equals_the_uninterrupted_run(unnamed):
    """Also without a given smoothing: AgMax of version 0.1 smoothed labels by default."""
    options = yaml.safe_load((RUN / 'args.yaml').read_text())
    assert options['agmax'] and options['smoothing'] == 0.1
    (RUN / 'args.yaml').write_text(yaml.safe_dump({
        name: value for name, value in options.items() if name not in unnamed}))
    expected = load(Path('whole') / 'last.pth.tar')
    train.main(['-c', str(RUN / 'args.yaml')])  # has --resume auto
    ours = load(RUN / 'last.pth.tar')
    assert yaml.safe_load((RUN / 'args.yaml').read_text())['smoothing'] == ours['args']['smoothing'] == 0.1
    for name in ('state_dict', 'state_dict_ema', 'task_state', 'task_state_ema', 'optimizer', 'epoch', 'metric'):
        assert_close(ours[name], expected[name], name)
    assert_close(ours['agmax_state']['ranks'], expected['agmax_state']['ranks'], 'random states')
    assert_close(summary(RUN / 'summary.csv'), summary(Path('whole') / 'summary.csv'), 'summary.csv')
    assert load(RUN / 'model_best.pth.tar')['epoch'] == 2


@pytest.mark.parametrize('flags, column', [([], 'raw'), (['--use-ema'], 'ema')])
def test_its_checkpoint_has_the_metrics_of_the_run(results_of, flags, column):
    found = results_of(DATA, '--checkpoint', RUN / 'model_best.pth.tar', *flags)
    row = summary(RUN / 'summary.csv')[1]
    assert found['top1'] == pytest.approx(row[f'{column}_top1'], abs=1e-3)
    assert found['loss'] == pytest.approx(row[f'{column}_loss'], abs=1e-4)


def test_it_can_be_exported_for_plain_timm():
    export.main([str(RUN), 'exported'])
    average = load(RUN / 'model_best.pth.tar')['state_dict_ema']
    exported = load_file(Path('exported') / 'model.safetensors')
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name]) for name in average)
    model = timm.create_model('local-dir:exported', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    paths = sorted((DATA / 'val').rglob('*.png'))
    images = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    labels = np.repeat([0, 1, 2], 8)
    with torch.no_grad():
        top1 = (model(images).argmax(1).numpy() == labels).mean() * 100
    assert top1 == pytest.approx(summary(RUN / 'summary.csv')[1]['ema_top1'])
    assert model.pretrained_cfg['label_names'] == ['ant', 'bee', 'cat']


def test_it_can_predict(capsys):
    predict.main([str(RUN), str(DATA / 'val'), '--topk', '1', '--format', 'csv', '--device', 'cpu', '-j', '0'])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 24
    correct = sum(Path(row['image']).parent.name == row['class'] for row in rows)
    assert 100 * correct / 24 == pytest.approx(summary(RUN / 'summary.csv')[1]['ema_top1'])


def test_it_has_a_report():
    report.main([str(RUN), '--device', 'cpu', '-j', '0'])
    page = (RUN / 'report.html').read_text()
    text = re.sub('<[^>]+>', ' ', page)
    top1 = summary(RUN / 'summary.csv')[1]['ema_top1']
    assert re.search(rf'(?i)top-1\D*{top1:.1f}', text) and 'resnet10t' in text, text


def test_it_can_be_published(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)  # what HF_HUB_DISABLE_XET=1 sets at import
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    (tmp_path / 'storage').mkdir()
    with hub_server.serve(tmp_path / 'storage') as hub:
        monkeypatch.setattr(constants, 'ENDPOINT', hub.url)  # what HF_ENDPOINT sets at import
        hub.add_user('hf_write', 'ann')
        publish.main([str(RUN), 'ann/net'])
        files = hub.files('ann/net')
    average = load(RUN / 'model_best.pth.tar')['state_dict_ema']
    published = load_tensors(files['model.safetensors'].content)
    assert published.keys() == average.keys()
    assert all(torch.equal(published[name], average[name]) for name in average)
    metric = ModelCard(files['README.md'].content.decode()).data.eval_results[0]
    assert metric.metric_value == pytest.approx(summary(RUN / 'summary.csv')[1]['ema_top1'])
