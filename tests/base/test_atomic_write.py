"""Files are written completely or not at all. An interrupted write keeps the former file."""
import errno
import os
import subprocess
import sys
import time

import pytest

from agmax_timm.base import atomic_write
from agmax_timm.base.processes import environment


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = str(tmp_path / 'summary.csv')
    for text in ('one', 'two'):
        with atomic_write.replacing(path, 'w') as f:
            f.write(text)
            assert text == 'one' or open(path).read() == 'one'
        assert open(path).read() == text
    with pytest.raises(RuntimeError), atomic_write.replacing(path, 'w') as f:
        f.write('three')
        raise RuntimeError
    assert open(path).read() == 'two'
    assert os.listdir(tmp_path) == ['summary.csv']


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []

    def recorded(name):
        function = getattr(os, name)

        def call(*args):
            folder = name == 'fsync' and os.path.samestat(os.fstat(args[0]), os.stat(tmp_path))
            calls.append(name + (' folder' if folder else ''))
            return function(*args)
        monkeypatch.setattr(atomic_write.os, name, call)

    for name in ('fsync', 'replace', 'link'):
        recorded(name)
    path = str(tmp_path / 'last.pth.tar')
    with atomic_write.replacing(path) as f:
        f.write(b'x')
    atomic_write.link(path, str(tmp_path / 'checkpoint-0.pth.tar'))
    assert calls == ['fsync', 'replace', 'fsync folder', 'link', 'replace', 'fsync folder']


@pytest.mark.parametrize('links', [True, False])
def test_a_link_replaces_a_file(links, tmp_path, monkeypatch):
    source, path = str(tmp_path / 'a'), str(tmp_path / 'b')
    for name in (source, path):
        with open(name, 'w') as f:
            f.write(name)
    if not links:
        def refuse(*_):
            raise OSError(errno.EPERM, 'no hard links here')
        monkeypatch.setattr(atomic_write.os, 'link', refuse)
    for _ in range(2):  # the second time they are one file already
        atomic_write.link(source, path)
        assert open(path).read() == source
        assert sorted(os.listdir(tmp_path)) == ['a', 'b']
    assert os.path.samefile(source, path) == links


def test_the_error_of_a_full_disk_names_the_file(tmp_path, file_size_limit):
    path = str(tmp_path / 'summary.csv')
    with (pytest.raises(OSError, match="File too large: '.*/summary.csv'$"), file_size_limit(50_000),
          atomic_write.replacing(path) as f):
        f.write(b'x' * 100_000)
    assert os.listdir(tmp_path) == []


def test_the_error_of_a_missing_folder_names_the_file(tmp_path):
    path = str(tmp_path / 'missing' / 'summary.csv')
    with pytest.raises(FileNotFoundError) as error, atomic_write.replacing(path):
        pass
    assert error.value.filename == path


def test_a_folder_that_cannot_be_synced_is_ignored_but_an_input_output_error_is_not(tmp_path, monkeypatch):
    fsync, code = os.fsync, errno.EINVAL

    def refuse(descriptor):
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)
    monkeypatch.setattr(atomic_write.os, 'fsync', refuse)
    with atomic_write.replacing(str(tmp_path / 'a')) as f:
        f.write(b'x')
    code = errno.EIO
    with pytest.raises(OSError), atomic_write.replacing(str(tmp_path / 'a')) as f:
        f.write(b'y')


def test_remove_unfinished_and_truncate(tmp_path):
    for name in ('a.unfinished', 'b', 'c.pth.tar.unfinished'):
        (tmp_path / name).write_text('0123456789')
    assert atomic_write.remove_unfinished(str(tmp_path)) == ['a.unfinished', 'c.pth.tar.unfinished']
    assert os.listdir(tmp_path) == ['b']
    for size, left in ((20, 10), (4, 4)):
        atomic_write.truncate(str(tmp_path / 'b'), size)
        assert (tmp_path / 'b').stat().st_size == left
    atomic_write.truncate(str(tmp_path / 'missing'), 0)
    assert os.listdir(tmp_path) == ['b']


