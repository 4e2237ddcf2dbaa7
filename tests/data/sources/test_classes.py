"""The classes of the data against those of the model: compared by name, in every command."""
import os
import pickle
import re
import shutil
import unicodedata
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.models import create_model

from agmax_timm import export, predict
from agmax_timm.assembly import known_classes
from agmax_timm.base.errors import DataError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.checks import check_classes
from agmax_timm.data.sources.classes import ModelClasses, check_evaluation, same_names, summary
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.evaluation import evaluated_model
from agmax_timm.options.parse import parse_train_args
from agmax_timm.report import command as report
from agmax_timm.report.report import make_report
from tests.helpers.predictions import logits_of
from tests.helpers.run_files import load, status_of

NAMES = ['ant', 'bee', 'cat']
OF_MODEL = '--class-map model'


def names_class_0(text, data, model, split=''):
    """Whether a message names class 0 of the data and of the model."""
    return re.search(f"{split}.*class 0 .*'{data}'.*'{model}'", text)


@pytest.fixture
def links(photos, tmp_path):
    """Function: a folder with class folders of the photos by other names, {its name: name among the photos}."""
    def make(folder, **names):
        for split in ('train', 'val'):
            (tmp_path / folder / split).mkdir(parents=True)
            for name, source in names.items():
                os.symlink(photos / split / source, tmp_path / folder / split / name)
        return tmp_path / folder
    return make


@pytest.fixture(scope='module')
def mapped_run(train_once, tmp_path_factory):
    """A run whose outputs are cat, ant and bee, by a class map that was deleted afterwards."""
    path = tmp_path_factory.mktemp('mapped') / 'classes.txt'
    path.write_text('cat\nant\nbee\n')
    run = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '2', '--class-map', str(path))
    path.unlink()
    return run


@pytest.fixture(scope='module')
def exported(ema_run, tmp_path_factory):
    """The name local-dir: of an exported run whose outputs are ant, bee and cat."""
    folder = tmp_path_factory.mktemp('exported') / 'model'
    export.main([str(ema_run), str(folder), '--use-ema'])
    return f'local-dir:{folder}'


def predictions(run_dir, photos, split='val', classes=NAMES):
    """Indices that a run's best weights predict, by class folder, computed without validate.py."""
    from agmax_timm.evaluation.prediction import Predictor, options_of
    from agmax_timm.weights.checkpoint import find_file
    predictor = Predictor(options_of(find_file(str(run_dir)), device='cpu', workers=0))
    return {name: logits_of(predictor, [str(path) for path in sorted((photos / split / name).iterdir())])
            .argmax(1).tolist() for name in classes}


# ---- The comparison ----

@pytest.mark.parametrize('found, moved, unknown', [
    (['ant', 'bee', 'cat'], [], []),
    (['ant', 'bee'], [], []),
    (['bee', 'cat'], ['bee', 'cat'], []),
    (['bee', 'cat', 'formica'], ['bee', 'cat'], ['formica']),  # one unknown name is no reason to give up
    (['ant', 'bees', 'cat'], [], ['bees']),
    (['x', 'y', 'z'], [], ['x', 'y', 'z']),
])
def test_every_class_is_compared(found, moved, unknown):
    result = ModelClasses('model', NAMES).compare({name: index for index, name in enumerate(found)})
    assert ([change.name for change in result[0]], list(result[1])) == (moved, unknown)
    assert all((found[change.index], NAMES[change.index_of_model]) == (change.name,) * 2 for change in result[0])


def test_names_are_compared_in_normalised_unicode():
    composed, decomposed = (unicodedata.normalize(form, 'étoile') for form in ('NFC', 'NFD'))
    assert composed != decomposed and same_names([composed], [decomposed])
    classes = ModelClasses('model', ['lune', composed])
    assert classes.compare({'lune': 0, decomposed: 1}) == ([], {})
    assert [change.index_of_model for change in classes.compare({decomposed: 0, 'lune': 1})[0]] == [1, 0]


