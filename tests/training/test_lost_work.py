"""Evaluations that fail at the end of an epoch: the weights are saved, and the run resumes to the same result."""
import os
import re
import shutil
import signal
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from agmax_timm.assembly import loaders
from agmax_timm.base.errors import DamagedError, LabelError
from agmax_timm.base.signals import StopSignals
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.decoding import damage_of
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import epoch_evaluation
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints.saver import CheckpointSaver
from agmax_timm.training.output.trackers import Trackers
from agmax_timm.training.updates import loop
from agmax_timm.training.updates.step import Step
from tests.helpers.exact import FLAGS, assert_equal, outcome
from tests.helpers.ranks import finish_ranks, logs, start_ranks
from tests.helpers.run_files import epochs_in, load

SAVED = re.compile(r'Saved at the end of epoch (\d), before its evaluation\. The same command')


@pytest.fixture
def argv(photos, tmp_path):
    """Two epochs of 6 updates. The EMA is evaluated after the raw weights."""
    return [str(photos), *FLAGS, '-j', '0', '--agmax', '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.9',
            '--epochs', '2', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto']


@pytest.fixture(scope='module')
def whole(photos, tmp_path_factory):
    """The files of a run without faults."""
    output = tmp_path_factory.mktemp('whole')
    training.train(parse_train_args([
        str(photos), *FLAGS, '-j', '0', '--agmax', '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.9',
        '--epochs', '2', '--output', str(output), '--experiment', 'run']))
    return outcome(output / 'run')


def fail(argv, capsys, status):
    """The last line of a run that ends with this status."""
    with pytest.raises(SystemExit) as end:
        train_cli.main(argv)
    assert end.value.code == status
    return capsys.readouterr().err.strip().splitlines()[-1]


def out_of_memory():
    raise torch.OutOfMemoryError('CUDA out of memory')


def label_out_of_range():
    torch.nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([7]))


def dead_worker():
    raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed')


def damaged():
    raise DamagedError('a.jpg cannot be decoded')


# Of 6 evaluations by batches of 2, the batch in which one fails: the raw weights', the EMA's; of epoch 0 and of 1.
@pytest.mark.parametrize('batch, failure, error', [
    (1, damaged, DamagedError), (9, label_out_of_range, IndexError), (9, dead_worker, RuntimeError),
    (14, out_of_memory, torch.OutOfMemoryError)])
def test_a_run_resumes_to_the_result_of_one_without_faults(
        argv, tmp_path, whole, monkeypatch, caplog, batch, failure, error):
    seen, evaluate = [], epoch_evaluation.evaluate

    def failing(*args, on_batch, **kwargs):
        def counted(index):
            seen.append(index)
            if len(seen) == batch:
                failure()
            on_batch(index)
        return evaluate(*args, on_batch=counted, **kwargs)

    monkeypatch.setattr(epoch_evaluation, 'evaluate', failing)
    with pytest.raises(error):
        training.train(parse_train_args(argv))
    epoch = (batch - 1) // 12
    assert [int(told) for told in SAVED.findall(caplog.text)] == [epoch]
    assert (tmp_path / 'run' / f'recovery-{epoch}-5.pth.tar').exists()
    training.train(parse_train_args(argv))
    assert_equal(outcome(tmp_path / 'run'), whole)


def test_an_invalid_label_within_an_epoch_loses_no_update(argv, tmp_path, monkeypatch, capsys):
    """Labels of data in sequence are known when they are read. The saved file equals a recovery file."""
    train_cli.main([*argv, '--experiment', 'whole', '--recovery-interval', '4', '--epochs', '1'])
    expected = load(tmp_path / 'whole' / 'recovery-0-3.pth.tar')
    batches_of = loop.batches_of

    def failing(loader):
        for number, batch in enumerate(batches_of(loader)):
            if number == 4:
                raise LabelError("sample 'x' has the label 'fly'")
            yield batch

    monkeypatch.setattr(loop, 'batches_of', failing)
    assert fail(argv, capsys, 2).endswith("error: sample 'x' has the label 'fly'")
    kept = load(tmp_path / 'run' / 'recovery-0-3.pth.tar')
    for name in ('state_dict', 'state_dict_ema', 'optimizer', 'task_state'):
        assert_equal(kept[name], expected[name])
    assert kept['agmax_state']['position'] == expected['agmax_state']['position']
    monkeypatch.undo()
    train_cli.main(argv)
    assert epochs_in(tmp_path / 'run') == [0, 1]


