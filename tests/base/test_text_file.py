"""Text files as editors save them: a byte-order mark has no effect, other encodings are refused."""
import io
import json
import sys
from argparse import Namespace

import pytest

from agmax_timm.assembly.objective import build_criterion
from agmax_timm.base.text_file import read_text, without_mark
from agmax_timm.data.sources.class_map import read_class_map
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.evaluation import metrics
from agmax_timm.evaluation.bulk import list_jobs
from agmax_timm.options.option_file import read_mapping
from agmax_timm.options.parse import parse_train_args
from agmax_timm.predict import list_images
from agmax_timm.study.published import read_published
from agmax_timm.training.output.log import read_curves

MARK = b'\xef\xbb\xbf'


def read_stdin(path, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(path.open('rb')))
    return list_images(['-'])


def criterion_weights(path, flag):
    args = parse_train_args(['data', '--loss', 'bce', '--num-classes', '3', flag, str(path), *(
        ['--loss-pos-weight', 'neg_pos'] if flag == '--class-stats' else [])])
    return build_criterion(args).pos_weight.flatten().tolist()


# By file name and content: a function of the path, and what it reads.
READERS = {
    'names.txt': (b'ant\nbee\ncat\n', lambda path: read_class_map(str(path)), {'ant': 0, 'bee': 1, 'cat': 2}),
    'valid.txt': (b'8\n2 5\n', lambda path: metrics.read_valid_labels(str(path), 9), [8, 2, 5]),
    'options.yaml': (b'lr: 0.5\n', lambda path: read_mapping(str(path)), {'lr': 0.5}),
    'models.txt': (b'resnet18\n\ntest_vit\n', lambda path: [job.model for job in list_jobs(
        Namespace(model=str(path), checkpoint=''))], ['resnet18', 'test_vit']),
    'stats.json': (json.dumps(dict(pos_counts=[1, 2, 4], num_samples=8)).encode(),
                   lambda path: criterion_weights(path, '--class-stats'), [7., 3., 1.]),
    'weights.txt': (b'1, 2, 3', lambda path: criterion_weights(path, '--loss-pos-weight'), [1., 2., 3.]),
    'weights.json': (b'[1, 2, 3]', lambda path: criterion_weights(path, '--loss-pos-weight'), [1., 2., 3.]),
    'summary.csv': (b'epoch,train_loss\n0,0.5\n', lambda path: read_curves(str(path))['classification loss'],
                    {'training': [(0, 0.5)]}),
    'published.csv': (b'method,value\n# a note\na,1.5\n', lambda path: read_published(
        str(path), {'augmentation': [''], 'setting': [''], 'method': ['a', 'b']}), {('', '', 'a'): 1.5}),
}


@pytest.mark.parametrize('mark', [b'', MARK], ids=['without mark', 'with mark'])
@pytest.mark.parametrize('ending', [b'\n', b'\r\n'], ids=['LF', 'CRLF'])
@pytest.mark.parametrize('name', READERS)
def test_a_byte_order_mark_has_no_effect(tmp_path, name, mark, ending):
    content, read, expected = READERS[name]
    (tmp_path / name).write_bytes(mark + content.replace(b'\n', ending))
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize('mark', [b'', MARK])
def test_paths_on_stdin_may_begin_with_a_byte_order_mark(tmp_path, monkeypatch, mark):
    (tmp_path / 'list').write_bytes(mark + b'a.jpg\r\nb.jpg\r\n')
    assert read_stdin(tmp_path / 'list', monkeypatch) == ['a.jpg', 'b.jpg']


def test_real_labels_may_begin_with_a_byte_order_mark(imagenet, tmp_path):
    (tmp_path / 'real.json').write_bytes(MARK + json.dumps([[1], [2, 0], *([],) * 10]).encode())
    dataset = create_dataset('', str(imagenet), 'val')
    labels = metrics.open_real_labels(
        Namespace(real_labels=str(tmp_path / 'real.json'), rank=0, world_size=1), dataset, 3)
    assert list(labels.real_labels.values())[:3] == [[1], [2, 0], []]


@pytest.mark.parametrize('name', [name for name in READERS if name not in ('summary.csv', 'stats.json')])
def test_another_encoding_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(READERS[name][0].decode().encode('utf-16'))
    with pytest.raises(ValueError) as caught:
        READERS[name][1](path)
    if not name.startswith('weights'):  # timm reads those
        assert 'not text in UTF-8' in str(caught.value) and 'save it as UTF-8' in str(caught.value)


def test_without_mark_removes_its_copy(tmp_path):
    path = tmp_path / 'a.json'
    path.write_bytes(b'{}')
    with without_mark(str(path)) as same:
        assert same == str(path)
    path.write_bytes(MARK + b'{}')
    with without_mark(str(path)) as copy:
        assert copy != str(path) and open(copy, 'rb').read() == b'{}'
    with pytest.raises(FileNotFoundError):
        open(copy)
    assert path.read_bytes() == MARK + b'{}' and read_text(str(path)) == '{}' and read_text(str(path), 1) == '{'
