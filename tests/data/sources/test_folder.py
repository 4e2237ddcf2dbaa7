"""The folder index: timm's own reader is the oracle of its content. Its memory is measured in a forked process."""
import logging
import os
import pickle
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from agmax_timm.base.errors import DataError
from agmax_timm.data.sources.checks import check_classes
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.folder import FolderReader
from agmax_timm.data.sources.natural_order import natural_keys

# Case pairs, digits of several scripts and of none (a superscript), characters around the digits in ASCII, three
# that change length or depend on their neighbours in lower case, an emoji, and a byte that is not UTF-8.
ALPHABET = 'aAbBzZ000119 -._/\1\2~:' + '٣१０²ΣσςİIßéÉK😀\udc80'
WORDS = ['1', '01', '001', '2', '10', '9', 'a', 'A', 'b', 'img', 'IMG_', '-', '_', ' ', '.', 'é', 'Σ', '٣', '\1', '~']
EXTENSIONS = ['.jpg', '.JPG', '.jpeg', '.png', '.Png', '.txt', '.jpg.bak', '.tar.png', '.', '', '.webp']
INPUT_KEYS = [None, '', '.jpg', '.webp;.png', 'jpg', '.JPG', '.txt;', '.']


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def make_tree(root, seed):
    """A small tree with names that are hard to sort, nested folders, links to files and folders, and dangling links."""
    draw = random.Random(seed)
    words = draw.sample(WORDS, draw.randint(2, 6))  # few, so that names collide but for case and zeros
    folders = [root]
    for _ in range(draw.randint(0, 8)):
        folders.append(draw.choice(folders) / ''.join(draw.choices(words, k=draw.randint(1, 3))).replace('.', 'x'))
        folders[-1].mkdir(exist_ok=True)
    for folder in folders:
        for _ in range(draw.choice([0, 2, 8])):
            stem = ''.join(draw.choices(words, k=draw.randint(0, 4)))
            stem = 'x' * stem.startswith('._') + stem  # see test_hidden_files_are_ignored
            path = folder / (stem + draw.choice(EXTENSIONS[:5] if draw.random() < 0.7 else EXTENSIONS))
            if path.name and not os.path.lexists(path):
                kind = draw.random()
                if kind < 0.9:
                    touch(path)
                else:
                    path.symlink_to('missing' if kind < 0.95 else path.name)
    if draw.random() < 0.3:
        touch(root.parent / 'linked' / 'Inner1' / '7.png')
        os.symlink(root.parent / 'linked', draw.choice(folders) / 'link2')


def open_both(root, **kwargs):
    """Both readers. If timm's class order depends on the process, timm's reader gets ours as a class map."""
    try:
        theirs = ReaderImageFolder(root, **kwargs)
    except RuntimeError:
        with pytest.raises(RuntimeError, match='found 0 images'):
            FolderReader(root, **kwargs)
        return None
    ours = FolderReader(root, **kwargs)
    keys = [natural_key(name) for name in ours.class_to_idx]
    if not kwargs.get('class_map') and any(key in keys[:i] for i, key in enumerate(keys)):
        assert [natural_key(name) for name in theirs.class_to_idx] == keys
        theirs = ReaderImageFolder(root, **{**kwargs, 'class_map': dict(ours.class_to_idx)})
    return ours, theirs


def assert_equal(ours, theirs):
    assert list(ours.class_to_idx.items()) == list(theirs.class_to_idx.items())
    assert len(ours) == len(theirs) and ours.samples == theirs.samples
    assert all(type(target) is int for _, target in ours.samples)
    for options in (dict(), dict(basename=True), dict(absolute=True)):
        assert ours.filenames(**options) == theirs.filenames(**options)


