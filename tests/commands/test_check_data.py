"""--check-data: what it counts and finds in data made for it."""
import csv
import errno
import os
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from agmax_timm.base.errors import DamagedError, DataError
from agmax_timm.commands import check_data as data_check
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.checks import check_classes, check_labels
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.decoding import why_undecodable
from agmax_timm.data.sources.shards import open_dataset
from tests.helpers.run_files import status_of


@pytest.fixture
def data(photos, tmp_path):
    """A copy of the photos: 12 in 3 classes for each split. Both splits have the same blue levels."""
    root = shutil.copytree(photos, tmp_path / 'data')
    for path in (root / 'val').glob('*/*.jpg'):
        Image.open(path).crop((0, 0, 50, 40)).save(path)
    return root


def checked(tmp_path, *argv, script=train_cli.main):
    """The exit status, and the rows of data-check.csv."""
    status = status_of(script, ['--check-data', '-j', '0', *argv])
    with open(tmp_path / 'data-check.csv', newline='', errors='surrogateescape') as f:
        return status, [tuple(row) for row in csv.reader(f)][1:]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('workers', ['0', '2'])
def test_good_data_has_no_problems(workers, data, tmp_path, capsys):
    assert checked(tmp_path, str(data), '-j', workers, '--model', 'no_such_model') == (0, [])
    text = capsys.readouterr().out
    for part in ('train: 12 images, 3 classes, 4 to 4 (median 4) images per class', 'width 60 to 64 (median 62)',
                 'height 48 to 56 (median 52)', 'width 50 to 50', 'modes: RGB 12; rotated by EXIF: 0', 'damaged: 0',
                 'duplicates: 0 within a split, 0 across splits', '0 problem(s)'):
        assert part in text


@pytest.mark.parametrize('workers', ['0', '2'])
def test_all_kinds_of_problems_are_found(workers, data, tmp_path, capsys):
    train, val = data / 'train', data / 'val'
    (train / 'ant' / '001.jpg').write_bytes(b'')
    (val / 'bee' / '006.jpg').write_bytes(b'no image')
    shutil.copy(train / 'ant' / '000.jpg', train / 'bee' / 'copy.jpg')
    shutil.copy(train / 'cat' / '010.jpg', val / 'cat' / '011.jpg')
    Image.new('L', (8, 9)).save(train / 'cat' / '009.jpg')
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (8, 9)).save(train / 'cat' / '008.jpg', exif=exif)
    (val / 'wasp').mkdir()
    status, rows = checked(tmp_path, str(data), '-j', workers)
    *damaged, empty_class = sorted(rows, key=lambda row: row[1], reverse=True)
    assert status == 1 and sorted(damaged) == sorted([
        ('train', str(train / 'ant' / '001.jpg'), 'empty file'),
        ('validation', str(val / 'bee' / '006.jpg'), 'not an image'),
        ('train', str(train / 'bee' / 'copy.jpg'), f"same bytes as {train / 'ant' / '000.jpg'} (train)"),
        ('validation', str(val / 'cat' / '011.jpg'), f"same bytes as {train / 'cat' / '010.jpg'} (train)"),
    ])
    assert empty_class[:2] == ('validation', '')
    assert str(val) in empty_class[2] and "'wasp': fill or remove" in empty_class[2]
    text = capsys.readouterr().out
    for part in ('modes: RGB 11, L 1; rotated by EXIF: 1', '4 to 5 (median 4)', 'width 8 to 64', 'damaged: 1',
                 'duplicates: 1 within a split, 1 across splits', '5 problem(s)'):
        assert part in text


def test_three_copies_are_two_problems(data, tmp_path):
    for name in ('x.jpg', 'y.jpg'):
        shutil.copy(data / 'val' / 'ant' / '000.jpg', data / 'val' / 'ant' / name)
    _, rows = checked(tmp_path, str(data), '--split', 'val', script=validate_cli.main)
    original = data / 'val' / 'ant' / '000.jpg'
    assert [(row[1][-5:], row[2]) for row in rows] == [
        (name, f'same bytes as {original} (val)') for name in ('x.jpg', 'y.jpg')]


def test_empty_files_are_not_reported_as_copies(data, tmp_path):
    for name in ('000.jpg', '001.jpg'):
        (data / 'train' / 'ant' / name).write_bytes(b'')
    assert [row[2] for row in checked(tmp_path, str(data))[1]] == ['empty file'] * 2


