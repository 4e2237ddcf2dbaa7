"""Every kind of data with every option of its split: it changes the images that are read, or it is refused."""
import struct
import tarfile

import datasets
import pytest
import torch
from PIL import Image

from agmax_timm.assembly.datasets import build_datasets, check_roots
from agmax_timm.base.errors import DataError
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from tests.helpers.shards import write_parquet, write_shards

CONFIG = {'input_size': (3, 16, 16)}


def write_mnist(folder):
    """torchvision's files: 12 images to train on, 5 to test on."""
    raw = folder / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, count in (('train', 12), ('t10k', 5)):
        images, labels = bytes(28 * 28 * count), bytes(i % 3 for i in range(count))
        (raw / f'{name}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, count, 28, 28) + images)
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, count) + labels)
    return folder


@pytest.fixture(scope='module')
def sources(photos, tmp_path_factory):
    """By kind: --dataset, --data-dir, names of the splits, their numbers of images, options that the kind needs."""
    folder = tmp_path_factory.mktemp('sources')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
        patch.setattr(datasets.config, 'SLEEP_TIME_ON_THREADS_SHUTDOWN', 0)
        datasets.disable_progress_bars()
        with tarfile.open(folder / 'x.tar', 'w') as tar:
            tar.add(photos / 'train', arcname='.')
        shards, parquet = write_shards(folder), write_parquet(folder / 'parquet')
        numbers = ['--train-num-samples', '18', '--val-num-samples', '13']
        yield {
            'folder': ('', photos, 'train', 12, []),
            'tar': ('', folder / 'x.tar', 'train', 12, ['--val-split', '']),
            'demo': ('demo', '', 'train', 1000, []),
            'torch/mnist': ('torch/mnist', write_mnist(folder / 'mnist'), 'train', 12, []),
            'torch/folder': ('torch/folder', photos, 'train', 12, []),
            'hfds': (f'hfds/{parquet}', folder / 'cache', 'train', 18, []),
            'hfids': (f'hfids/{parquet}', folder / 'cache', 'train', 18, numbers),
            'wds': ('wds/x', shards, 'train', 18, ['--val-split', 'val']),
            'tfds': ('tfds/x', folder, 'train', None, []),
        }