def test_outputs_may_have_several_names_or_numbers():
    classes = ModelClasses('model', ['cat', 'dog'], [('kitten', 0)])
    assert classes.compare({'cat': 0, 'kitten': 0, 'dog': 1}) == ([], {})
    assert classes.compare({'kitten': 1})[0][0].index_of_model == 0
    words = ModelClasses('model', ['n1', 'n2', 'n3'], titles=['crane', 'hen', 'crane'])
    assert words.compare({'crane': 2, 'hen': 1}) == ([], {})
    numbers = ModelClasses('model', ['0', '1', '2'])
    assert numbers.compare({'cat': 0, 'dog': 1}) == ([], {})  # the outputs have no names
    assert [change.name for change in numbers.compare({'0': 0, '2': 1})[0]] == ['2']
    assert same_names(['ant', 'bee'], ['ant', 'bee', '2']) and not same_names(['ant', 'bee'], NAMES)


def test_no_remedy_suggests_another_num_classes(caplog):
    for classes in (None, ModelClasses('model', NAMES)):
        with pytest.raises(DataError, match='4 classes, the model 3 outputs') as caught:
            check_evaluation(classes, {'ant': 0, 'x': 3}, 3)
        assert '--num-classes' not in str(caught.value)
    check_evaluation(None, {'ant': 0}, 3)
    assert 'the labels are right only if' in caplog.text and '--num-classes' not in caplog.text
    caplog.clear()
    check_evaluation(ModelClasses('model', NAMES), {'ant': 0}, 3)
    assert not caplog.text


# ---- validate.py ----

def test_a_renamed_class_that_moves_the_others_is_refused(ema_run, links, photos, refusal, results_of):
    data = links('data', **{'bee': 'bee', 'cat': 'cat', 'formica rufa': 'ant'})
    words = [data, '--checkpoint', ema_run / 'model_best.pth.tar']
    line = refusal(*words, built=True)
    assert "class 0 of the data is 'bee'" in line and "'bee' as class 1; 1 more differ" in line and OF_MODEL in line
    hits = [index == NAMES.index(name) for name, indices in predictions(ema_run, photos).items() if name != 'ant'
            for index in indices]
    assert results_of(*words, '--class-map', 'model')['top1'] == pytest.approx(100 * np.mean(hits), abs=1e-4)


def test_bulk_and_retry_report_an_error_instead_of_a_result(ema_run, links, results_of):
    data = links('data', bee='bee', cat='cat')
    row = results_of(data, '--checkpoint', ema_run / 'last.pth.tar', '--retry', status=1)
    assert "class 0 of the data is 'bee'" in row['error'] and 'top1' not in row
    rows = results_of(data, '--checkpoint', ema_run, status=1)
    assert all('top1' not in row and "class 0 of the data is 'bee'" in row['error'] for row in rows)


def test_accents_in_another_unicode_form_need_class_map_model(photos, tmp_path, refusal, results_of, weights):
    path, model = weights()
    names = [unicodedata.normalize('NFC', name) for name in ('lune', 'zebre', 'étoile')]
    record = dict(architecture='test_resnet', model_args=dict(num_classes=3), class_names=names, data_config={})
    torch.save({'state_dict': model.state_dict(), 'agmax_timm': record}, path)
    for form in ('NFC', 'NFD'):
        for name, source in zip(names, NAMES):
            folder = tmp_path / form / 'val'
            folder.mkdir(parents=True, exist_ok=True)
            os.symlink(photos / 'val' / source, folder / unicodedata.normalize(form, name))
    words = ['--checkpoint', path, '--img-size', 64]
    right = results_of(tmp_path / 'NFC', *words)['top1']
    assert OF_MODEL in refusal(tmp_path / 'NFD', *words, built=True)
    assert results_of(tmp_path / 'NFD', *words, '--class-map', 'model')['top1'] == right


def test_valid_labels_choose_outputs_by_name(ema_run, links, tmp_path, refusal, results_of):
    data = links('data', bee='bee', cat='cat')
    (tmp_path / 'right.txt').write_text('1\n2\n')
    (tmp_path / 'wrong.txt').write_text('0\n1\n')
    words = [data, '--checkpoint', ema_run / 'last.pth.tar', '--valid-labels']
    results_of(*words, tmp_path / 'right.txt')
    assert "'bee' as class 1" in refusal(*words, tmp_path / 'wrong.txt', built=True)


