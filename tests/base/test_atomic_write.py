"""Files whole or not at all: damage is found, and whatever stops a writer leaves what was there before."""
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch

from agmax_timm.base import atomic_write
from agmax_timm.base.background import Background, snapshot
from agmax_timm.base.errors import CheckpointError
from agmax_timm.base.processes import environment
from agmax_timm.base.safe_load import read_file


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def small():
    return {'epoch': 3, 'metric': 0.1, 'args': Namespace(model='test_resnet', lr=0.05), 'names': ['a', ('b', None)],
            'state_dict': {'w': torch.arange(200.), 'b': torch.arange(3), 'half': torch.ones(5, dtype=torch.bfloat16)}}


def test_every_flipped_bit_is_found_or_harmless(small, memory_path):
    path = memory_path / 'last.pth.tar'
    torch.save(small, path)
    whole = path.read_bytes()
    generator = random.Random(0)
    at_random = generator.sample(range(8 * len(whole)), 600)
    directory = generator.sample(range(8 * whole.index(b'PK\x01\x02'), 8 * len(whole)), 500)
    folders = [8 * (entry.start() + 38) + 4 for entry in re.finditer(b'PK\x01\x02', whole)]  # see checkpoint.py
    found = 0
    for bit in [*at_random, *directory, *folders]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            loaded = read_file(str(path))
        except CheckpointError:
            found += 1
        else:
            assert equal(small, loaded), f'bit {bit} of {8 * len(whole)}'
    assert found > 400


def test_a_flipped_bit_of_a_weight_is_nothing_to_torch(small, tmp_path):
    """The reason for a check of our own."""
    path = tmp_path / 'last.pth.tar'
    torch.save(small, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(small['state_dict']['w'].numpy().tobytes()) + 400] ^= 1
    path.write_bytes(whole)
    assert not equal(small, read_file(str(path), mmap=True))
    with pytest.raises(CheckpointError, match='last.pth.tar is damaged: last.*/data/0 is not what was written'):
        read_file(str(path))


def test_what_is_cut_short_empty_or_garbage_is_found(small, tmp_path):
    path = tmp_path / 'last.pth.tar'
    torch.save(small, path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 37), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match='last.pth.tar is'):
            read_file(str(path))
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(CheckpointError, match='damaged or not a checkpoint'):
        read_file(str(path))


# Single files

def test_a_file_is_replaced_whole(tmp_path):
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


def test_file_and_folder_are_on_disk_before_anyone_relies_on_them(tmp_path, monkeypatch):
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
def test_a_link_takes_the_place_of_a_file(links, tmp_path, monkeypatch):
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


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, file_size_limit):
    path = str(tmp_path / 'summary.csv')
    with (pytest.raises(OSError, match="File too large: '.*/summary.csv'$"), file_size_limit(50_000),
          atomic_write.replacing(path) as f):
        f.write(b'x' * 100_000)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_told_with_the_name_of_the_file(tmp_path):
    path = str(tmp_path / 'missing' / 'summary.csv')
    with pytest.raises(FileNotFoundError) as error, atomic_write.replacing(path):
        pass
    assert error.value.filename == path


def test_a_file_system_may_refuse_to_sync_a_folder_but_not_fail_to(tmp_path, monkeypatch):
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


def test_clean_and_cut(tmp_path):
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
def test_only_what_a_dead_process_left_is_cleaned(kind, tmp_path, writer):
    other = writer(tmp_path / 'hub', kind)
    left, = os.listdir(tmp_path)
    assert atomic_write.remove_unfinished(str(tmp_path)) == [] and os.listdir(tmp_path) == [left]
    other.kill()
    other.wait()
    assert atomic_write.remove_unfinished(str(tmp_path), 'hu') == []  # of another name
    assert atomic_write.remove_unfinished(str(tmp_path), 'hub') == [left] and os.listdir(tmp_path) == []


def test_the_next_write_of_a_file_cleans_what_a_killed_process_left_of_it(tmp_path, writer):
    other = writer(tmp_path / 'results.csv')
    other.kill()
    other.wait()
    (tmp_path / 'results.csv.unfinished').write_text('as older versions called it')
    (tmp_path / 'another.csv.unfinished').write_text('of another file')
    with atomic_write.replacing(str(tmp_path / 'results.csv'), 'w') as file:
        file.write('x')
    assert sorted(os.listdir(tmp_path)) == ['another.csv.unfinished', 'results.csv']


@pytest.mark.parametrize('age, stays', [(3600, True), (25 * 3600, False)])
def test_without_locks_a_file_is_left_behind_when_nobody_wrote_to_it_for_a_day(age, stays, tmp_path, monkeypatch):
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


def test_a_link_that_another_process_cleans_is_made_again(tmp_path, monkeypatch):
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


# In the background

def test_a_snapshot_is_apart_and_writes_the_same_file(tmp_path):
    weight = torch.arange(12.).view(3, 4)
    model = torch.nn.Linear(2, 2)
    state = {'w': weight, 'row': weight[1], 'turned': weight.t(), 'model': model.state_dict(), 'n': (1, [None, 'x']),
             'p': model.weight, 'args': Namespace(lr=[1.])}
    copied = snapshot(state)
    for name, value in (('before', state), ('after', copied)):
        torch.save(value, tmp_path / name)
    assert equal({**state, 'p': model.weight.detach()}, copied)
    assert copied['row'].data_ptr() == copied['w'].data_ptr() + 16
    assert copied['model']._metadata == state['model']._metadata
    assert abs((tmp_path / 'before').stat().st_size - (tmp_path / 'after').stat().st_size) < 500
    with torch.no_grad():
        weight.zero_(), model.weight.zero_()
    state['args'].lr.append(2.)
    assert copied['w'].sum() == 66 and copied['model']['weight'].abs().sum() > 0 and copied['args'].lr == [1.]


def test_no_error_of_the_background_is_lost():
    background = Background()
    background.run(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.run(lambda: None)
    background.run(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timer of signals')
def test_work_is_still_waited_for_where_a_signal_ended_the_wait():
    """As torch's handler does, which raises wherever the main process is when a loader worker dies."""
    def interrupt(*_):
        raise RuntimeError('a worker died')

    background, done = Background(), []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        background.run(lambda: (time.sleep(.5), done.append(True)))
        signal.setitimer(signal.ITIMER_REAL, .1)
        with pytest.raises(RuntimeError, match='a worker died'):
            background.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not done
    background.wait()
    assert done