SLICE, CASE = ['--train-split', 'train[:50%]'], ['--train-split', 'Train']
TRAIN, VALIDATION = ['--train-num-samples', '6'], ['--val-num-samples', '6']
MORE, LESS = ['--epoch-repeats', '2'], ['--epoch-repeats', '0.5']
CLASSES, IMAGE, LABEL = ['--class-map', 'map.txt'], ['--input-key', '.jpg'], ['--target-key', 'label']
# By kind of data, with an option: the number of images in an epoch, or parts of the line that refuses it.
CASES = {
    'folder': [
        (SLICE, ["split 'train[:50%]'", 'give a whole split']),
        (CASE, ["no folder for split 'Train', only 'train', 'val': choose by --train-split and --val-split"]),
        (TRAIN, ['--train-num-samples 6 does nothing on a folder', 'fewer images']),
        (VALIDATION, ['--val-num-samples 6 does nothing on a folder']),
        (MORE, ['--epoch-repeats 2.0 does nothing on a folder', '--epochs']),
        (CLASSES, 8), (IMAGE, 12), (LABEL, ["--target-key 'label' does nothing on a folder"])],
    'tar': [
        (SLICE, ["split 'train[:50%]'"]), (CASE, 12), (TRAIN, ['does nothing on a tar file']),
        (MORE, ['does nothing on a tar file']), (CLASSES, 8), (IMAGE, ["--input-key '.jpg' does nothing on a tar"]),
        (LABEL, ['its targets are folders'])],
    'demo': [
        (SLICE, ['the splits train and validation', "'train[:50%]'"]), (CASE, ['the splits train and validation']),
        (TRAIN, ["--train-num-samples 6 does nothing on --dataset 'demo'"]), (MORE, ["--dataset 'demo", '--epochs']),
        (CLASSES, ["--class-map 'map.txt' does nothing"]), (IMAGE, ['drop it']), (LABEL, ['drop it'])],
    'torch/mnist': [
        (SLICE, ["split 'train[:50%]'"]), (CASE, ["--dataset 'torch/mnist' has the splits", "got 'Train'"]),
        (['--train-split', 'training'], 12), (['--train-split', 'test'], 5), (['--train-split', 'eval'], 5),
        (TRAIN, ["on --dataset 'torch/mnist'"]), (VALIDATION, ['--val-num-samples 6']), (MORE, ['--epochs']),
        (CLASSES, ["--class-map 'map.txt' does nothing"]), (IMAGE, ['drop it']), (LABEL, ['drop it'])],
    'torch/folder': [
        (SLICE, ["split 'train[:50%]'"]), (CASE, ["no folder for split 'Train'"]), (TRAIN, ['does nothing']),
        (MORE, ['does nothing']), (CLASSES, ['does nothing']), (IMAGE, ['does nothing'])],
    'hfds': [
        (SLICE, 9), (['--train-split', 'train[:5]+validation[:1]'], 6), (CASE, ['Unknown split "Train"']),
        (TRAIN, ["use --train-split 'train[:6]'"]), (VALIDATION, ["use --val-split 'validation[:6]'"]),
        (MORE, ['does nothing', '--epochs'])],
    'hfids': [
        (SLICE, ['Bad split: train[:50%]']), (CASE, ['Bad split: Train']), (TRAIN, 6), (MORE, 36),
        (['--epoch-repeats', '1.5'], 27),
        (LESS, ['--epoch-repeats 0.5 does nothing', 'more: for shorter epochs, use fewer images, or'])],
    'wds': [
        (SLICE, ['split train[:50%] not found']), (CASE, ['split Train not found']), (TRAIN, 6),
        (['--train-split', 'train-0.tar|6'], 6), (MORE, ['use --train-num-samples for a longer epoch'])],
    'tfds': [  # not installed: only the options are checked
        (TRAIN, ["use --train-split 'train[:6]'"]), (VALIDATION, ["use --val-split 'validation[:6]'"]),
        (LESS, ['one pass or more'])],
}
TABLE = [(kind, *case) for kind, cases in CASES.items() for case in [([], None), *cases]]


def images_of_epoch(argv):
    """Number of training images that are read."""
    args = parse_train_args([*argv, '--num-classes', '10', '-b', '1', '-j', '0'])
    check_roots(args, args.train_split, args.val_split)
    train, _ = build_datasets(args, CONFIG)
    if isinstance(train, torch.utils.data.IterableDataset):
        return len(list(train))
    return len([train[index] for index in range(len(train))])


@pytest.mark.parametrize('kind, option, expected', TABLE, ids=[
    f"{kind}-{' '.join(option)}" for kind, option, _ in TABLE])
def test_options_change_the_images_or_are_refused(sources, kind, option, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'map.txt').write_text('cat\nant\n')
    name, root, _, count, needed = sources[kind]
    argv = ['--data-dir', str(root), '--dataset', name, *needed, *option]
    if expected is None:
        expected = count
    if expected is None:
        return
    if isinstance(expected, int):
        assert images_of_epoch(argv) == expected
        return
    try:
        images_of_epoch(argv)
        line = ''
    except SystemExit as end:
        line, = capsys.readouterr().err.splitlines()
        assert end.code == 2
    except DataError as error:
        line = str(error)
    assert all(part in line for part in expected), line


@pytest.mark.parametrize('kind', ['folder', 'demo', 'torch/mnist', 'hfds', 'tfds'])
def test_num_samples_without_effect_is_refused(sources, kind, capsys):
    name, root, *_ = sources[kind]
    with pytest.raises(SystemExit) as end:
        parse_validate_args(['--data-dir', str(root), '--dataset', name, '--num-samples', '6'])
    remedy = "use --split 'validation[:6]'" if kind in ('hfds', 'tfds') else 'drop it'
    error = capsys.readouterr().err
    assert end.value.code == 2 and '--num-samples 6 does nothing' in error and remedy in error