def test_the_classes_of_a_tar_file_are_compared(ema_run, photos, tmp_path, refusal, results_of):
    for name, gone in (('all', 'no such folder'), ('fewer', 'ant')):
        shutil.copytree(photos / 'val', tmp_path / name, ignore=shutil.ignore_patterns(gone))
        shutil.make_archive(str(tmp_path / name), 'tar', tmp_path / name)
    words = ['--checkpoint', ema_run / 'last.pth.tar']
    assert results_of(tmp_path / 'all.tar', *words)['top1'] == results_of(photos, *words)['top1']
    assert "'bee' as class 1" in refusal(tmp_path / 'fewer.tar', *words, built=True)


# ---- Class maps ----

def test_a_checkpoint_contains_the_class_map(mapped_run, photos, tmp_path, monkeypatch, results_of, refusal):
    record = load(mapped_run / 'last.pth.tar')['agmax_timm']
    assert record['class_map'] == {'cat': 0, 'ant': 1, 'bee': 2}
    hits = [index == record['class_map'][name] for name, indices in predictions(mapped_run, photos).items()
            for index in indices]
    words = [photos, '--checkpoint', mapped_run / 'model_best.pth.tar']
    right = results_of(*words)
    assert right['top1'] == pytest.approx(100 * np.mean(hits), abs=1e-4)

    reversed_map = Path(load(mapped_run / 'last.pth.tar')['args']['class_map'])
    reversed_map.write_text('bee\nant\ncat\n')
    try:
        assert results_of(*words) == right, 'the changed file has no effect'
    finally:
        reversed_map.unlink()
    (tmp_path / 'other.txt').write_text('bee\nant\ncat\n')
    assert names_class_0(refusal(*words, '--class-map', tmp_path / 'other.txt', built=True), 'bee', 'cat')
    (tmp_path / 'same.txt').write_text('cat\nant\nbee\n')
    assert results_of(*words, '--class-map', tmp_path / 'same.txt') == right


def test_a_checkpoint_that_has_only_the_path_of_its_class_map(
        mapped_run, photos, tmp_path, monkeypatch, results_of, refusal):
    """As written by former versions."""
    checkpoint = load(mapped_run / 'model_best.pth.tar')
    del checkpoint['agmax_timm']['class_map']
    checkpoint['args']['class_map'] = 'classes.txt'
    torch.save(checkpoint, tmp_path / 'old.pth.tar')
    monkeypatch.chdir(tmp_path)
    words = [photos, '--checkpoint', tmp_path / 'old.pth.tar']
    right = results_of(photos, '--checkpoint', mapped_run / 'model_best.pth.tar')['top1']
    assert results_of(*words)['top1'] == right
    (tmp_path / 'classes.txt').write_text('bee\nant\ncat\n')  # a relative path, in another folder
    assert "'bee' as class 2" in refusal(*words, built=True)
    (tmp_path / 'classes.txt').write_text('cat\nant\nbee\n')
    assert results_of(*words)['top1'] == right


def test_a_report_needs_no_class_map_file(mapped_run, tmp_path):
    page = make_report(str(shutil.copytree(mapped_run, tmp_path / 'run')), device='cpu', workers=0)
    assert 'No training images are shown' not in open(page).read()


@pytest.fixture(params=['folder', 'tar'])
def accents(request, photos, tmp_path):
    """A folder or tar file with four images each of the classes ant and étoile, which is in the form NFD."""
    for name, folder in (('ant', 'ant'), (unicodedata.normalize('NFD', 'étoile'), 'cat')):
        shutil.copytree(photos / 'val' / folder, tmp_path / 'data' / name)
    root = str(tmp_path / 'data')
    return root if request.param == 'folder' else shutil.make_archive(root, 'tar', root)


@pytest.mark.parametrize('class_map, targets, left_out', [
    ({'étoile': 1, 'lune': 0, 'ant': 4}, [4] * 4 + [1] * 4, []),
    ({'étoile': 1, 'lune': 0}, [1] * 4, ['ant']),
    ({'étoil': 1, 'lune': 0, 'ant': 4}, [4] * 4, ['étoile'])], ids=str)
def test_a_class_map_chooses_classes_by_their_names_in_any_unicode_form(accents, caplog, class_map, targets, left_out):
    class_map = {unicodedata.normalize('NFC', name): index for name, index in class_map.items()}
    dataset = create_dataset('', accents, 'val', class_map=class_map)
    assert [target for _, target in dataset] == targets == dataset.reader.targets.tolist()
    check_classes(dataset, None, 5, 'map.txt')
    warnings = [f"'{accents}': --class-map leaves out the images of '{unicodedata.normalize('NFD', name)}'"
                for name in left_out]
    assert [text for text in caplog.messages if 'leaves out' in text] == warnings


