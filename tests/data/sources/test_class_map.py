"""Class maps: a text file of names or a pickled dict, found in the folder of the data, and refused when damaged."""
import pickle
import shutil

import pytest

from agmax_timm.base.errors import DataError
from agmax_timm.data.sources.class_map import read_class_map
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args


@pytest.mark.parametrize('content, message', [
    ('ant\n\nbee\n', 'line 2 is empty'), ('ant\nbee\n\n', 'line 3 is empty'), ('\nant', 'line 1 is empty'),
    ("ant\n \t\nbee", "line 2 is empty"), ("", "the file is empty"),
    ('ant\nbee\n ant \n', "line 3: 'ant' is in line 1"),
    ('a\u200bb\na\u200bb', r"line 2: 'a\\u200bb' is in line 1"),
])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_empty_and_repeated_lines_of_class_maps_are_refused(tmp_path, content, message, mark):
    (tmp_path / 'map.txt').write_text(mark + content, encoding='utf-8')
    with pytest.raises(DataError, match=f"--class-map '.*map.txt': {message}"):
        read_class_map(str(tmp_path / 'map.txt'))


def test_the_last_line_needs_no_line_end(tmp_path):
    (tmp_path / 'map.txt').write_text('ant\nbee', encoding='utf-8')
    assert read_class_map(str(tmp_path / 'map.txt')) == {'ant': 0, 'bee': 1}


@pytest.mark.parametrize('content, message', [
    (pickle.dumps({'ant': 'x'}), "'ant' has the index 'x'"), (pickle.dumps(['ant']), 'not a pickled dict'),
    (b'ant\nbee\n', 'not a pickled dict from class name to index: '),
    (pickle.dumps({'ant': print}), 'not a pickled dict'),
])
def test_pickled_class_maps_must_hold_a_dict_of_indices(tmp_path, content, message):
    path = tmp_path / 'map.pkl'
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_class_map(str(path))
    path.write_bytes(pickle.dumps({'ant': 3, 'bee': 0}))
    assert read_class_map(str(path)) == {'ant': 3, 'bee': 0}


def test_missing_class_maps_are_refused(tmp_path):
    (tmp_path / 'map.csv').write_text('ant')
    for name, message in (('map.csv', 'must be a text file'), ('x.txt', 'no such file'), ('', None), (None, None)):
        if message is None:
            assert read_class_map(name) is None
            continue
        with pytest.raises(DataError, match=message):
            read_class_map(name, str(tmp_path))


@pytest.mark.parametrize('place', ['.', 'train'])
def test_a_class_map_is_found_in_the_folder_of_the_data(photos, tmp_path, place):
    """timm looks for it in the folder of the split. Both folders are checked before anything is built."""
    data = shutil.copytree(photos, tmp_path / 'data')
    (data / place / 'map.txt').write_text('cat\nbee\nant\n')
    args = parse_train_args([str(data), '--class-map', 'map.txt'])
    assert class_names(create_dataset('', args.data_dir, 'train', class_map=args.class_map)) == ['cat', 'bee', 'ant']