@pytest.mark.slow
@pytest.mark.parametrize('block', range(5))
def test_random_trees_are_read_as_by_timm(tmp_path, block):
    read = 0
    for seed in range(100 * block, 100 * block + 100):
        root = tmp_path / str(seed) / 'root9'
        root.mkdir(parents=True)
        make_tree(root, seed)
        draw = random.Random(-seed)
        labels = [name for _, names, _ in os.walk(root) for name in names]
        for kwargs in (dict(), dict(input_key=draw.choice(INPUT_KEYS)),
                       dict(class_map={name: i for i, name in enumerate(draw.sample(labels, len(labels) // 2), 3)})):
            both = open_both(str(root) + draw.choice(['', '/']), **kwargs)
            if both:
                assert_equal(*both)
                read += 1
    assert read > 150


def test_hidden_files_are_ignored(tmp_path):
    for path in ('ant/1.jpg', 'ant/._1.jpg', 'ant/.1.jpg', '.git/2.jpg', 'ant/.git/bee/3.jpg', '._.jpg', '..x/4.jpg'):
        touch(tmp_path / path)
    (tmp_path / 'ant' / '.loop').symlink_to('..')
    reader = FolderReader(str(tmp_path))
    assert reader.filenames() == ['ant/1.jpg', 'ant/.1.jpg'] and reader.class_to_idx == {'ant': 0}


def test_relative_folders_are_read_as_by_timm(tmp_path, monkeypatch):
    make_tree(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / 'one' / '1.jpg')
    for root in ('.', './', '../' + tmp_path.name, 'one//'):
        assert_equal(*open_both(root))


@given(st.lists(st.text(ALPHABET.replace('²', ''), min_size=1, max_size=7), min_size=1, max_size=20),
       st.integers(0, 30))
@settings(max_examples=200)
def test_natural_keys_compare_as_those_of_timm(names, number):
    names = [f'/{name}.' for name in names] + [f'/x{number}x²1.png']
    ours, theirs = natural_keys(names), [natural_key(name) for name in names]
    for i in range(len(names)):
        for j in range(i):
            assert (ours[i] < ours[j]) == (theirs[i] < theirs[j])
            assert (ours[i] == ours[j]) == (theirs[i] == theirs[j])


def test_long_numbers_sort_as_in_timm():
    names = ['9' * 200, '1' + '0' * 200, '0' * 250 + '7', '7', '8', '']
    assert sorted(names, key=dict(zip(names, natural_keys(names))).get) == sorted(names, key=natural_key)


def test_classes_that_differ_in_zeros_or_case_have_a_fixed_order(tmp_path):
    for name in ('A', 'a', '1', '01', '001'):
        touch(tmp_path / name / 'x.jpg')
    assert list(FolderReader(str(tmp_path)).class_to_idx) == ['001', '01', '1', 'A', 'a']


@pytest.mark.parametrize('name', ['²', '1²2'])
def test_superscripts_that_timm_refuses_are_read(tmp_path, name):
    touch(tmp_path / name / '3²4.jpg')
    with pytest.raises(ValueError, match='invalid literal'):
        ReaderImageFolder(str(tmp_path))
    assert FolderReader(str(tmp_path)).filenames() == [f'{name}/3²4.jpg']


def test_a_class_map_file_is_read_as_by_timm(tmp_path):
    for name in ('ant', 'bee', 'cat'):
        touch(tmp_path / name / '1.png')
    (tmp_path / 'map.txt').write_text('cat\nfly\nant\n')
    assert_equal(*open_both(str(tmp_path), class_map='map.txt'))
    assert [target for _, target in FolderReader(str(tmp_path), class_map='map.txt').samples] == [2, 0]


def test_the_data_set_of_timm_uses_this_reader(photos):
    dataset = create_dataset('', str(photos), 'validation')
    assert isinstance(dataset.reader, FolderReader) and dataset.reader.root == str(photos / 'val')
    theirs = ReaderImageFolder(str(photos / 'val'))
    assert dataset.filenames() == theirs.filenames() and dataset.filename(5, basename=True) == '005.jpg'
    for index in (0, 7, -1):
        image, target = dataset[index]
        assert image.mode == 'RGB' and image.size[0] >= 60 and target == theirs.samples[index][1]
    whole = create_dataset('', str(photos), 'train', search_split=False, load_bytes=True, input_key='.jpg')
    assert len(whole) == 24 and whole[0][0][:2] == b'\xff\xd8'


def test_the_index_has_bounds_and_can_be_pickled(photos):
    reader = FolderReader(str(photos / 'train'))
    for index in (12, -13):
        with pytest.raises(IndexError):
            reader[index]
    assert pickle.loads(pickle.dumps(reader)).samples == reader.samples


@pytest.mark.parametrize('target', ['..', '.', '../..'])
def test_a_loop_of_links_is_refused(tmp_path, target):
    touch(tmp_path / 'train' / 'ant' / '1.jpg')
    (tmp_path / 'train' / 'ant' / 'again').symlink_to(target)
    with pytest.raises(DataError, match='ant/again.* the folder .*: remove the link'):
        create_dataset('', str(tmp_path), 'train')


def test_two_links_to_one_folder_are_accepted(tmp_path):
    touch(tmp_path / 'store' / '1.jpg')
    root = tmp_path / 'root'
    root.mkdir()
    for name in ('ant', 'bee'):
        (root / name).symlink_to(tmp_path / 'store')
    assert_equal(*open_both(str(root)))


def test_a_folder_that_cannot_be_read_is_named(photos, tmp_path, monkeypatch, caplog):
    root, scandir = shutil.copytree(photos / 'train', tmp_path / 'train'), os.scandir

    def refuse(path):
        if str(path).endswith('bee'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with caplog.at_level(logging.WARNING):
        assert_equal(*open_both(str(root)))
        with pytest.raises(DataError, match='no images in class folder.*bee'):
            check_classes(create_dataset('', str(root), 'train'), None, 2)
    assert 'bee' in caplog.text


def test_target_key_is_refused_for_folders(photos):
    with pytest.raises(DataError, match="--target-key 'label'.*omit the flag"):
        create_dataset('', str(photos), 'train', target_key='label')


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """Folder of 20,000 empty images in 20 classes."""
    root = tmp_path_factory.mktemp('many')
    for number in range(20):
        folder = root / f'n{1440764 + number:08d}'
        folder.mkdir()
        for image in range(1000):
            os.close(os.open(folder / f'{folder.name}_{image * 7}.JPEG', os.O_CREAT))
    yield str(root)
    shutil.rmtree(root)


def private_bytes():
    with open('/proc/self/smaps_rollup') as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(('Private_Clean', 'Private_Dirty')))


def growth_when_touched(reader):
    """Bytes by which a forked process grows that reads every sample after the first hundred."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        touched = [reader[index][1] for index in range(100)]
        before = private_bytes()
        for index in range(len(reader)):
            file, touched[index % 100] = reader[index]
            file.close()
        os.write(write, str(private_bytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as result:
        return int(result.read())


def test_the_index_is_little_larger_than_the_file_names(many):
    reader = FolderReader(many)
    names = sum(map(len, reader.filenames(basename=True)))
    assert len(reader) == 20000 and reader.nbytes < names + 8 * len(reader)
    held = sum(value.nbytes for value in vars(reader).values() if hasattr(value, 'nbytes'))
    assert held == reader.nbytes and not any(isinstance(value, (list, tuple)) for value in vars(reader).values())


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='counts private memory as Linux does')
def test_workers_share_the_index(many):
    assert growth_when_touched(FolderReader(many)) < 5e5
    assert growth_when_touched(ReaderImageFolder(many)) > 2e6  # the measure detects an index that is copied