def test_a_class_map_without_any_class_of_the_data_is_refused(accents):
    with pytest.raises(DataError, match="found 0 images in .* for --class-map: .*'ant'"):
        create_dataset('', accents, 'val', class_map={'dog': 0})


# ---- Exported models and timm's own weights ----

def test_an_exported_model_is_compared_by_its_label_names(exported, ema_run, links, photos, refusal, results_of):
    of_run = results_of(photos, '--checkpoint', ema_run / 'model_best.pth.tar', '--use-ema')
    assert results_of(photos, '--model', exported)['top1'] == of_run['top1']
    fewer = links('fewer', bee='bee', cat='cat')
    assert names_class_0(refusal(fewer, '--model', exported, built=True), 'bee', 'ant')
    mixed = links('mixed', **{'bee': 'bee', 'cat': 'cat', 'formica rufa': 'ant'})
    assert "'bee' as class 1" in refusal(mixed, '--model', exported, built=True)
    results_of(fewer, '--model', exported, '--class-map', 'model')


def test_num_classes_that_differ_from_the_weights_are_refused(exported, photos, refusal):
    line = refusal(photos, '--model', exported, '--num-classes', 5)
    assert '--num-classes 5: the weights of --model' in line and '3 outputs' in line


@pytest.fixture
def of_imagenet(monkeypatch):
    """Replace evaluated models with one of random weights, which is treated as a model of timm's own."""
    def create(name, **_):
        torch.manual_seed(0)
        return create_model('test_resnet', num_classes=1000)
    monkeypatch.setattr(evaluated_model, 'create_named_model', create)


def synsets(folder, photos, indices):
    for index in indices:
        (folder / 'val').mkdir(parents=True, exist_ok=True)
        os.symlink(photos / 'val' / 'ant', folder / 'val' / ImageNetInfo().index_to_label_name(index))
    return folder


def test_weights_of_timm_are_compared_by_synsets(of_imagenet, photos, tmp_path, refusal, results_of, caplog):
    words = ['--model', 'test_resnet', '--img-size', 64]
    results_of(synsets(tmp_path / 'first', photos, [0, 1, 2]), *words)
    assert 'the same class' not in caplog.text
    later = synsets(tmp_path / 'later', photos, [1, 2])
    assert names_class_0(refusal(later, *words, built=True), 'n01443537', 'n01440764')
    results_of(later, *words, '--class-map', 'model')
    (tmp_path / 'map.txt').write_text('n01443537\nn01440764\n')
    words += ['--class-map', tmp_path / 'map.txt']
    assert "'n01443537' as class 1" in refusal(tmp_path / 'first', *words, built=True)


def test_weights_of_timm_are_also_compared_by_words():
    with torch.device('meta'):
        classes = known_classes.classes_of(create_model('resnet50'), 'resnet50')
    words = ImageNetInfo().label_descriptions()
    assert classes.compare({word: index for index, word in enumerate(words)}) == ([], {})
    assert classes.compare({words[7]: 6})[0][0].index_of_model == 7
    assert classes.compare({'Tinca tinca': 0, 'crane': 517}) == ([], {})
    assert classes.class_map()['tench'] == 0 and 'crane' not in classes.class_map()  # a bird and a machine


@pytest.mark.parametrize('names', [['a', 'b'], {'0': 'a', '1': 'b', '2': 'c'}, {0: 'a', 1: 'b', 2: 'c'}, None])
def test_label_names_of_other_models_count_only_as_a_dict(names):
    model = create_model('test_resnet', num_classes=3)
    model.pretrained_cfg = dict(num_classes=3, label_names=names)
    classes = known_classes.classes_of(model, 'hf_hub:me/mine')
    assert classes is None if not isinstance(names, dict) else list(classes.names) == ['a', 'b', 'c']


# ---- Training ----

FEW = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '1',
       '--warmup-epochs', '0', '--lr', '0.01', '--device', 'cpu', '--dry-run']


