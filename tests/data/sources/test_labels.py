"""Labels: exact class indices are accepted, all others are refused in one line with sample and value."""
import io
import json
import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import MultiLabelTarget
from torch.utils.data import DataLoader

from agmax_timm.base.errors import DataError, LabelError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.checks import check_labels
from agmax_timm.data.sources.labels import check_column, class_index
from agmax_timm.data.sources.shards import open_dataset, share_evaluation

NAN = float('nan')
SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-j', '0', '-b', '2', '--device', 'cpu']


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(datasets.config, 'SLEEP_TIME_ON_THREADS_SHUTDOWN', 0)
    datasets.disable_progress_bars()


@pytest.mark.parametrize('label, index', [
    (2, 2), (2., 2), (True, 1), (False, 0), (np.int64(1), 1), (np.float32(2), 2), (np.bool_(True), 1)])
def test_exact_labels_are_accepted(label, index):
    assert class_index(label, 3) == index and type(class_index(label)) is int


@pytest.mark.parametrize('label, reason', [
    (None, 'no class'), ('cat', '--class-map'), ('2', '--class-map'), (b'2', '--class-map'), (1.5, 'whole number'),
    (NAN, 'whole number'), (float('inf'), 'whole number'), (-1, 'start at 0'), (3, 'classes 0 to 2'),
    (3., 'classes 0 to 2'), ([1], 'one class index'), (np.array([1, 0]), 'one class index'), (1j, 'whole number')])
def test_other_labels_are_refused(label, reason):
    with pytest.raises(ValueError, match=reason):
        class_index(label, 3)


def write_parquet(folder, labels, feature, splits=('train', 'validation'), key='label'):
    folder.mkdir(exist_ok=True)
    features = datasets.Features({'image': datasets.Image(), key: feature})
    for split in splits:
        images = [Image.new('RGB', (8, 8), (20 * number,) * 3) for number in range(len(labels))]
        datasets.Dataset.from_dict({'image': images, key: labels}, features).to_parquet(folder / f'{split}.parquet')
    return folder


def value(kind):
    return datasets.Value(kind)


