"""Loader workers that die are named by every command. Workers leave signals to the main process."""
import os
import signal
import socket
import struct
import threading
import time
from multiprocessing.reduction import DupFd

import pytest
from torch.utils.data import DataLoader, get_worker_info

from agmax_timm import predict
from agmax_timm.base.errors import WorkerError, as_user_error
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.loading.workers import WorkerInit, batches_of, leave_signals
from agmax_timm.data.sources.folder import FolderReader
from agmax_timm.evaluation.prediction import _Files
from agmax_timm.report import command as report


class _Lost:
    """The pickle of a worker that is killed: the main process loses the connection before the process has ended."""

    def __reduce__(self):
        return _lose, (os.getpid(),)


def _lose(process):
    threading.Timer(0.3, os.kill, (process, signal.SIGKILL)).start()
    raise ConnectionResetError('connection reset')


def _send(message):
    """Load one batch, which is this object of a worker."""
    for _ in batches_of(DataLoader([0], num_workers=1, collate_fn=lambda samples: message())):
        pass


def test_a_killed_worker_is_named_if_its_connection_ends_first(monkeypatch):
    monkeypatch.setattr('agmax_timm.data.loading.workers._DEATH_DELAY', 60)  # the report of the death interrupts it
    with pytest.raises(RuntimeError, match=r'DataLoader worker \(pid \d+\) is killed by signal') as raised:
        _send(_Lost)
    assert isinstance(as_user_error(raised.value), WorkerError)


class _Offer:
    """The address at which the main process may fetch a file descriptor of the worker."""

    def __new__(cls):
        return DupFd(0)._id


@pytest.mark.parametrize('quiet', [True, False])
def test_a_worker_prints_no_error_if_the_main_process_disconnects(quiet, capfd):
    loader = DataLoader(range(3), num_workers=1, prefetch_factor=1, collate_fn=lambda samples: _Offer())
    if quiet:
        leave_signals(loader)
    printed, deadline = '', time.monotonic() + 60
    for address, _ in loader:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        time.sleep(.2)
        printed += capfd.readouterr().err
        while not quiet and 'Error' not in printed and time.monotonic() < deadline:
            time.sleep(.05)
            printed += capfd.readouterr().err
    assert ('Error' in printed) != quiet


class _SignalledAtStart(WorkerInit):
    """A worker that gets SIGTERM after torch installed its handler, and before this package blocks signals."""

    def __call__(self, worker):
        os.kill(os.getpid(), signal.SIGTERM)
        super().__call__(worker)


def test_workers_ignore_a_signal_during_their_start():
    loader = DataLoader(range(4), num_workers=2, worker_init_fn=_SignalledAtStart(None))
    assert [batch.item() for batch in batches_of(loader)] == [0, 1, 2, 3]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _fail():
    raise RuntimeError('of the data')


def _refused():
    raise ConnectionRefusedError


def test_other_errors_of_workers_are_raised_unchanged(monkeypatch):
    monkeypatch.setattr('agmax_timm.data.loading.workers._DEATH_DELAY', 0.1)
    with pytest.raises(RuntimeError, match='Caught RuntimeError in DataLoader worker process 0') as caught:
        _send(_fail)
    assert as_user_error(caught.value) is None and 'of the data' in str(caught.value)
    with pytest.raises(ConnectionRefusedError):
        next(batches_of(_refused() for _ in range(1)))


@pytest.mark.parametrize('command', ['train', 'validate', 'train --check-data', 'report', 'predict'])
def test_each_command_names_a_worker_that_dies(command, photos, ema_run, tmp_path, monkeypatch, capfd):
    read = FolderReader.__getitem__

    def die(reader, index):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, index)

    monkeypatch.setattr(FolderReader, '__getitem__', die)
    monkeypatch.setattr(_Files, '__getitem__', die)
    monkeypatch.chdir(tmp_path)
    model = ['--model', 'test_resnet', '--img-size', '32', '--num-classes', '3', '-j', '1', '-b', '4', str(photos)]
    run, words = {
        'train': (train_cli.main, ['--output', str(tmp_path), *model]),
        'validate': (validate_cli.main, ['--checkpoint', str(ema_run / 'model_best.pth.tar'), *model]),
        'train --check-data': (train_cli.main, ['--check-data', '-j', '1', str(photos)]),
        'report': (report.main, [str(ema_run), '-j', '1']),
        'predict': (predict.main, [str(ema_run), str(photos), '-j', '1', '--device', 'cpu', '--output', 'rows']),
    }[command]
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert not os.path.exists('rows')
    assert 'error: a loader worker died: DataLoader worker (pid' in last and last.endswith(
        '--resume auto continues' if command == 'train' else 'Use fewer --workers')


def _pin_memory_loop(error):
    raise error


@pytest.mark.parametrize('target, error, told', [
    (_pin_memory_loop, ConnectionResetError('lost'), False), (_pin_memory_loop, EOFError('lost'), False),
    (_pin_memory_loop, ValueError('bad'), True), (lambda error: _pin_memory_loop(error), EOFError('other'), True)])
def test_a_worker_that_dies_during_pinning_is_named(monkeypatch, target, error, told):
    """The pin thread ends before the system reports the dead worker."""
    tracebacks = []
    monkeypatch.setattr(threading, 'excepthook', lambda args: tracebacks.append(args.exc_value))
    before = threading.excepthook

    def batches():
        yield 0
        thread = threading.Thread(target=target, args=(error,))
        thread.start()
        thread.join()
        raise RuntimeError('Pin memory thread exited unexpectedly')

    def killed(signal_of_death):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')
    monkeypatch.setattr('agmax_timm.data.loading.workers.time.sleep', killed)
    with pytest.raises(RuntimeError, match='DataLoader worker .pid 7.'):
        list(batches_of(batches()))
    assert tracebacks == ([error] if told else [])
    assert threading.excepthook is before


def test_other_errors_of_a_loader_are_raised_at_once(monkeypatch):
    def batches():
        raise RuntimeError('something else')
        yield
    monkeypatch.setattr('agmax_timm.data.loading.workers.time.sleep', lambda seconds: pytest.fail('waits'))
    with pytest.raises(RuntimeError, match='something else'):
        list(batches_of(batches()))