@pytest.mark.parametrize('kind', ['--initial-checkpoint', '--pretrained'])
def test_training_from_the_same_classes_in_another_order_warns(kind, ema_run, exported, photos, links, caplog):
    words = [*FEW, kind, str(ema_run / 'last.pth.tar')] if kind == '--initial-checkpoint' else [
        *FEW, '--model', exported, kind]
    train_cli.main([str(photos), *words])
    other = links('other', x='ant', y='bee', z='cat')
    train_cli.main([str(other), *words])
    assert 'the head starts with weights' not in caplog.text
    train_cli.main([str(links('data', bee='bee', cat='cat', dog='ant')), *words])
    lines = [record.message for record in caplog.records if 'the head starts with weights' in record.message]
    assert len(lines) == 1 and lines[0].startswith(kind) and "data is 'bee' ('ant' in the model)" in lines[0]


def test_a_resumed_run_is_not_compared_with_the_weights_that_it_started_from(
        ema_run, links, tmp_path, monkeypatch, caplog, capsys):
    """Their classes are in another order than those of the data and of the run."""
    monkeypatch.chdir(tmp_path)
    data, start = links('data', bee='bee', cat='cat', dog='ant'), str(ema_run / 'last.pth.tar')
    checkpoint = load(start)
    checkpoint['agmax_timm']['class_names'] = ['bee', 'cat', 'dog']
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    options = parse_train_args(['DIR', '--initial-checkpoint', start])
    dataset, model = create_dataset('', str(data), 'train'), Namespace(num_classes=3)
    for resume, warned in (str(tmp_path / 'last.pth.tar'), False), ('', True):
        known_classes.warn_of_other_classes(replace(options, resume=resume), model, dataset)
        assert ('the head starts with weights of other classes' in caplog.text) == warned
        words = ['--initial-checkpoint', start, *(['--resume', resume] if resume else [])]
        _, out = checked(capsys, train_cli.main, data, *words)
        assert bool(names_class_0(out, 'bee', 'ant', split='train')) == warned


def test_a_teacher_with_classes_in_another_order_is_refused(exported, photos, links, capsys):
    words = [*FEW, '--kd-model-name', exported]
    train_cli.main([str(photos), *words])
    with pytest.raises(SystemExit) as end:
        train_cli.main([str(links('data', bee='bee', cat='cat', dog='ant')), *words])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert '--kd-model-name' in line and names_class_0(line, 'bee', 'ant')


def test_resuming_weights_alone_compares_their_classes(ema_run, photos, links, tmp_path, capsys):
    checkpoint = load(ema_run / 'last.pth.tar')
    del checkpoint['agmax_state']
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    words = [*FEW, '--agmax', '--epochs', '9', '--no-resume-opt', '--resume', str(tmp_path / 'last.pth.tar')]
    train_cli.main([str(photos), *words])
    with pytest.raises(SystemExit) as end:
        train_cli.main([str(links('data', bee='bee', cat='cat', dog='ant')), *words])
    assert end.value.code == 2
    assert "(without 'ant')" in capsys.readouterr().err


# ---- The report ----

def test_the_report_refuses_results_that_differ_from_those_of_the_run(ema_run, links, tmp_path, capsys):
    """The folders keep their names and have each other's images."""
    data = links('data', ant='cat', bee='ant', cat='bee')
    run = shutil.copytree(ema_run, tmp_path / 'run', ignore=shutil.ignore_patterns('report.html'))
    with pytest.raises(SystemExit) as end:
        report.main([str(run), str(data), '--device', 'cpu', '-j', '0'])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'and training measured' in line and str(data) in line
    assert not (run / 'report.html').exists()


def test_the_report_names_no_flag_that_it_does_not_have(ema_run, links, tmp_path, capsys):
    data = links('data', **{'bee': 'bee', 'cat': 'cat', 'formica rufa': 'ant'})
    run = shutil.copytree(ema_run, tmp_path / 'run')
    with pytest.raises(SystemExit) as end:
        report.main([str(run), str(data), '--device', 'cpu', '-j', '0'])
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and names_class_0(line, 'bee', 'ant')
    assert ': give the data of the run' in line and '--class-map' not in line


# ---- What was read ----

@pytest.fixture
def untidy(photos, tmp_path):
    """A copy of the photos with files that are left out."""
    folder = shutil.copytree(photos, tmp_path / 'untidy')
    for path in ('train/ant/a.heic', 'train/ant/b.HEIC', 'train/bee/notes', 'val/cat/list.txt', 'val/.DS_Store'):
        (folder / path).write_text('x')
    return folder