def test_classes_that_differ_between_the_splits_are_reported(data, tmp_path):
    shutil.rmtree(data / 'val' / 'bee')
    status, rows = checked(tmp_path, str(data))
    assert status == 1 and [row[0] for row in rows] == ['validation'] and "'bee' missing" in rows[0][2]


def test_images_that_a_class_map_leaves_out_are_reported(data, tmp_path, caplog):
    (tmp_path / 'map.txt').write_text('ant\ncat\n')
    argv = ['--class-map', str(tmp_path / 'map.txt')]
    status, rows = checked(tmp_path, str(data), *argv)
    assert status == 1 and [row[0] for row in rows] == ['train', 'validation']
    assert all("leaves out the images of 'bee'" in row[2] for row in rows)
    train = create_dataset('', str(data), 'train', class_map=argv[1])
    check_classes(train, None, 2, class_map=argv[1])
    assert [record.getMessage() for record in caplog.records] == [rows[0][2]]


def test_folders_within_classes_are_mentioned_but_are_no_problem(data, tmp_path, capsys):
    for split in ('train', 'val'):
        (data / split / 'insects').mkdir()
        for name in ('ant', 'bee'):
            (data / split / name).rename(data / split / 'insects' / name)
    assert checked(tmp_path, str(data)) == (0, [])
    text = capsys.readouterr().out
    line, = (line for line in text.splitlines() if 'innermost' in line and f"'{data / 'train'}': " in line)
    assert "'ant', 'bee', not the folders above, 'insects': if those should be the classes, move" in line


def test_the_output_folder_is_created(data, tmp_path):
    checked(tmp_path / 'deep' / 'er', str(data), '--output', str(tmp_path / 'deep' / 'er'))


@pytest.mark.parametrize('argv, part', [
    (['nowhere'], 'no such folder'), (['--dataset', 'demo'], "--dataset 'demo'"),
    (['data/train'], 'would be both training and validation data'), (['--dataset', 'wds/x', 'data'], 'wds/x'),
])
def test_data_that_cannot_be_checked_is_refused(argv, part, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_cli.main(['--check-data', *argv])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and part in error and error.count('\n') == 1
    assert not (tmp_path / 'data-check.csv').exists()


def parquet(tmp_path, labels, images=None, dtype='int64'):
    """hfds/ data with these labels, which have no names, and these images, black by default."""
    folder = tmp_path / 'parquet'
    folder.mkdir()
    columns = dict(image=images or [Image.new('RGB', (8, 8))] * len(labels), label=labels)
    features = datasets.Features(image=datasets.Image(), label=datasets.Value(dtype))
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / 'train.parquet')
    return create_dataset(f'hfds/{folder}', str(tmp_path / 'cache'), 'train', input_key='image', target_key='label')


@pytest.mark.parametrize('labels, num_classes, part', [
    ([0, 2, 1], 3, None), ([0, 3, 1], 3, 'labels up to 3, .*: use --num-classes 4'),
    ([0, -1], 3, 'label -1'), ([0, 9], None, None),
])
def test_labels_out_of_range_are_reported(labels, num_classes, part, tmp_path):
    dataset = parquet(tmp_path, labels)
    if part is None:
        return check_labels(dataset, num_classes)
    with pytest.raises(DataError, match=part):
        check_labels(dataset, num_classes)
    with pytest.raises(DataError, match=part):
        check_classes(dataset, None, num_classes)


def test_unsigned_labels_out_of_range_are_reported(tmp_path):
    with pytest.raises(DataError, match='labels up to 200'):
        check_labels(parquet(tmp_path, [0, 200], dtype='uint8'), 3)


def test_undecodable_images_of_hugging_face_data_are_found(tmp_path, capsys):
    images = [dict(path=None, bytes=content) for content in (b'no image', b'neither')]
    dataset = parquet(tmp_path, [0, 1, 1], [*images, Image.new('RGB', (8, 8))])
    with pytest.raises(DataError, match="sample 1' cannot be decoded: not an image"):
        dataset[1]
    argv = ['--dataset', f'hfds/{tmp_path}/parquet', '--val-split', '', '--data-dir', str(tmp_path / 'cache'),
            '--input-key', 'image', '--target-key', 'label']
    assert checked(tmp_path, *argv) == (1, [('train', f'sample {index}', 'not an image') for index in (0, 1)])
    assert 'train: 3 images, 2 classes, 1 to 2' in capsys.readouterr().out


