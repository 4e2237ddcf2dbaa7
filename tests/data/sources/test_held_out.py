"""A share of the training images that is held out: which images, for every kind of data with an index."""
import csv
import hashlib
import os
import pickle
import random
import re
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from agmax_timm.assembly.datasets import build_datasets, open_split, with_num_classes
from agmax_timm.base.errors import DataError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.folder import FolderReader
from agmax_timm.data.sources.held_out import choose
from agmax_timm.options.changed_options import validate_command
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from tests.helpers.run_files import status_of
from tests.helpers.shards import write_parquet

CONFIG = {'input_size': (3, 16, 16)}
COUNTS = {'ant': 20, 'bee': 7, 'Käfer': 3, 'solo': 1, 'two': 2}


@pytest.fixture(scope='module')
def unsorted(tmp_path_factory):
    """A folder of class folders without splits. Each image has its own colour."""
    root = tmp_path_factory.mktemp('unsorted')
    for number, (name, count) in enumerate(COUNTS.items()):
        (root / name).mkdir()
        for index in range(count):
            Image.new('RGB', (8, 8), (40 * number, 5 * index, 0)).save(root / name / f'{index:02d}.png')
    return root


def slowly(names, labels, share, seed):
    """The chosen names, computed one class at a time."""
    chosen = set()
    for label in set(labels):
        own = sorted((name for name, other in zip(names, labels) if other == label),
                     key=lambda name: hashlib.blake2b(f'{seed}/{name}'.encode(), digest_size=8).digest())
        quota = int(share * len(own) + 0.5) if len(own) > 1 else 0
        chosen.update(own[:min(len(own) - 1, max(1, quota))] if len(own) > 1 else [])
    return chosen


