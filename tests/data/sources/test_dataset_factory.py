"""Data sets: the built-in demo, and mistakes that are found before training."""
import logging
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SVHN

from agmax_timm.assembly.datasets import build_datasets, check_roots
from agmax_timm.base.errors import DataError
from agmax_timm.data.loading.balance import labels_of
from agmax_timm.data.sources.checks import check_classes, check_different
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.dataset_factory import DemoDataset, create_dataset
from agmax_timm.data.sources.held_out import part_of
from agmax_timm.options.parse import parse_train_args
from tests.helpers.paths import REPOSITORY

TRAIN_NAMES = ['train', 'training']
SVHN_NUMBERS = {'train': range(12), 'extra': range(20, 27), 'test': range(40, 45)}
EVAL_NAMES = ['val', 'valid', 'validation', 'eval', 'evaluation']


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Folder of SVHN's files, with a few images. The colour of an image is its number, its digit is number % 10."""
    io = pytest.importorskip('scipy.io')
    monkeypatch.setattr(SVHN, '_check_integrity', lambda self: True)
    for part, numbers in SVHN_NUMBERS.items():
        images = np.stack([np.full((32, 32, 3), number, np.uint8) for number in numbers], -1)
        io.savemat(tmp_path / f'{part}_32x32.mat', {'X': images, 'y': np.array([[n % 10 or 10] for n in numbers])})
    return str(tmp_path)


@pytest.fixture
def data(photos, tmp_path):
    """A copy of the photos that a test may change: classes ant, bee and cat in train and val."""
    return shutil.copytree(photos, tmp_path / 'data')


def both(root):
    return [create_dataset('', str(root), split) for split in ('train', 'validation')]