# Several processes

WRITER = '''
import sys, time
from agmax_timm.base import atomic_write as durable
work = durable.scratch_folder(sys.argv[1]) if sys.argv[2] == 'folder' else durable.replacing(sys.argv[1], 'w')
with work as file:
    if sys.argv[2] == 'file':
        file.write('of the first')
        file.flush()
    print('begun', flush=True)
    sys.stdin.readline()
'''


@pytest.fixture
def writer():
    """Function: a process that has begun to write a file or folder, and continues after a line on stdin."""
    started = []

    def start(path, kind='file'):
        process = subprocess.Popen([sys.executable, '-c', WRITER, str(path), kind], env=environment(), text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == 'begun\n'
        return process
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_replace_one_file(tmp_path, writer):
    path = tmp_path / 'results.csv'
    other = writer(path)
    assert len(list(tmp_path.glob('results.csv.*.unfinished'))) == 1
    with atomic_write.replacing(str(path), 'w') as file:
        file.write('of the second')
    assert path.read_text() == 'of the second'
    assert other.communicate('go on\n', timeout=60) == ('', '') and other.returncode == 0
    assert path.read_text() == 'of the first'
    assert os.listdir(tmp_path) == ['results.csv']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_only_files_of_ended_processes_are_removed(kind, tmp_path, writer):
    other = writer(tmp_path / 'hub', kind)
    left, = os.listdir(tmp_path)
    assert atomic_write.remove_unfinished(str(tmp_path)) == [] and os.listdir(tmp_path) == [left]
    other.kill()
    other.wait()
    assert atomic_write.remove_unfinished(str(tmp_path), 'hu') == []  # of another name
    assert atomic_write.remove_unfinished(str(tmp_path), 'hub') == [left] and os.listdir(tmp_path) == []


def test_the_next_write_removes_the_unfinished_file_of_a_killed_process(tmp_path, writer):
    other = writer(tmp_path / 'results.csv')
    other.kill()
    other.wait()
    (tmp_path / 'results.csv.unfinished').write_text('as older versions called it')
    (tmp_path / 'another.csv.unfinished').write_text('of another file')
    with atomic_write.replacing(str(tmp_path / 'results.csv'), 'w') as file:
        file.write('x')
    assert sorted(os.listdir(tmp_path)) == ['another.csv.unfinished', 'results.csv']


@pytest.mark.parametrize('age, stays', [(3600, True), (25 * 3600, False)])
def test_without_locks_unfinished_files_are_removed_after_a_day(age, stays, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(atomic_write.fcntl, 'flock', no_locks)
    path = tmp_path / 'results.csv.0a1b2c3d.unfinished'
    path.write_text('x')
    later = time.time() + age
    monkeypatch.setattr(atomic_write.time, 'time', lambda: later)
    assert atomic_write.remove_unfinished(str(tmp_path)) == ([] if stays else [path.name])
    with atomic_write.replacing(str(tmp_path / 'results.csv'), 'w') as file:
        file.write('y')
    assert (tmp_path / 'results.csv').read_text() == 'y' and path.exists() == stays


def test_a_link_removed_by_another_process_is_made_again(tmp_path, monkeypatch):
    replace, taken = os.replace, []

    def late(source, path):
        if not taken:
            taken.append(atomic_write.remove_unfinished(str(tmp_path)))
        replace(source, path)
    (tmp_path / 'last').write_text('x')
    monkeypatch.setattr(atomic_write.os, 'replace', late)
    atomic_write.link(str(tmp_path / 'last'), str(tmp_path / 'best'))
    assert len(taken[0]) == 1 and os.path.samefile(tmp_path / 'last', tmp_path / 'best')
    assert sorted(os.listdir(tmp_path)) == ['best', 'last']
