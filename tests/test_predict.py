"""The predict command, against validate.py's own logits, plain timm and PIL."""
import csv
import io
import json
import os
import shutil
import sys
from argparse import Namespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.models import create_model
from timm.utils import random_seed

from agmax_timm import export, predict
from agmax_timm.assembly.known_classes import classes_of
from agmax_timm.base.errors import OptionError
from agmax_timm.evaluation import passes, prediction, validation
from agmax_timm.options.parse import parse_validate_args
from agmax_timm.weights.saved_model import read_model
from agmax_timm.weights.staging import stage
from tests.helpers.predictions import logits_of
from tests.helpers.run_files import load

SMALL = ['-j', '0', '-b', '4', '--device', 'cpu']


@pytest.fixture
def run(capsys):
    """Function: the output of the command for these arguments. It ends with this status."""
    def command(*words, status=0):
        capsys.readouterr()
        try:
            predict.main([*map(str, words), *SMALL])
            ended = 0
        except SystemExit as end:
            ended = end.code
        captured = capsys.readouterr()
        assert ended == status, captured.err
        return captured.out
    return command


@pytest.fixture
def refusal(capsys):
    """Function: the one line of the command that refuses these arguments."""
    def command(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            predict.main([*SMALL, *map(str, words)])
        captured = capsys.readouterr()
        assert end.value.code == 2 and captured.out == '' and len(captured.err.splitlines()) == 1, captured.err
        return captured.err
    return command


@pytest.fixture(scope='module')
def staged_ema(ema_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'ema'
    export.main([str(ema_run), str(folder)])
    return folder


def images_of(photos):
    return sorted((photos / 'val').rglob('*.jpg'))


def logits_of_validate(monkeypatch, *argv):
    """The logits of each image in validate.py."""
    seen = []

    create = passes.create_evaluator

    def create_evaluator(*args):
        evaluator = create(*args)
        update = evaluator.update
        evaluator.update = lambda output, target: (seen.append(output.float().clone()), update(output, target))
        return evaluator
    monkeypatch.setattr(passes, 'create_evaluator', create_evaluator)
    options = parse_validate_args([*map(str, argv), *SMALL])
    validation.validate_model(options, validation.start(options))
    return torch.cat(seen)


@pytest.mark.parametrize('ours, validates', [
    (['{run}', '--raw'], ['--checkpoint', '{run}/model_best.pth.tar']),
    (['{run}'], ['--checkpoint', '{run}/model_best.pth.tar', '--use-ema']),
    (['{run}', '--use-ema'], ['--checkpoint', '{run}/model_best.pth.tar', '--use-ema']),
    (['{run}', '--last', '--raw'], ['--checkpoint', '{run}/last.pth.tar']),
    (['{run}/checkpoint-0.pth.tar'], ['--checkpoint', '{run}/checkpoint-0.pth.tar', '--use-ema']),
    (['local-dir:{staged}'], ['--model', 'local-dir:{staged}']),
    (['{weights}', '--model', 'test_vit'], ['--checkpoint', '{weights}', '--model', 'test_vit', '--num-classes', '7']),
])
def test_the_logits_equal_those_of_validate_to_the_last_digit(
        ours, validates, ema_run, staged_ema, photos, tmp_path, monkeypatch):
    weights = tmp_path / 'weights.pth'
    random_seed(3)
    torch.save(create_model('test_vit', num_classes=7).state_dict(), weights)
    ours, validates = ([word.format(run=ema_run, staged=staged_ema, weights=weights) for word in words]
                       for words in (ours, validates))
    expected = logits_of_validate(monkeypatch, photos, *validates)
    args = predict.create_parser().parse_args([*ours, 'unused', *SMALL])
    logits = logits_of(prediction.Predictor(predict._options(args)), list(map(str, images_of(photos))))
    assert torch.equal(logits, expected)
    assert len(logits) == 12 and len({tuple(row) for row in logits.tolist()}) == 12


def test_the_predicted_classes_equal_those_of_plain_timm(ema_run, photos, run):
    saved = read_model(str(ema_run), use_ema=None)
    model = timm.create_model('test_resnet', num_classes=3).eval()
    model.load_state_dict(saved.state_dict)
    transform = timm.data.create_transform(**saved.data_config)
    rows = json.loads(run(ema_run, photos / 'val', '--format', 'json', '--topk', 2))
    assert [row['image'] for row in rows] == list(map(str, images_of(photos)))
    for row in rows:
        with torch.no_grad():
            expected = model(transform(Image.open(row['image']).convert('RGB'))[None]).softmax(1)[0].topk(2)
        assert [entry['index'] for entry in row['predictions']] == expected.indices.tolist()
        assert [entry['class'] for entry in row['predictions']] == [
            ['ant', 'bee', 'cat'][index] for index in expected.indices]
        assert [entry['probability'] for entry in row['predictions']] == pytest.approx(
            expected.values.tolist(), abs=1e-5)


def test_all_formats_contain_the_same_predictions(ema_run, photos, run, tmp_path):
    words = [ema_run, *images_of(photos)[:3], '--topk', 9]
    rows = json.loads(run(*words, '--format', 'json'))
    assert [len(row['predictions']) for row in rows] == [3, 3, 3], 'there are three classes'
    table = run(*words).splitlines()
    for row, line in zip(rows, table):
        assert line == '  '.join([row['image'], *(
            f"{entry['class']} {entry['probability']:.4f}" for entry in row['predictions'])])
    lines = list(csv.DictReader(io.StringIO(run(*words, '--format', 'csv'))))
    assert len(table) == 3 and len(lines) == 9
    for place, line in enumerate(lines):
        row, rank = divmod(place, 3)
        entry = rows[row]['predictions'][rank]
        assert line == dict(image=rows[row]['image'], rank=str(rank + 1), index=str(entry['index']), error='',
                            probability=str(entry['probability']), **{'class': entry['class']})
    assert run(*words, '--format', 'json', '--output', tmp_path / 'out.json') == ''
    assert json.loads((tmp_path / 'out.json').read_text()) == rows
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']


@pytest.mark.parametrize('workers', [0, 2])
def test_undecodable_images_are_reported_and_others_predicted(
        ema_run, photos, run, tmp_path, workers, capsys):
    good = images_of(photos)[:5]
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'cut.jpg').write_bytes(good[0].read_bytes()[:400])
    (tmp_path / 'empty.jpg').touch()
    bad = {str(tmp_path / name): reason for name, reason in (
        ('text.jpg', 'not an image'), ('cut.jpg', 'Truncated File Read'), ('empty.jpg', 'empty file'),
        ('missing.jpg', 'No such file'))}
    words = [*bad, *good]
    words = [words[i] for i in (4, 0, 5, 1, 2, 6, 7, 3, 8)]
    expected = {row['image']: row for row in json.loads(run(ema_run, *good, '--format', 'json'))}
    with pytest.raises(SystemExit) as end:
        predict.main([str(ema_run), *map(str, words), '--format', 'json', *SMALL, '-j', str(workers)])
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert end.value.code == 1 and '4 of 9 images' in captured.err.splitlines()[-1]
    assert [row['image'] for row in rows] == list(map(str, words))
    for row in rows:
        if row['image'] in bad:
            assert bad[row['image']] in row['error'] and 'predictions' not in row
        else:
            assert [entry['class'] for entry in row['predictions']] == [
                entry['class'] for entry in expected[row['image']]['predictions']]
            assert [entry['probability'] for entry in row['predictions']] == pytest.approx(
                [entry['probability'] for entry in expected[row['image']]['predictions']], abs=1e-6)
    assert ' error: not an image' in run(ema_run, *words, status=1)
    lines = list(csv.DictReader(io.StringIO(run(ema_run, *words, '--format', 'csv', status=1))))
    assert {line['image'] for line in lines if line['error']} == set(bad)
    assert len(json.loads(run(ema_run, *bad, '--format', 'json', status=1))) == 4, 'none can be decoded'


def test_paths_are_read_from_stdin(ema_run, photos, run, monkeypatch):
    files = images_of(photos)
    monkeypatch.setattr(sys, 'stdin', io.StringIO(f'{files[5]}\n\n{photos / "val" / "cat"}\n'))
    lines = run(ema_run, files[0], '-').splitlines()
    assert [line.split('  ')[0] for line in lines] == list(map(str, [files[0], files[5], *files[8:]]))


def test_a_published_model_has_its_class_names(staged_ema, ema_run, photos, run):
    words = [images_of(photos)[0], '--format', 'json']
    published = json.loads(run(f'local-dir:{staged_ema}', *words))[0]['predictions']
    assert {entry['class'] for entry in published} == {'ant', 'bee', 'cat'}
    assert published == json.loads(run(ema_run, *words))[0]['predictions']


def test_synsets_of_checkpoints_and_folders_are_shown_in_words(make_saved, ema_run, photos, run, tmp_path):
    names = ['n12620546', 'n04399382', 'other']
    checkpoint = load(ema_run / 'last.pth.tar')
    checkpoint['agmax_timm']['class_names'] = names
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    stage(make_saved(class_names=names), tmp_path / 'hub')
    for model in (tmp_path / 'last.pth.tar', f'local-dir:{tmp_path}/hub'):
        row = json.loads(run(model, images_of(photos)[0], '--format', 'json'))[0]
        assert {entry['index']: entry['class'] for entry in row['predictions']} == {
            0: 'hip, rose hip, rosehip', 1: 'teddy, teddy bear', 2: 'other'}


def test_weights_of_timm_have_the_names_of_imagenet():
    with torch.device('meta'):
        model, other = create_model('resnet50'), create_model('resnet50', num_classes=7)
    classes = classes_of(model, 'resnet50')
    assert classes.titles[207] == ImageNetInfo().index_to_description(207) == 'golden retriever'
    assert classes.names[207] == 'n02099601' and len(classes.titles) == len(classes.names) == 1000
    assert classes_of(model, 'hf_hub:timm/resnet50.a1_in1k').titles == classes.titles
    assert classes_of(model, 'hf_hub:me/mine') is None
    assert classes_of(other, 'resnet50') is None


def test_several_labels_per_image_have_independent_probabilities(photos, run, tmp_path):
    random_seed(3)
    model = create_model('test_resnet', num_classes=4)
    path = tmp_path / 'multilabel.pth.tar'
    torch.save({'state_dict': model.state_dict(), 'arch': 'test_resnet', 'args': Namespace(
        model='test_resnet', num_classes=4, task='multilabel', img_size=32)}, path)
    words = [path, images_of(photos)[0], '--format', 'json']
    entries = json.loads(run(*words))[0]['predictions']
    args = predict.create_parser().parse_args([str(path), 'unused', *SMALL])
    logits = logits_of(prediction.Predictor(predict._options(args)), [str(images_of(photos)[0])])[0]
    for entry in entries:
        assert entry['class'] == str(entry['index'])
        assert entry['probability'] == pytest.approx(logits[entry['index']].sigmoid().item(), abs=1e-7)
    assert sum(entry['probability'] for entry in entries) != pytest.approx(1, abs=0.01)


def test_outputs_that_are_not_finite_are_errors(photos, run, tmp_path):
    weights = create_model('test_resnet', num_classes=3).state_dict()
    weights['fc.bias'][1] = float('nan')
    torch.save(weights, tmp_path / 'weights.pth')
    rows = json.loads(run(tmp_path / 'weights.pth', images_of(photos)[0], '--model', 'test_resnet', '--format', 'json',
                          status=1))
    assert rows == [dict(image=str(images_of(photos)[0]), error='the outputs of the model are not finite')]


@pytest.mark.parametrize('words, said', [
    (['nowhere', '{image}'], "no such file or folder: 'nowhere"),
    (['resnet50', '{image}'], 'add --pretrained'),
    (['resnet5000', '{image}', '--pretrained'], "error: MODEL 'resnet5000': timm has no such model"),
    (['file:///x', '{image}'], "error: MODEL 'file:///x': "),
    (['hf_hub:a/b', '{image}', '--last'], 'no such file or folder'),
    (['{run}', '{image}', '--pretrained'], 'drop it'),
    (['hf_hub:a/b', '{image}', '--raw'], '--raw'),
    (['{run}', '{image}', '--raw', '--use-ema'], 'not allowed with'),
    (['{run}', '{image}', '--topk', '0'], '--topk'),
    (['{run}', '{image}', '--device', 'tpu'], "--device 'tpu"),
    (['{run}', '{image}', '--model', 'test_vit'], 'does not fit'),
    (['{run}', '{image}', '--format', 'xml'], 'invalid choice'),
    (['{run}', '{image}', '--output', '{empty}/no/file'], 'No such file or directory'),
    (['{run}', '{empty}'], 'found 0 images'),
    (['{empty}', '{image}'], 'no such checkpoint'),
    (['{staged}', '{image}'], 'local-dir:'),
    (['{image}', '{image}'], 'not a checkpoint'),
    (['{weights}', '{image}'], 'name it with --model'),
    (['{run}/checkpoint-0.pth.tar'], 'IMAGES'),
])
def test_invalid_arguments_are_refused_in_one_line(words, said, ema_run, staged_ema, photos, tmp_path, refusal):
    torch.save(create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'weights.pth')
    (tmp_path / 'empty').mkdir()
    known = dict(run=ema_run, image=images_of(photos)[0], empty=tmp_path / 'empty', staged=staged_ema,
                 weights=tmp_path / 'weights.pth')
    assert said in refusal(*(word.format(**known) for word in words))


def test_a_missing_ema_is_refused(train_once, photos, refusal, tmp_path, ema_run):
    checkpoint = torch.load(ema_run / 'last.pth.tar', weights_only=False)
    del checkpoint['state_dict_ema']
    torch.save(checkpoint, tmp_path / 'raw.pth.tar')
    assert 'no EMA weights' in refusal(tmp_path / 'raw.pth.tar', images_of(photos)[0])


def test_paths_that_end_with_nul_are_refused(monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('a.jpg\0b.jpg\0'))
    with pytest.raises(OptionError, match='drop -print0'):
        predict.list_images(['-'])


def test_paths_on_stdin_may_be_any_bytes_with_line_ends_of_windows(monkeypatch):
    lines = b'a.png\r\n\xff\xfe.png\n'
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(lines), encoding='utf-8', errors='strict'))
    assert [os.fsencode(path) for path in predict.list_images(['-'])] == [b'a.png', b'\xff\xfe.png']