TRAIN = 'train 12 images (left out: 1 without ending, 2 .heic)'
VAL = 'validation 12 images (left out: 1 .txt)'
ALL = "3 classes: 'ant', 'bee', 'cat'"


def test_training_and_evaluation_log_what_they_read(untidy, ema_run, tmp_path, results_of, caplog):
    train_cli.main([str(untidy), *FEW])
    results_of(untidy, '--checkpoint', ema_run / 'last.pth.tar')
    make_report(str(shutil.copytree(ema_run, tmp_path / 'run')), str(untidy), device='cpu', workers=0)
    lines = [record.message for record in caplog.records if record.message.startswith('Data: ')]
    both, evaluated = f'Data: {TRAIN}; {VAL}; {ALL}', f'Data: {VAL}; {ALL}'
    assert lines == [both, evaluated, evaluated, both]


def test_predict_prints_what_it_read(untidy, ema_run, capsys):
    predict.main([str(ema_run), str(untidy / 'val'), '--device', 'cpu', '-j', '0'])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('python -m agmax_timm.predict: 12 images (')
    assert '(left out: 1 .txt)' in line and line.endswith(ALL)


def test_at_most_ten_class_names_are_logged(tmp_path):
    for name in [*map(str, range(11)), 'new\nline']:
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / 'image.png')
    line = summary({'val': create_dataset('', str(tmp_path), 'val')})
    assert line.startswith("Data: val 12 images; 12 classes: '0', '1', ") and line.endswith("'8', '9' and 2 more")
    assert '\n' not in summary({'val': create_dataset('', str(tmp_path), 'val', class_map={'new\nline': 0})})


# ---- --check-data ----

def checked(capsys, script, *argv):
    status = status_of(script, [*map(str, argv), '--check-data', '-j', '0'])
    return status, capsys.readouterr().out