def test_after_repair_of_a_damaged_image_nothing_is_trained_again(argv, photos, tmp_path, whole, capsys, caplog):
    data = shutil.copytree(photos, tmp_path / 'photos')
    path = data / 'val' / 'bee' / '005.jpg'
    content = path.read_bytes()
    path.write_bytes(content[:300])
    argv[0] = str(data)
    for _ in range(2):  # found again, nothing more is lost
        assert f"{path}' cannot be decoded" in fail(argv, capsys, status=2)
    path.write_bytes(content)
    train_cli.main(argv)
    assert 'Train: 0 [' not in caplog.text.split('Training epochs')[-1]
    assert 'trained again' not in caplog.text
    assert_equal(outcome(tmp_path / 'run'), whole)


def test_a_run_resumes_after_a_damaged_image_is_removed(argv, photos, tmp_path, capsys, caplog):
    """As the message suggests. The number of samples then differs."""
    data = shutil.copytree(photos, tmp_path / 'photos')
    path = data / 'val' / 'bee' / '005.jpg'
    path.write_bytes(b'')
    argv[0] = str(data)
    fail(argv, capsys, status=2)
    path.unlink()
    train_cli.main(argv)
    assert re.search('11 samples .*validation.* 12', caplog.text)
    assert epochs_in(tmp_path / 'run') == [0, 1]


@pytest.mark.parametrize('more', [[], ['--grad-accum-steps', '4'], ['-j', '2']], ids=' '.join)
def test_too_many_damaged_training_images_lose_no_update(photos, tmp_path, capsys, end_workers, more):
    """They end the run in its first epoch. With a higher limit, it ends like a run with this limit from the start."""
    data = shutil.copytree(photos, tmp_path / 'photos')
    for name in ('ant/000.jpg', 'bee/004.jpg', 'cat/008.jpg'):
        (data / 'train' / name).write_bytes(b'')
    argv = [str(data), *FLAGS, '-j', '0', '--agmax', '--epochs', '2', '--output', str(tmp_path), '--resume', 'auto',
            *more]
    whole, run = [*argv, '--experiment', 'whole'], [*argv, '--experiment', 'run']
    train_cli.main([*whole, '--max-damaged', '1'])
    assert '--max-damaged 0.1' in fail([*run, '--max-damaged', '0.1'], capsys, status=2)
    end_workers()
    assert [path.name for path in (tmp_path / 'run').glob('recovery-0-*.pth.tar')]
    train_cli.main([*run, '--max-damaged', '1'])
    assert_equal(outcome(tmp_path / 'run'), outcome(tmp_path / 'whole'))


def test_damaged_images_that_are_found_after_the_last_update_lose_no_epoch(argv, tmp_path, capsys, caplog, monkeypatch):
    """With --use-multi-epochs-loader, workers load the next epoch before this one ends."""
    finish = Step.finish

    def find_damage(step):
        damage_of(step.training.loader_train.dataset).flags[:3] = 1
        finish(step)
    monkeypatch.setattr(Step, 'finish', find_damage)
    assert '3 of 12 samples' in fail([*argv, '--max-damaged', '0.1'], capsys, status=2)
    assert SAVED.search(caplog.text)[1] == '0' and [*(tmp_path / 'run').glob('recovery-0-*.pth.tar')]