def test_several_labels_of_a_staged_folder_have_independent_probabilities(make_saved, photos, run, tmp_path):
    saved = make_saved()
    saved.options = {**saved.options, 'task': 'multilabel', 'agmax': False}
    stage(saved, tmp_path / 'folder')
    image = images_of(photos)[0]
    found = json.loads(run(f'local-dir:{tmp_path / "folder"}', image, '--topk', 3, '--format', 'json'))[0]
    args = prediction.options_of(model=f'local-dir:{tmp_path / "folder"}', device='cpu', workers=0)
    expected = logits_of(prediction.Predictor(args), [str(image)]).sigmoid()[0].sort(descending=True).values
    assert [row['probability'] for row in found['predictions']] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(expected) != pytest.approx(1, abs=1e-2)


def test_a_model_of_four_channels_predicts(make_saved, photos, run, tmp_path):
    stage(make_saved(in_chans=4), tmp_path / 'folder')
    assert run(f'local-dir:{tmp_path / "folder"}', images_of(photos)[0], '--format', 'json')


@pytest.mark.parametrize('flags, said', [
    ([], ': the EMA of the weights, by which the run ranked'),
    (['--raw'], ': the raw weights; the run ranked'),
])
def test_the_log_states_weights_and_images(flags, said, ema_run, photos, capsys):
    predict.main([str(ema_run), str(images_of(photos)[0]), *flags, *SMALL])
    weights, images = capsys.readouterr().err.splitlines()
    assert f'{ema_run}/model_best.pth.tar' in weights and said in weights
    assert images.endswith(": 1 images; 3 classes: 'ant', 'bee', 'cat'")


def test_the_input_key_of_the_run_selects_images(ema_run, photos, run, tmp_path):
    """With --input-key .dat on a folder. For a Hub data set, the key names a column."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a.dat', 'b.jpg', 'c.DAT'):
        shutil.copy(images_of(photos)[0], folder / name)
    checkpoint = torch.load(ema_run / 'last.pth.tar', weights_only=False)
    for dataset, key, expected in (
            ('', '.dat', ['a.dat', 'c.DAT']), ('hfds/x', '.dat', ['b.jpg']), ('', None, ['b.jpg'])):
        checkpoint['args'].update(dataset=dataset, input_key=key)
        torch.save(checkpoint, tmp_path / 'run.pth.tar')
        found = json.loads(run(tmp_path / 'run.pth.tar', folder, '--format', 'json'))
        assert [row['image'] for row in found] == [str(folder / name) for name in expected]
        assert all(len(row['predictions']) == 3 for row in found)