def test_check_data_compares_with_the_model(ema_run, exported, links, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = links('data', **{'bee': 'bee', 'cat': 'cat', 'formica rufa': 'ant'})
    for words in (['--checkpoint', ema_run / 'last.pth.tar'], ['--checkpoint', ema_run], ['--model', exported]):
        status, out = checked(capsys, validate_cli.main, data, '--split', 'val', *words)
        assert status == 1 and names_class_0(out, 'bee', 'ant', split='val')
        assert 'val 12 images' in out and "3 classes: 'bee', 'cat', 'formica rufa'" in out
        status, out = checked(capsys, validate_cli.main, photos, *words)
        assert status == 0 and out.endswith('0 problem(s), see data-check.csv\n')
    status, out = checked(capsys, validate_cli.main, data, *words, '--class-map', 'model')
    assert 'of the data is' not in out and "--class-map leaves out the images of 'formica rufa'" in out
    status, out = checked(capsys, train_cli.main, data, '--resume', ema_run / 'last.pth.tar')
    assert status == 1 and names_class_0(out, 'bee', 'ant', split='train')
    experiment = ['--output', ema_run.parent, '--experiment', ema_run.name, '--resume', 'auto']
    others = (['--initial-checkpoint', ema_run / 'last.pth.tar'], ['--model', exported, '--pretrained'],
              ['--model', 'test_resnet', '--num-classes', '3', '--kd-model-name', exported])
    for words in (experiment, *others):
        status, out = checked(capsys, train_cli.main, data, *words)
        assert status == 1 and names_class_0(out, 'bee', 'ant', split='train') and OF_MODEL not in out
    unused = ['--model', exported], [*others[-1], '--kd-distill-type', 'feature']  # heads that are not used
    for folder, words in [*((photos, words) for words in others), *((data, words) for words in unused)]:
        assert 'of the data is' not in checked(capsys, train_cli.main, folder, *words)[1]


# ---- Other kinds of data ----

def parquet(folder, names, **columns):
    """hfds/ data of four images in the split val, with integer labels that may have names."""
    datasets = pytest.importorskip('datasets')
    folder.mkdir()
    features = {'image': datasets.Image(), **{
        key: datasets.ClassLabel(names=names) if names else datasets.Value('int64') for key in columns}}
    images = [Image.new('RGB', (32, 32), (60 * number, 0, 0)) for number in range(4)]
    table = datasets.Dataset.from_dict({'image': images, **columns}, features=datasets.Features(features))
    table.to_parquet(str(folder / 'validation.parquet'))
    return ['--dataset', f'hfds/{folder}', '--data-dir', folder.parent / 'cache', '--split', 'validation']


def named_weights(path, names, **options):
    """A checkpoint of random weights with these class names."""
    torch.manual_seed(1)
    model = create_model('test_resnet', num_classes=len(names))
    record = dict(architecture='test_resnet', model_args=dict(num_classes=len(names)), class_names=names,
                  data_config=dict(input_size=(3, 32, 32)))
    torch.save({'state_dict': model.state_dict(), 'args': Namespace(**options), 'agmax_timm': record}, path)
    return path


def test_class_names_of_a_hugging_face_data_set_are_compared(tmp_path, refusal, results_of):
    checkpoint = named_weights(tmp_path / 'weights.pth', NAMES)
    results_of(*parquet(tmp_path / 'same', NAMES, label=[0, 1, 2, 2]), '--checkpoint', checkpoint)
    words = [*parquet(tmp_path / 'other', ['bee', 'cat', 'dog'], label=[0, 1, 0, 1]), '--checkpoint', checkpoint]
    assert names_class_0(refusal(*words, built=True), 'bee', 'ant')
    words = [*parquet(tmp_path / 'mixed', ['cat', 'bee', 'ant'], label=[0, 1, 2, 2]), '--checkpoint', checkpoint]
    same = parquet(tmp_path / 'sorted', NAMES, label=[2, 1, 0, 0])
    assert results_of(*words, '--class-map', 'model') == results_of(*same, '--checkpoint', checkpoint)


def test_labels_beyond_the_named_classes_are_refused(tmp_path, refusal, results_of, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    padded = named_weights(tmp_path / 'weights.pth', [*NAMES, '3', '4', '5'])  # trained with more outputs than classes
    numbered = named_weights(tmp_path / 'numbered.pth', list('012345'))
    inside = parquet(tmp_path / 'inside', None, label=[0, 1, 2, 2])
    results_of(*inside, '--checkpoint', padded)
    from_1 = parquet(tmp_path / 'from_1', None, label=[1, 2, 3, 3])
    message = 'labels 1 to 3, .*: subtract 1'
    assert re.search(message, refusal(*from_1, '--checkpoint', padded, built=True))
    in_sequence = [*from_1, '--dataset', f"hfids/{tmp_path / 'from_1'}", '--num-samples', '4']
    assert 'the model has the classes 0 to 2' in refusal(*in_sequence, '--checkpoint', padded, built=True)
    results_of(*from_1, '--checkpoint', numbered)  # its outputs have no names
    status, out = checked(capsys, validate_cli.main, *from_1, '--checkpoint', padded)
    assert status == 1 and re.search(f'validation: .*{message}', out) and len(re.findall(message, out)) == 1


def test_classes_of_several_labels_per_image_are_compared(tmp_path, refusal, results_of):
    checkpoint = named_weights(
        tmp_path / 'weights.pth', ['wings', 'fur'], task='multilabel', target_key='wings,fur')
    words = [*parquet(tmp_path / 'data', None, wings=[0, 1, 0, 1], fur=[0, 0, 1, 1]), '--checkpoint', checkpoint]
    results_of(*words)
    assert "data is 'fur' ('wings' in the model)" in refusal(*words, '--target-key', 'fur,wings', built=True)


def test_a_class_map_of_numbers_keeps_the_names_of_the_data(tmp_path, refusal):
    checkpoint = named_weights(tmp_path / 'weights.pth', NAMES)
    words = [*parquet(tmp_path / 'data', NAMES, label=[0, 1, 2, 2]), '--checkpoint', checkpoint]
    with open(tmp_path / 'map.pkl', 'wb') as f:
        pickle.dump({0: 2, 1: 1, 2: 0}, f)
    assert names_class_0(refusal(*words, '--class-map', tmp_path / 'map.pkl', built=True), 'cat', 'ant')


def test_classes_of_folders_that_torchvision_reads_are_compared(untidy, ema_run, links, refusal, results_of, caplog):
    words = ['--dataset', 'torch/image_folder', '--checkpoint', ema_run / 'last.pth.tar']
    results_of(untidy, *words)
    assert f'Data: {VAL}; {ALL}' in caplog.messages
    assert "'bee' as class 1" in refusal(links('data', bee='bee', cat='cat'), *words, built=True)