def test_repaired_training_images_no_longer_count_as_damaged(photos, tmp_path, capsys):
    data = shutil.copytree(photos, tmp_path / 'photos')
    names = ('ant/000.jpg', 'bee/004.jpg', 'cat/008.jpg')
    contents = {name: (data / 'train' / name).read_bytes() for name in names}
    for name in names:
        (data / 'train' / name).write_bytes(b'')
    argv = [str(data), *FLAGS, '-j', '0', '--epochs', '2', '--output', str(tmp_path), '--experiment', 'run', '--resume',
            'auto', '--max-damaged', '0.1']
    fail(argv, capsys, status=2)
    for name in names:
        (data / 'train' / name).write_bytes(contents[name])
    train_cli.main(argv)
    assert epochs_in(tmp_path / 'run') == [0, 1]
    assert load(tmp_path / 'run' / 'last.pth.tar')['agmax_state']['damaged'] == []


def test_a_full_disk_after_a_failed_evaluation_has_exit_status_74(argv, monkeypatch, capsys):
    monkeypatch.setattr(epoch_evaluation, 'evaluate', lambda *args, **kwargs: damaged())

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(CheckpointSaver, '_write', full)
    assert re.search('No space left on device; .*no checkpoint', fail(argv, capsys, status=74))


def test_a_failing_tracker_loses_no_epoch(argv, tmp_path, whole, monkeypatch):
    row, futures = Trackers.row, []
    submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, 'submit', lambda *args: futures.append(submit(*args)) or futures[-1])

    def failing(trackers, values):
        raise RuntimeError('the tracker failed')
    monkeypatch.setattr(Trackers, 'row', failing)
    with pytest.raises(RuntimeError, match='the tracker failed'):
        training.train(parse_train_args(argv))
    monkeypatch.setattr(Trackers, 'row', row)
    wait(futures)  # as the end of a process does
    assert load(tmp_path / 'run' / 'last.pth.tar')['agmax_state']['position']['epoch'] == 1
    training.train(parse_train_args(argv))
    assert_equal(outcome(tmp_path / 'run'), whole)


def failing_rank(argv, failing):
    """Train. The evaluation of epoch 0 fails before its first forward pass, on rank `failing` only."""
    prepare_batch = loaders.prepare_batch

    def prepare(*args):
        if torch.distributed.get_rank() == failing:
            damaged()
        return prepare_batch(*args)
    loaders.prepare_batch = prepare  # training has its own reference
    train_cli.main(argv)


def test_all_ranks_save_if_one_fails(photos, tmp_path):
    """Without --agmax: DDP would broadcast the statistics of batch norm in the first forward pass."""
    argv = [str(photos), *FLAGS, '-j', '0', '--epochs', '2', '--output',
            str(tmp_path), '--resume', 'auto', '--device', 'cpu']
    run, expected = [*argv, '--experiment', 'run'], [*argv, '--experiment', 'whole']
    statuses = finish_ranks(start_ranks(2, tmp_path / 'first', failing_rank, run, 1))
    told = logs(tmp_path / 'first')
    assert statuses == [1, 2], told
    assert 'the evaluation failed on another rank' in told and 'a.jpg cannot be decoded' in told
    assert finish_ranks(start_ranks(2, tmp_path / 'again', train_cli.main, run)) == [0, 0]
    assert finish_ranks(start_ranks(2, tmp_path / 'expected', train_cli.main, expected)) == [0, 0]
    assert_equal(outcome(tmp_path / 'run'), outcome(tmp_path / 'whole'))


def test_after_an_error_signals_are_recorded_until_the_files_are_written(monkeypatch):
    """A launcher sends SIGTERM to the first rank, which writes the files, if another rank has failed."""
    def fail():
        raise RuntimeError('Connection closed by peer')

    def wait():
        os.kill(os.getpid(), signal.SIGTERM)
        written.append(True)

    written = []
    made = Namespace(checkpoints=Namespace(saver=Namespace(wait=wait), output_dir=''), on_broken=Namespace())
    monkeypatch.setattr(training, 'create_run', lambda *args: made)
    monkeypatch.setattr(training, 'open_output', lambda *args: None)
    monkeypatch.setattr(training, 'Epochs', lambda *args: Namespace(train=fail))
    with StopSignals() as signals, pytest.raises(RuntimeError, match='Connection closed by peer'):
        training.train(Namespace(hang_timeout=0, dry_run=False), signals)
    assert written == [True] and signals.received == 'SIGTERM'