@pytest.mark.parametrize('argv', [['--train-split', 'train[:50%]'], ['--train-num-samples', '6']])
def test_train_writes_nothing_if_it_refuses_an_option(photos, tmp_path, argv, capsys):
    with pytest.raises(SystemExit) as end:
        train_cli.main([str(photos), '--model', 'test_resnet', '--output', str(tmp_path / 'output'), *argv])
    assert end.value.code == 2 and not (tmp_path / 'output').exists()
    assert len([line for line in capsys.readouterr().err.splitlines() if 'error:' in line]) == 1


@pytest.mark.parametrize('argv, parts', [
    (['{gone}'], ["no such folder or tar file: '{gone}': give", '--data-dir DIR']),
    (['--dataset', 'torch/folder', '{gone}'], ["no such folder or tar file: '{gone}': give"]),
    (['--dataset', 'wds/x', '{gone}'], ["no such folder: '{gone}': give", 'URL of the shards']),
    (['--dataset', 'torch/cifar10'], ['--dataset ', 'torch/cifar10', 'no folder for its files: give one']),
    (['--dataset', 'torch/cifar10', '{gone}'], ["'torch/cifar10', '{gone}', split 'train': ", '--dataset-download']),
])
def test_missing_data_is_refused(tmp_path, argv, parts):
    gone = str(tmp_path / 'gone')
    with pytest.raises(DataError) as error:
        images_of_epoch([word.format(gone=gone) for word in argv])
    assert all(part.format(gone=gone) in str(error.value) for part in parts)


@pytest.mark.parametrize('flags', [['nope'], ['--data-dir', 'nope']])
@pytest.mark.parametrize('parse', [parse_train_args, parse_validate_args])
def test_a_folder_given_with_the_demo_has_no_effect_and_warns(parse, flags, capsys):
    parse(['--dataset', 'demo', *flags])
    assert "warning: 'nope' has no effect with --dataset demo" in capsys.readouterr().err
    parse(['--dataset', 'demo'])
    assert 'no effect' not in capsys.readouterr().err


@pytest.mark.parametrize('name', ['cifar10', 'ImageFolder', 'wds', 'Demo'])
def test_a_name_without_a_type_is_a_folder_as_in_timm_and_warns(sources, name, capsys):
    _, root, _, count, needed = sources['folder']
    argv = ['--data-dir', str(root), *needed]
    assert images_of_epoch([*argv, '--dataset', name]) == images_of_epoch(argv) == count
    warning, = capsys.readouterr().err.splitlines()
    assert f"warning: --dataset '{name}' has no effect, as in timm" in warning and f"use 'TYPE/{name}'" in warning
    parse_validate_args([*argv, '--dataset', name])
    assert f"--dataset '{name}' has no effect" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_train_args([*argv, '--dataset', name, '--target-key', 'label'])
    assert "--target-key 'label' does nothing on a folder" in capsys.readouterr().err
    with pytest.raises(DataError, match='would be both training and validation data'):
        images_of_epoch(['--data-dir', str(root / 'train'), '--dataset', name])


def test_a_part_of_a_split_is_refused_in_a_script(photos):
    with pytest.raises(DataError, match='only hfds/ and tfds/ take a part'):
        create_dataset('', str(photos), 'train[:1]')


def test_splits_that_torchvision_checks_itself_are_refused(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'x.png')
    for name in ('torch/imagenet', 'torch/places365', 'torch/inaturalist'):
        with pytest.raises(DataError, match='Train'):
            create_dataset(name, str(tmp_path), 'Train')


@pytest.mark.parametrize('content', [b'', b'text' * 300], ids=['empty', 'text'])
def test_a_tar_file_that_cannot_be_read_is_refused(content, tmp_path):
    (tmp_path / 'x.tar').write_bytes(content)
    with pytest.raises(DataError, match=f"'{tmp_path}/x.tar'"):
        create_dataset('', str(tmp_path / 'x.tar'), 'train')