# Labels, their column, number of outputs, and sample, value and reason in the message; None where they are taken.
COLUMNS = {
    'null': ([0, 1, None], value('int64'), 3, ('sample 2', 'None', 'no class')),
    'string': (['cat', 'dog', 'cat'], value('string'), 3, ('sample 0', "'cat'", '--class-map')),
    'invisible': (['a\u200b'], value('string'), 3, ('sample 0', r"'a\u200b'", '--class-map')),
    'fraction': ([0., 1.5], value('float32'), 3, ('sample 1', '1.5', 'correct the label, or check --target-key')),
    'NaN': ([0., NAN], value('float64'), 3, ('sample 1', 'nan', 'whole number')),
    'float past the outputs': ([0., 3.], value('float32'), 3, ('sample 1', '3.0', 'classes 0 to 2')),
    'lists': ([[0], [1, 2]], datasets.Sequence(value('int64')), 3, ('sample 0', '[0]', '--task multilabel')),
    'whole floats': ([0., 2., 1.], value('float32'), 3, None),
    'bools': ([False, True, True], value('bool'), 2, None),
    'int8': ([2, 0, 1], value('int8'), 3, None),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
@pytest.mark.parametrize('case', COLUMNS)
def test_labels_of_hugging_face_data_are_accepted_or_refused(tmp_path, kind, case):
    labels, feature, num_classes, told = COLUMNS[case]
    folder = write_parquet(tmp_path / 'data', labels, feature)

    def read():
        dataset = open_dataset(f'{kind}/{folder}', str(tmp_path / 'cache'), 'train', num_samples=len(labels))
        check_labels(dataset, num_classes)
        return [target for _, target in (dataset if kind == 'hfids' else map(dataset.__getitem__, range(len(labels))))]
    if told is None:
        targets = read()
        assert targets == labels and all(type(target) is int for target in targets)
        return
    with pytest.raises(LabelError) as caught:
        read()
    assert all(part in str(caught.value) for part in told) and '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_a_class_map_translates_labels(tmp_path, kind):
    folder = write_parquet(tmp_path / 'data', ['cat', 'dog', 'fly'], value('string'))

    def read(names):
        (tmp_path / 'map.txt').write_text(names)
        dataset = open_dataset(f'{kind}/{folder}', str(tmp_path / 'cache'), 'train', num_samples=3,
                               class_map=str(tmp_path / 'map.txt'))
        check_labels(dataset, 3)
        return [target for _, target in (dataset if kind == 'hfids' else map(dataset.__getitem__, range(3)))]
    assert read('fly\ncat\ndog\n') == [1, 2, 0]
    with pytest.raises(LabelError, match="sample 2.*'fly': .*--class-map: add it there"):
        read('cat\ndog\n')


def test_labels_that_start_at_1_are_refused(tmp_path):
    folder = write_parquet(tmp_path / 'data', [1, 2, 3], value('int64'))
    dataset = open_dataset(f'hfds/{folder}', str(tmp_path / 'cache'), 'train')
    with pytest.raises(DataError, match='labels 1 to 3.*subtract 1'):
        check_labels(dataset, 3)
    dataset = open_dataset(f'hfids/{folder}', str(tmp_path / 'cache'), 'train', num_samples=3)
    check_labels(dataset, 3)
    with pytest.raises(LabelError, match='sample 2 .*label 3: .*classes 0 to 2: subtract 1 if .*, or .* --num-classes'):
        list(dataset)


def test_a_label_in_a_nested_column_is_checked(tmp_path):
    folder = write_parquet(tmp_path / 'data', [{'a': 0}, {'a': None}], {'a': value('int64')})
    dataset = open_dataset(f'hfds/{folder}', str(tmp_path / 'cache'), 'train', target_key='label/a')
    with pytest.raises(LabelError, match='sample 1 .*train.* None'):
        check_column(dataset)


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
@pytest.mark.parametrize('labels, feature, dense, told', [
    ([[0], [1, 3]], value('int64'), False, (1, '[1, 3]')), ([[0], ['x']], value('string'), False, (0, "['0']")),
    ([[0., 1., 1.], [1., 2., 0.]], value('float32'), True, (1, '[1.0, 2.0, 0.0]')),
    ([[0, 2], []], value('int64'), False, None)])
def test_several_labels_per_image_are_checked(tmp_path, kind, labels, feature, dense, told):
    folder = write_parquet(tmp_path / 'data', labels, datasets.Sequence(feature))

    def read():
        dataset = open_dataset(f'{kind}/{folder}', str(tmp_path / 'cache'), 'train', num_samples=2,
                               target_transform=MultiLabelTarget(3, dense=dense))
        check_labels(dataset, 3)
        return [target for _, target in (dataset if kind == 'hfids' else map(dataset.__getitem__, range(2)))]
    if told is None:
        assert [target.tolist() for target in read()] == [[1, 0, 1], [0, 0, 0]]
        return
    with pytest.raises(LabelError) as caught:
        read()
    assert f'sample {told[0]} has the label {told[1]}: ' in str(caught.value)


def write_shard(path, labels, ending='cls'):
    with tarfile.open(path, 'w') as tar:
        for number, label in enumerate(labels):
            image = io.BytesIO()
            Image.new('RGB', (8, 8), (20 * number,) * 3).save(image, 'PNG')
            for name, content in ((f'{number:03d}.png', image.getvalue()), (f'{number:03d}.{ending}', label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_shard(tmp_path, labels, num_classes=3, workers=0, share=False, training=False, **kwargs):
    write_shard(tmp_path / 'x.tar', labels, 'json' if 'target_key' in kwargs else 'cls')
    dataset = open_dataset('wds/x', str(tmp_path), f'x.tar|{len(labels)}', is_training=training, **kwargs)
    check_labels(dataset, num_classes)
    if share:
        share_evaluation(dataset, 2)
    dataset.transform = lambda image: torch.zeros(1)
    return [target for _, targets in DataLoader(dataset, 2, num_workers=workers) for target in targets.tolist()]


# The content of .cls; value and reason in the message on the last sample.
SHARDS = [
    ([b'0', b'cat'], "'cat'", 'number'), ([b'0', b'1.5'], "'1.5'", 'whole number'), ([b'0', b''], "''", 'number'),
    ([b'0', b'-1'], "'-1'", 'start at 0'), ([b'1', b'2', b'3'], "'3'", 'classes 0 to 2'),
    ([b'0', b'nan'], "'nan'", 'whole number'),
]


@pytest.mark.slow
@pytest.mark.parametrize('options', [{}, {'workers': 1}, {'share': True}, {'training': True}], ids=str)
@pytest.mark.parametrize('labels, shown, reason', SHARDS)
def test_invalid_labels_in_shards_are_refused(tmp_path, labels, shown, reason, options):
    with pytest.raises(LabelError) as caught:
        read_shard(tmp_path, labels, **options)
    line = str(caught.value)
    name = f"sample '{len(labels) - 1:03d}' of '{tmp_path / 'x.tar'}' has the label {shown}: "
    assert line.startswith(name) and reason in line and '\n' not in line


@pytest.mark.slow
def test_exact_labels_in_shards_are_accepted(tmp_path):
    assert read_shard(tmp_path, [b'0', b'2.0\n', b' 1 ']) == [0, 2, 1]


@pytest.mark.parametrize('label, told', [
    (1.5, 'label 1.5: .* whole number'), (None, 'label None: .* no class'), ('cat', "label 'cat'"),
    (3, 'label 3: .* classes 0 to 2'), ([0, 1], r'label \[0, 1\]')])
def test_invalid_labels_in_json_files_are_refused(tmp_path, label, told):
    labels = [json.dumps({'kind': value}).encode() for value in (0, label)]
    with pytest.raises(LabelError) as caught:
        read_shard(tmp_path, labels, target_key='kind')
    assert re.search(told, str(caught.value))


def test_exact_labels_in_json_files_are_accepted(tmp_path):
    labels = [json.dumps({'kind': value}).encode() for value in (2, 1.0, True, '2', -1)]
    assert read_shard(tmp_path, labels, target_key='kind') == [2, 1, 1, 2]  # timm leaves out -1
    with pytest.raises(LabelError, match="sample '001' of .* has no field 'kind'"):
        read_shard(tmp_path, [labels[0], b'{}'], target_key='kind')


def test_a_sample_with_invalid_json_is_left_out_with_a_warning(tmp_path, caplog):
    labels = [json.dumps({'kind': value}).encode() for value in (2, 1)]
    assert read_shard(tmp_path, [labels[0], b'{', labels[1]], target_key='kind') == [2, 1]
    assert 'Handling webdataset error' in caplog.text


@pytest.mark.parametrize('case', ['null', 'string'])
@pytest.mark.parametrize('command', ['train', 'validate', 'train --check-data', 'validate --check-data'])
def test_every_command_refuses_invalid_labels_in_one_line(tmp_path, monkeypatch, capsys, weights, command, case):
    monkeypatch.chdir(tmp_path)
    labels, feature, _, told = COLUMNS[case]
    folder = write_parquet(tmp_path / 'data', labels, feature)
    name, *check = command.split()
    script = {'train': train_cli.main, 'validate': validate_cli.main}[name]
    if check:
        script = {'train': train_cli.main, 'validate': validate_cli.main}[name]
    elif name == 'validate':
        check = ['--checkpoint', weights()[0]]
    with pytest.raises(SystemExit) as end:
        script(['--dataset', f'hfds/{folder}', '--data-dir', str(tmp_path / 'cache'), *SMALL, *check])
    error = capsys.readouterr().err
    assert end.value.code == 2 and 'Traceback' not in error
    line, = [line for line in error.splitlines() if 'error:' in line]
    assert all(part in line for part in told)
    assert not (tmp_path / 'output').exists()


@pytest.mark.parametrize('script', ['train', 'validate'])
@pytest.mark.parametrize('workers', ['0', '1'])
def test_an_invalid_label_found_while_reading_ends_a_run_in_one_line(tmp_path, capsys, weights, script, workers):
    write_shard(tmp_path / 'x.tar', [b'0', b'1', b'2', b'fly'])
    argv = ['--dataset', 'wds/x', '--data-dir', str(tmp_path), *SMALL, '-j', workers]
    with pytest.raises(SystemExit) as end:
        if script == 'train':
            train_cli.main([*argv, '--train-split', 'x.tar|4', '--val-split', '', '--output', str(tmp_path / 'output')])
        else:
            validate_cli.main([*argv, '--split', 'x.tar|4', '--checkpoint', weights()[0]])
    error = capsys.readouterr().err
    assert end.value.code == 2 and 'Traceback' not in error
    line, = [line for line in error.splitlines() if 'error:' in line]
    assert all(part in line for part in ("sample '003'", str(tmp_path / 'x.tar'), "label 'fly'"))


def test_check_data_counts_whole_floats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = write_parquet(tmp_path / 'data', [0., 2., 2.], value('float32'), splits=['train'])
    train_cli.main(['--dataset', f'hfds/{folder}', '--data-dir', str(tmp_path / 'cache'), '--check-data', '-j', '0',
                    '--val-split', ''])
    assert 'train: 3 images, 2 classes, 1 to 2' in capsys.readouterr().out