@pytest.mark.parametrize('split, size', [
    *((name, 1000) for name in TRAIN_NAMES), *((name, 4000) for name in EVAL_NAMES),
])
def test_demo_splits_have_their_names_and_sizes(split, size):
    dataset = create_dataset('demo', split=split)
    assert len(dataset) == size
    targets = [dataset[i][1] for i in range(size)]
    assert all(type(target) is int for target in targets)
    assert np.bincount(targets).tolist() == [size // 10] * 10


@pytest.mark.slow
def test_demo_pairs_show_images_of_both_classes_from_the_same_split(tmp_path):
    tool = REPOSITORY / 'tools' / 'demo_pairs.py'
    subprocess.run([sys.executable, str(tool), str(tmp_path / 'pairs')], check=True)
    for split, per_class in ('train', 20), ('val', 50):
        demo = DemoDataset(split)
        names = list(demo.class_to_idx)
        rows = demo.images.reshape(len(demo.images), 14, 2, 28).astype(int)
        halves = {((image.sum(1) + 1) // 2).astype(np.uint8).tobytes(): names[target]
                  for image, target in zip(rows, demo.targets)}  # the mean of two rows, rounded up
        paths = list((tmp_path / 'pairs' / split).glob('*/*.png'))
        assert Counter(path.parent.name for path in paths) == {f'{a} over {b}': per_class for a in names for b in names}
        for path in paths:
            image = np.asarray(Image.open(path))
            assert ' over '.join(halves[half.tobytes()] for half in (image[:14], image[14:])) == path.parent.name


def test_demo_splits_share_no_image():
    train, validation = [{image.tobytes() for image in DemoDataset(split).images} for split in ('train', 'val')]
    assert not train & validation


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_demo_images_have_mode_size_and_transforms(mode):
    dataset = create_dataset('demo', split='train', input_img_mode=mode)
    image, target = dataset[3]
    assert image.mode == mode and image.size == (28, 28)
    assert np.asarray(image.convert('L')).std() > 10
    transforms = dict(transform=lambda image: image.size, target_transform=lambda target: -target)
    assert create_dataset('demo', split='train', input_img_mode=mode, **transforms)[3] == ((28, 28), -target)
    dataset.transform, dataset.target_transform = transforms.values()
    assert dataset[3] == ((28, 28), -target)


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_demo_is_never_written(tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    dataset = create_dataset('demo', root=str(tmp_path / 'nothing'), split='train', input_img_mode=mode)
    image, _ = dataset[0]
    before = image.tobytes()
    image.paste(255, (0, 0, 28, 28)) if mode == 'L' else image.paste((255,) * 3, (0, 0, 28, 28))
    assert image.tobytes() != before and dataset[0][0].tobytes() == before
    assert not os.listdir(tmp_path)


def test_an_unknown_demo_split_is_refused():
    with pytest.raises(DataError, match="'test'"):
        create_dataset('demo', split='test')


def test_demo_class_names_are_unique():
    names = class_names(create_dataset('demo', split='train'))
    assert len(names) == len(set(names)) == 10 and all(isinstance(name, str) for name in names)
    assert names == class_names(create_dataset('demo', split='validation'))


def test_class_names_are_those_of_the_folders(photos):
    assert class_names(create_dataset('', str(photos), 'train')) == ['ant', 'bee', 'cat']
    assert class_names(create_dataset('torch/folder', str(photos), 'train')) == ['ant', 'bee', 'cat']


def test_class_names_without_a_folder_are_numbers(photos):
    dataset = create_dataset('', str(photos), 'train', class_map={'ant': 0, 'cat': 2})
    assert class_names(dataset) == ['ant', '1', 'cat']


def test_class_names_may_be_unknown(memory_dataset):
    assert class_names(memory_dataset([])) is None


def make_tar(photos, path, folder='.'):
    with tarfile.open(path, 'w') as tar:
        tar.add(photos / 'train', arcname=folder)
    return create_dataset('', str(path), 'train')


def test_class_names_of_a_tar_file_are_those_of_its_folders(photos, tmp_path):
    dataset = make_tar(photos, tmp_path / 'train.tar')
    assert len(dataset) == 12 and class_names(dataset) == ['ant', 'bee', 'cat']
    check_classes(dataset, create_dataset('', str(photos), 'val'), 3)
    with pytest.raises(DataError, match='--num-classes 3'):
        check_classes(dataset, None, 2)


@pytest.mark.parametrize('root', [None, ''])
def test_missing_data_dir_is_refused(root):
    with pytest.raises(DataError, match='--data-dir DIR, or try -c demo'):
        create_dataset('', root, 'train')


@pytest.mark.parametrize('name', ['missing', 'missing.tar'])
def test_a_missing_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=name):
        create_dataset('', str(tmp_path / name), 'train')


def test_a_tar_file_without_images_is_refused(tmp_path):
    (tmp_path / 'notes.txt').touch()
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        tar.add(tmp_path / 'notes.txt', 'notes.txt')
    with pytest.raises(DataError, match=r"train\.tar', split 'train': found 0 images: images .* end in .*\.jpg"):
        create_dataset('', str(tmp_path / 'train.tar'), 'train')


def test_a_tar_file_with_hidden_images_alone_is_refused(data, tmp_path):
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        tar.add(data / 'train' / 'ant', 'train/.ant')
    with pytest.raises(DataError, match=r"found 0 images in '.*train\.tar': hidden files and folders do not count"):
        create_dataset('', str(tmp_path / 'train.tar'), 'train')


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / 'note.txt').write_text('not an image')
    with pytest.raises(DataError, match="split 'train'.*0 images"):
        create_dataset('', str(tmp_path), 'train')


@pytest.mark.parametrize('split, gone, there', [
    ('train', 'train', 'val'), ('validation', 'val', 'train'), ('test', 'val', 'train'), ('val', 'val', 'train'),
])
def test_a_missing_split_is_refused(data, split, gone, there):
    shutil.rmtree(data / gone)
    with pytest.raises(DataError, match=f"split '{split}', only '{there}'"):
        create_dataset('', str(data), split)


@pytest.mark.parametrize('folder, names', [('train', TRAIN_NAMES), ('val', EVAL_NAMES)])
def test_synonyms_of_a_split_are_equal(data, folder, names):
    (data / 'val' / 'ant' / '000.jpg').unlink()  # so the splits differ in size
    for on_disk in names:
        os.rename(data / folder, data / on_disk)
        folder = on_disk
        sizes = {len(create_dataset('', str(data), name)) for name in names}
        assert sizes == ({12} if names is TRAIN_NAMES else {11})


@pytest.mark.parametrize('split', ['train', 'validation', 'test', 'anything'])
def test_a_folder_of_classes_is_read_as_any_split(data, split):
    assert len(create_dataset('', str(data / 'train'), split)) == 12


def test_a_split_may_be_any_folder(data):
    os.rename(data / 'val', data / 'holdout')
    assert len(create_dataset('', str(data), 'holdout')) == 12


def test_equal_classes_of_both_splits_are_accepted(data, caplog):
    with caplog.at_level(logging.WARNING):
        check_classes(*both(data), 3)
        check_classes(create_dataset('', str(data), 'train'), None, 3)
        check_classes(DemoDataset('train'), DemoDataset('validation'), 10)
    assert not caplog.records


@pytest.mark.parametrize('split', ['train', 'val'])
def test_empty_class_folders_are_refused(data, split):
    for name in ('aardvark', 'zebra'):
        (data / split / name).mkdir()
    with pytest.raises(DataError, match=rf"{split}': .*'aardvark', 'zebra'"):
        check_classes(*both(data), 3)


def hide_images(root):
    """Add images in hidden folders and AppleDouble files, before and after all others, to a folder of classes."""
    for path in ('.ipynb_checkpoints/0.jpg', 'ant/.thumbs/9.jpg', 'ant/._000.jpg', 'cat/._0.JPG', '.Trash/a/fly/9.jpg'):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(root / path, format='JPEG')


@pytest.mark.parametrize('kind', ['folder', 'torch/folder', 'tar', 'tar with a folder around'])
def test_hidden_folders_and_files_are_neither_classes_nor_images(data, tmp_path, kind):
    root = data / 'train'
    (root / 'bee' / '.own.jpg').write_bytes((root / 'bee' / '004.jpg').read_bytes())  # timm reads it, and torchvision

    def read():
        if kind.startswith('tar'):
            dataset = make_tar(data, tmp_path / 'train.tar', 'photos/train' if 'around' in kind else '.')
        else:
            dataset = create_dataset('' if kind == 'folder' else kind, str(root), 'train')
        return [(image.tobytes(), target) for image, target in dataset], class_names(dataset)
    before = read()
    assert len(before[0]) == 13 and before[1] == ['ant', 'bee', 'cat']
    hide_images(root)
    assert read() == before


def test_hidden_images_do_not_shift_the_labels_of_a_class_map(data, tmp_path):
    hide_images(data / 'train')
    (tmp_path / 'map.txt').write_text('x\nfly\ncat\nant\n')
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        tar.add(data / 'train', arcname='.')
    dataset = create_dataset('', str(tmp_path / 'train.tar'), 'train', class_map=str(tmp_path / 'map.txt'))
    assert [dataset[i][1] for i in range(len(dataset))] == [3] * 4 + [2] * 4


@pytest.mark.parametrize('kind', ['folder', 'torch/folder', 'tar'])
def test_images_beside_class_folders_are_refused(data, tmp_path, kind):
    Image.new('RGB', (8, 8)).save(data / 'train' / 'pre\tview.jpg')
    with pytest.raises(DataError, match=r"class folders.* '(\./)?pre\\tview\.jpg': move"):
        if kind == 'tar':
            make_tar(data, tmp_path / 'train.tar')
        else:
            create_dataset('' if kind == 'folder' else kind, str(data), 'train')


@pytest.mark.parametrize('name', ['train', 'Test', 'valid'])
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_a_class_folder_with_the_name_of_a_split_is_refused(data, name, split):
    root = data / 'train'
    (root / 'cat').rename(root / name)
    with pytest.raises(DataError) as caught:
        create_dataset('', str(root), split)
    assert f"{name!r} is a class beside 'ant', 'bee'" in str(caught.value)
    assert 'sort all classes into folders' in str(caught.value)
    assert len(create_dataset('', str(data), 'train')) == 12  # one level above there is no doubt


@pytest.mark.parametrize('kind', ['folder', 'tar'])
def test_folders_within_classes_are_logged(data, tmp_path, caplog, kind):
    for name in ('ant', 'bee', 'cat'):
        for year in ('2019', '2020'):
            (data / 'train' / name / year).mkdir()
        for path in (data / 'train' / name).glob('*.jpg'):
            path.rename(path.parent / ('2019' if int(path.stem) % 2 else '2020') / path.name)
    dataset = make_tar(data, tmp_path / 'x.tar') if kind == 'tar' else create_dataset('', str(data), 'train')
    check_classes(dataset, None, 2)
    message, = caplog.messages
    assert message.startswith(f"'{dataset.reader.root}': ")
    assert all(words in message for words in ("'2019', '2020', not", "'ant', 'bee', 'cat'"))


def test_flat_classes_are_not_logged(data, tmp_path, caplog):
    for dataset in (make_tar(data, tmp_path / 'x.tar'), make_tar(data, tmp_path / 'y.tar', 'photos/train'),
                    create_dataset('', str(data), 'train')):
        check_classes(dataset, None, 3)
    assert not caplog.messages


@pytest.mark.parametrize('folders, split', [(('Train', 'Val'), 'train'), (('TRAIN', 'VAL'), 'validation')])
def test_splits_in_capitals_are_refused(data, folders, split):
    for old, new in zip(('train', 'val'), folders):
        (data / old).rename(data / new)
    with pytest.raises(DataError, match=f"split '{split}', only '{folders[0]}', '{folders[1]}': choose"):
        create_dataset('', str(data), split)


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_one_folder_for_both_splits_is_refused(data, name):
    datasets = [create_dataset(name, str(data / 'train'), split) for split in ('train', 'validation')]
    with pytest.raises(DataError, match='would be both training and validation data'):
        check_different(*datasets)


def test_one_folder_for_both_splits_is_refused_before_the_model_is_made(data):
    options = parse_train_args([str(data / 'train'), '--pretrained'])
    with pytest.raises(DataError, match='would be both training and validation data.*--val-split 0.1'):
        check_roots(options, options.train_split, options.val_split)
    for allowed in ([], ['--val-split', '0.1'], ['--val-split', '']):
        options = parse_train_args([str(data if not allowed else data / 'train'), *allowed])
        check_roots(options, options.train_split, options.val_split)


def test_validation_on_the_training_images_warns(data, caplog):
    config = {'input_size': (3, 32, 32)}
    for split, warnings in (('train', 1), ('val', 0)):
        caplog.clear()
        build_datasets(parse_train_args([str(data), '--val-split', split, '--num-classes', '3']), config)
        assert [message.startswith("--val-split 'train' names the training images") and 'such as 0.1' in message
                for message in caplog.messages] == [True] * warnings


@pytest.mark.parametrize('gone_from, message', [
    ('val', "'bee' missing from the validation split"), ('train', "'bee' only in the validation split"),
])
def test_a_class_in_only_one_split_is_refused(data, gone_from, message):
    shutil.rmtree(data / gone_from / 'bee')
    with pytest.raises(DataError, match=f'{message}.*--class-map'):
        check_classes(*both(data), 3)


def test_at_most_eight_classes_are_named(data):
    for i in range(12):
        folder = data / 'train' / f'extra{i:02d}'
        folder.mkdir()
        Image.new('RGB', (8, 8)).save(folder / 'image.png')
    with pytest.raises(DataError, match="'extra00', .*'extra07' and 4 more missing") as caught:
        check_classes(*both(data), 15)
    assert 'extra08' not in str(caught.value)


def test_a_class_map_allows_different_classes_in_the_splits(data, tmp_path):
    shutil.rmtree(data / 'val' / 'bee')
    (data / 'train' / 'empty').mkdir()
    class_map = tmp_path / 'map.txt'
    class_map.write_text('ant\nbee\ncat\n')
    datasets = [create_dataset('', str(data), split, class_map=str(class_map)) for split in ('train', 'validation')]
    check_classes(*datasets, 3, class_map=str(class_map))
    assert {datasets[1][i][1] for i in range(len(datasets[1]))} == {0, 2}
    with pytest.raises(DataError, match='--num-classes 3'):
        check_classes(*datasets, 2, class_map=str(class_map))


@pytest.mark.parametrize('num_classes', [1, 2])
def test_fewer_outputs_than_classes_are_refused(photos, num_classes):
    with pytest.raises(DataError, match=f'3 classes, .*{num_classes} outputs: .*--num-classes 3'):
        check_classes(*both(photos), num_classes)


def test_more_outputs_than_classes_warn(photos, caplog):
    with caplog.at_level(logging.WARNING):
        check_classes(*both(photos), 1000)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert '--num-classes 3' in caplog.text


def test_data_without_known_classes_is_not_checked(memory_dataset, photos):
    check_classes(memory_dataset([]), None, 1)
    check_classes(create_dataset('', str(photos), 'train'), memory_dataset([]), 3)


# QMNIST and SVHN


def test_the_classes_of_qmnist_are_the_first_column_of_its_targets(tmp_path):
    """The others say who wrote a digit. Each image is as bright as its digit."""
    digits, raw = [3, 0, 9, 5, 0, 3, 9, 5], tmp_path / 'QMNIST' / 'raw'
    raw.mkdir(parents=True)
    targets = np.full((8, 8), 2000, '>i4')
    targets[:, 0] = digits
    (raw / 'qmnist-train-labels-idx2-int').write_bytes(struct.pack('>3i', 0x0C02, 8, 8) + targets.tobytes())
    (raw / 'qmnist-train-images-idx3-ubyte').write_bytes(
        struct.pack('>4i', 0x0803, 8, 28, 28) + bytes(digit for digit in digits for _ in range(28 * 28)))
    dataset = create_dataset('torch/qmnist', str(tmp_path), 'train', input_img_mode='RGB')
    check_classes(dataset, None, 10)
    assert labels_of(dataset).tolist() == digits
    for part, size in ((dataset, 8), (part_of(dataset, 0.5, 1, True), 4), (part_of(dataset, 0.5, 1, False), 4)):
        samples = [part[index] for index in range(len(part))]
        assert len(samples) == size and [type(target) for _, target in samples] == [int] * size
        assert all(image.getpixel((0, 0)) == (target,) * 3 for image, target in samples)


@pytest.mark.parametrize('split, parts', [
    *((name, ['train']) for name in TRAIN_NAMES), *((name, ['test']) for name in [*EVAL_NAMES, 'test']),
    ('extra', ['extra']), ('train+extra', ['train', 'extra'])])
def test_splits_of_svhn_are_read(svhn, split, parts):
    dataset = create_dataset('torch/svhn', svhn, split)
    numbers = [number for part in parts for number in SVHN_NUMBERS[part]]
    samples = [dataset[index] for index in range(len(dataset))]
    assert [(image.getpixel((0, 0)), target) for image, target in samples] == [
        ((number,) * 3, number % 10) for number in numbers]  # the files have 10 for the digit 0
    assert samples[0][0].size == (32, 32) and dataset.targets == [number % 10 for number in numbers]


def test_an_unknown_split_of_svhn_and_a_missing_scipy_are_refused(svhn, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"torch/svhn.* train.*, .*extra.*, got 'val2'"):
        create_dataset('torch/svhn', svhn, 'val2')
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    with pytest.raises(DataError, match=r"torch/svhn needs 'scipy.*: pip install 'agmax_timm\[svhn\]'"):
        create_dataset('torch/svhn', svhn, 'train')
    monkeypatch.undo()
    with pytest.raises(DataError, match='not found or corrupted.*download'):
        create_dataset('torch/svhn', str(tmp_path / 'none'), 'train')