@pytest.mark.parametrize('share', [0.01, 0.1, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('seed', [0, 42, 2 ** 32 - 1])
def test_the_choice_equals_a_simple_loop_and_ignores_the_order(share, seed):
    names = [f'{name}/{index:02d}.png' for name, count in COUNTS.items() for index in range(count)]
    labels = [name.split('/')[0] for name in names]
    expected = slowly(names, labels, share, seed)
    for _ in range(3):
        order = random.Random(share).sample(range(len(names)), len(names))
        chosen = choose([names[i] for i in order], [labels[i] for i in order], share, seed)
        assert {names[i] for i, is_chosen in zip(order, chosen) if is_chosen} == expected
    assert not any(name.startswith('solo') for name in expected)
    assert {name.split('/')[0] for name in expected} == set(COUNTS) - {'solo'}


def test_the_choice_equals_that_of_earlier_versions():
    """Checkpoints contain only the share and the seed."""
    chosen = choose([f'ant/{index}.jpg' for index in range(20)], [0] * 20, 0.2, 42)
    assert np.flatnonzero(chosen).tolist() == [1, 10, 12, 16]


def test_a_larger_share_contains_a_smaller_one_and_seeds_differ():
    names, labels = [f'{index}.jpg' for index in range(1000)], [0] * 1000
    small, large, other = (choose(names, labels, *words) for words in ((0.1, 1), (0.2, 1), (0.1, 2)))
    assert small.sum() == other.sum() == 100 and large.sum() == 200 and (large | ~small).all()
    assert 0 < (small & other).sum() < 30  # 10 are expected


def parts(argv):
    """File names of both parts, as training opens them."""
    options = parse_train_args([*map(str, argv), '--num-classes', '10'])
    train, validation = build_datasets(options, CONFIG)
    return [[dataset.reader.filename(index) for index in range(len(dataset))] for dataset in (train, validation)]


def test_no_image_is_in_both_parts_and_none_is_missing(unsorted):
    train, validation = parts([unsorted, '--val-split', 0.25])
    names = [f'{name}/{index:02d}.png' for name, count in COUNTS.items() for index in range(count)]
    assert set(validation) == slowly(names, [name.split('/')[0] for name in names], 0.25, 42)
    assert sorted(train + validation) == sorted(names) and train == [name for name in train if name not in validation]


def test_the_order_of_the_file_system_has_no_effect(unsorted, monkeypatch):
    expected = parts([unsorted, '--val-split', 0.25])
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass
    monkeypatch.setattr(os, 'scandir', Reversed)
    assert parts([unsorted, '--val-split', 0.25]) == expected


def test_the_name_of_the_split_has_no_effect(unsorted, tmp_path):
    os.symlink(unsorted, tmp_path / 'train')
    os.symlink(unsorted, tmp_path / 'val')
    assert parts([tmp_path, '--val-split', 0.25]) == parts([unsorted, '--val-split', 0.25])
    assert parts([tmp_path, '--val-split', 0.25, '--train-split', 'val']) == parts([unsorted, '--val-split', 0.25])


def test_the_seed_is_that_of_the_run_or_val_split_seed(unsorted):
    default = parts([unsorted, '--val-split', 0.25])
    assert default != parts([unsorted, '--val-split', 0.25, '--seed', 1])
    assert default == parts([unsorted, '--val-split', 0.25, '--seed', 1, '--val-split-seed', 42])


@pytest.fixture(scope='module')
def kinds(unsorted, tmp_path_factory):
    folder = tmp_path_factory.mktemp('kinds')
    with tarfile.open(folder / 'x.tar', 'w') as tar:
        tar.add(unsorted, arcname='.')
    return {
        'folder': [unsorted], 'tar': [folder / 'x.tar'], 'demo': ['--dataset', 'demo'],
        'torch/folder': [unsorted, '--dataset', 'torch/folder'],
        'hfds': [folder / 'cache', '--dataset', f'hfds/{write_parquet(folder / "parquet")}'],
    }


@pytest.mark.parametrize('kind', ['folder', 'tar', 'demo', 'torch/folder', 'hfds'])
def test_the_parts_of_every_kind_with_an_index_are_the_whole(kinds, kind):
    """The order is that of the whole. Each part has its own transform."""
    whole = open_split(parse_validate_args([*map(str, kinds[kind]), '--split', 'train']), 'train')
    options = parse_train_args([*map(str, kinds[kind]), '--val-split', '0.3', '--num-classes', '10'])
    both = build_datasets(options, CONFIG)
    images = [[(np.asarray(image).tobytes(), label) for image, label in (dataset[i] for i in range(len(dataset)))]
              for dataset in (whole, *both)]
    assert len(both[1]) > 0 and sorted(images[1] + images[2]) == sorted(images[0])
    if len(set(images[0])) == len(images[0]):
        assert all([sample for sample in images[0] if sample in part] == part for part in images[1:])
    labels = [[label for _, label in part] for part in images]
    for label in set(labels[0]):
        count = labels[0].count(label)
        assert labels[2].count(label) == (min(count - 1, max(1, int(0.3 * count + 0.5))) if count > 1 else 0)
    for number, dataset in enumerate(both):
        dataset.transform = lambda image, number=number: number
    assert [dataset[0][0] for dataset in both] == [0, 1]


def test_messages_number_the_rows_of_the_whole_split(kinds):
    words = [str(word) for word in kinds['hfds']]
    whole = open_split(parse_validate_args([*words, '--split', 'train']), 'train')
    names = []
    for part in build_datasets(parse_train_args([*words, '--val-split', '0.3', '--num-classes', '10']), CONFIG):
        for index, (image, label) in enumerate(part):
            names.append(part.damage.path(index))
            expected, row_label = whole[int(names[-1].removeprefix('sample '))]
            assert (image.tobytes(), label) == (expected.tobytes(), row_label)
    assert sorted(names) == sorted(f'sample {row}' for row in range(18))


@pytest.mark.parametrize('argv, message', [
    (['--dataset', 'wds/x', '--val-split', '0.1'], "--dataset 'wds/x' is read in sequence: name a split"),
    (['--dataset', 'hfds/x', '--task', 'multilabel', '--num-classes', '3', '--val-split', '0.1'], '--task multilabel'),
])
def test_data_without_an_index_or_with_several_labels_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_train_args(['x', *argv])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_data_with_one_image_per_class_is_refused(tmp_path):
    for name in ('ant', 'bee'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / '1.png')
    with pytest.raises(DataError, match="--val-split 0.1 holds out no image: .* add images, or .* --val-split ''"):
        parts([tmp_path, '--val-split', 0.1])


def test_the_command_of_a_model_card_contains_the_share():
    saved = vars(parse_train_args(['data', '--val-split', '0.25', '--train-split', 'all', '--seed', '7']))
    assert validate_command(saved, 'x').endswith('--split 0.25 --train-split all --val-split-seed 7')
    saved = vars(parse_train_args(['data', '--val-split', 'val', '--train-split', 'all', '--seed', '7']))
    assert validate_command(saved, 'x').endswith('--split val')


# One scan of the data.

@pytest.fixture
def scans(monkeypatch):
    """Folders that are indexed."""
    roots, init = [], FolderReader.__init__

    def counted(self, root, *args):
        roots.append(root)
        init(self, root, *args)

    monkeypatch.setattr(FolderReader, '__init__', counted)
    return roots


def opened_in_run(argv, config=CONFIG):
    """The data sets of a run, opened as by create_run."""
    options, opened = with_num_classes(parse_train_args([*map(str, argv), '--max-damaged', '0.2']))
    return build_datasets(replace(options, num_classes=10), config, opened)


@pytest.mark.parametrize('method', [[], ['--agmax'], ['--agmax-teacher', 'memory']], ids=str)
@pytest.mark.parametrize('validation', ['', '0.25'])
def test_a_folder_is_indexed_once(unsorted, scans, method, validation):
    opened_in_run([unsorted, *method, '--val-split', validation])
    assert scans == [str(unsorted)]


@pytest.mark.parametrize('kind', ['folder', 'tar', 'demo', 'torch/folder', 'hfds'])
def test_data_that_is_opened_once_is_that_of_two_openings(kinds, kind):
    """The image mode is that of the model, which is unknown when the classes are counted."""
    gray, argv = {'input_size': (1, 16, 16)}, [*kinds[kind], '--val-split', '0.3']
    expected, found = ([[(image.mode, image.tobytes(), label) for image, label in (part[i] for i in range(len(part)))]
                        for part in opened_in_run([*argv, *method], gray)] for method in ([], ['--agmax']))
    assert found == expected and {mode for part in found for mode, *_ in part} == {'L'}


def test_the_parts_of_one_scan_have_their_own_records_of_damage(unsorted):
    train, validation = opened_in_run([unsorted, '--val-split', '0.25', '--agmax'])
    assert (train.damage.max_share, validation.damage.max_share) == (0.2, None), 'evaluation allows no damaged image'
    train.damage.flags[0] = 1
    assert len(train.damage.flags) == 24 and validation.damage.flags.tolist() == [0] * 9


# The number of classes.

def num_classes_of(argv):
    options, _ = with_num_classes(parse_train_args(argv))
    return options.num_classes


@pytest.mark.parametrize('kind, count', [('folder', 5), ('tar', 5), ('demo', 10), ('torch/folder', 5), ('hfds', 3)])
def test_agmax_takes_the_number_of_classes_from_the_data(kinds, kind, count, caplog):
    argv = [*map(str, kinds[kind]), '--val-split', '0.3']
    with caplog.at_level('INFO'):
        assert num_classes_of([*argv, '--agmax']) == count
    assert f'--num-classes {count}: ' in caplog.text
    assert num_classes_of(argv) is None
    assert num_classes_of([*argv, '--agmax', '--num-classes', '7']) == 7


def test_data_that_does_not_know_its_classes_needs_num_classes(unsorted, monkeypatch, caplog):
    monkeypatch.setattr('agmax_timm.assembly.datasets.class_to_idx', lambda dataset: {})
    assert num_classes_of([str(unsorted), '--val-split', '0.3', '--agmax']) is None
    assert caplog.messages[-1].endswith('on which the agreement depends. Set --num-classes')


def test_a_class_map_may_have_more_classes_than_folders(unsorted, tmp_path):
    (tmp_path / 'map.txt').write_text('ant\nbee\ncat\ndog\neel\nfox\ntwo\n')
    (tmp_path / 'map.pkl').write_bytes(pickle.dumps({'ant': 0, 'bee': 8}))
    for name, count in (('map.txt', 7), ('map.pkl', 9)):
        argv = [str(unsorted), '--val-split', '0.3', '--class-map', str(tmp_path / name), '--agmax']
        assert num_classes_of(argv) == count


# From the command line.

@pytest.fixture(scope='module')
def run(unsorted, tmp_path_factory):
    """Function: the folder of a run on the unsorted images, with another seed than the default."""
    output = tmp_path_factory.mktemp('runs')

    def train(*words):
        small = ['--model', 'test_resnet', '--img-size', '32', '-j', '0', '-b', '8', '--lr', '0.01',
                 '--class-stats', 'auto', '--loss-class-weight', 'effective_num', '--balanced-sampling']
        train_cli.main([str(unsorted), *small, '--warmup-epochs', '0', '--val-split', '0.25', '--agmax', '--output',
                        str(output), '--experiment', 'a', '--seed', '7', *words])
        return output / 'a'
    return train


@pytest.mark.slow
def test_all_commands_use_the_same_share(run, unsorted, results_of, caplog, capsys, tmp_path, monkeypatch):
    """Training with options that count its images, resuming, evaluation, report and --check-data."""
    with caplog.at_level('INFO'):
        folder = run('--epochs', '1', '--cooldown-epochs', '1', '--report')
    assert caplog.text.count('train 24 images; 0.25 of train 9 images') == 2  # and in the report
    assert (folder / 'report.html').exists()
    measured = list(csv.DictReader((folder / 'summary.csv').open()))
    results = results_of(unsorted, '--checkpoint', folder / 'last.pth.tar')
    assert results['top1'] == pytest.approx(float(measured[-1]['eval_top1']), abs=1e-3)
    assert results['loss'] == pytest.approx(float(measured[-1]['eval_loss']), abs=1e-6)
    (tmp_path / 'without validation').mkdir()
    (tmp_path / 'without validation' / 'train').symlink_to(unsorted)
    again = results_of(tmp_path / 'without validation', '--checkpoint', folder / 'last.pth.tar')
    assert again['top1'] == results['top1']
    caplog.clear()
    results_of(unsorted, '--checkpoint', folder / 'last.pth.tar', '--split', '0.5', '--retry')
    assert len(re.findall("--split '0.5' .*held out '0.25'", caplog.text)) == 1
    assert 'Data: 0.5 of train 17 images' in caplog.text
    results_of(unsorted, '--checkpoint', folder / 'last.pth.tar', '--val-split-seed', '42')
    assert re.search('--val-split-seed 42 .*held out .*7', caplog.text)

    names = [f'{name}/{index:02d}.png' for name, count in COUNTS.items() for index in range(count)]
    held_out, default = (slowly(names, [name.split('/')[0] for name in names], 0.25, seed) for seed in (7, 42))
    damaged = shutil.copytree(unsorted, tmp_path / 'damaged') / min(held_out - default)
    damaged.write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    for main, words, split in (
            (train_cli.main, ['--val-split', '0.25'], 'train'),
            (train_cli.main, ['--val-split', '0.25', '--val-split-seed', '7'], '0.25 of train'),
            (validate_cli.main, ['--checkpoint', str(folder / 'last.pth.tar')], '0.25 of train')):
        assert status_of(main, [str(tmp_path / 'damaged'), *words, '--check-data']) == 1
        assert '0.25 of train: 9 images, 5 classes' in capsys.readouterr().out
        _, *rows = csv.reader((tmp_path / 'data-check.csv').open())
        assert rows == [[split, str(damaged), 'empty file']]
    with caplog.at_level('INFO'):
        run('--epochs', '2', '--seed', '42', '--resume', str(folder / 'last.pth.tar'))
    assert "--val-split-seed 7, as in '" in caplog.text
    with pytest.raises(SystemExit) as end:
        run('--epochs', '2', '--resume', str(folder / 'last.pth.tar'), '--val-split-seed', '42')
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert '--val-split-seed 42 in place of 7: keep' in error


@pytest.mark.slow
def test_a_run_with_num_classes_from_the_data_equals_one_that_states_it(run, scans):
    tables = []
    for number, words in enumerate((['--num-classes', '5'], [])):
        folder = run('--epochs', '1', *words, '--experiment', f'b{number}')
        rows = list(csv.DictReader((folder.parent / f'b{number}' / 'summary.csv').open()))
        tables.append([(row['train_loss'], row['eval_loss']) for row in rows])
    assert tables[0] == tables[1] and len(tables[0]) == 1
    assert len(scans) == 2, 'one scan in each run'


def test_num_classes_come_from_the_checkpoint_before_the_data(unsorted, tmp_path):
    torch.save({'state_dict': {}, 'args': {'model': 'test_resnet', 'num_classes': 9}}, tmp_path / 'last.pth.tar')
    argv = [str(unsorted), '--val-split', '0.3', '--agmax', '--resume', str(tmp_path / 'last.pth.tar')]
    assert num_classes_of(argv) == 9