@pytest.mark.parametrize('image, name, reason', [
    (None, 'sample {}', 'no image'), (dict(path=None, bytes=b''), 'sample {}', 'no image'),
    (dict(path='gone.png', bytes=b''), 'gone.png', 'No such file or directory'),
])
def test_missing_images_of_hugging_face_data_are_damaged(image, name, reason, tmp_path):
    """In hfds/, also the first one is replaced. hfids/ refuses it."""
    parquet(tmp_path, [0, 1, 2], [image, image, Image.new('RGB', (8, 8))])
    source = dict(root=str(tmp_path / 'cache'), split='train')
    dataset = open_dataset(f'hfds/{tmp_path}/parquet', max_damaged=1., **source)
    assert [dataset[index][1] for index in range(3)] == [2, 2, 2] and dataset.damage.indices() == [0, 1]
    assert [why_undecodable(dataset.reader, index) for index in (0, 1)] == [reason] * 2
    dataset = open_dataset(f'hfds/{tmp_path}/parquet', **source)
    with pytest.raises(DamagedError, match=f"^'{name.format(1)}' cannot be decoded: {reason}: repair or remove it"):
        dataset[1]
    with pytest.raises(DamagedError, match="^'sample 0' cannot be decoded: no image: repair or remove it"):
        open_dataset(f'hfids/{tmp_path}/parquet', num_samples=3, **source)
    argv = ['--dataset', f'hfds/{tmp_path}/parquet', '--val-split', '', '--data-dir', str(tmp_path / 'cache')]
    assert checked(tmp_path, *argv) == (1, [('train', name.format(index), reason) for index in (0, 1)])


def test_an_error_in_a_valid_sample_of_hugging_face_data_is_not_damage(tmp_path, monkeypatch):
    dataset = parquet(tmp_path, [0, 1])
    monkeypatch.setattr(dataset.reader, '_get_target', lambda item: item + 1)
    with pytest.raises(TypeError, match='unsupported operand'):
        dataset[1]


def test_negative_numbers_in_a_class_map_are_refused(data):
    train = create_dataset('', str(data), 'train', class_map={'ant': -1, 'bee': 0, 'cat': 1})
    with pytest.raises(DataError, match='label -1'):
        check_classes(train, None, 3, class_map='map')


def test_progress_advances_by_images(data, monkeypatch, capsys):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    train_cli.main(['--check-data', '-j', '0', str(data)])
    assert '12/12' in capsys.readouterr().err


def test_memory_is_a_few_bytes_per_sample(data):
    from agmax_timm.data.sources.scan import Finding, Inventory
    reader = create_dataset('', str(data), 'train').reader
    inventory = Inventory('train', reader)
    for index in range(1000):
        inventory.add(Finding(index, np.int64(index % 3), 3, 4, 'RGB', False, bytes(16)))
    assert inventory.digests.nbytes + 4 * (len(inventory.widths) + len(inventory.heights)) == 24 * 1000
    assert inventory.classes == {0: 334, 1: 333, 2: 333}


def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_read(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_check, 'check_data', lambda *args: 1 / 0)
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as caught:
        train_cli.main(['--check-data', '--output', str(tmp_path / 'file' / 'below'), '-j', '0', str(data)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and '--output' in error and str(tmp_path / 'file') in error and error.count('\n') == 1


def test_validate_names_a_remedy_that_it_has(data, capsys, monkeypatch):
    def fail(folder):
        raise PermissionError(errno.EACCES, 'Permission denied', './x')
    monkeypatch.setattr(data_check, 'check_writable', fail)
    with pytest.raises(SystemExit):
        validate_cli.main(['--check-data', '-j', '0', str(data)])
    assert capsys.readouterr().err.endswith(
        "cannot write './x': Permission denied: run this command in a folder that can be written\n")


def test_file_names_that_are_not_text_are_escaped(data, tmp_path, capsys):
    name = os.fsencode(data) + b'/train/ant/\xff\xe9.jpg'
    with open(name, 'wb') as f:
        f.write(b'text')
    assert any(os.fsencode(row[1]).endswith(b'\xff\xe9.jpg') for row in checked(tmp_path, str(data))[1])
