"""Real runs that are killed, stopped or damaged while they train. They continue to the result of an undisturbed run.

The suite kills a run three times. This command kills it 50 times, and prints what docs/reliability.md reports:

    AGMAX_KILLS=50 pytest tests/training/guards/test_faults.py -k killed -s
"""
import os
import random
import re
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from agmax_timm.commands import train as train_cli
from agmax_timm.loss import AgMaxLoss
from tests.helpers.exact import FLAGS, assert_equal, outcome
from tests.helpers.poison import poison_gradients, poison_losses
from tests.helpers.ranks import finish_ranks, logs, no_environment, start_ranks, torchrun_environment
from tests.helpers.run_files import epochs_in, load

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get('AGMAX_KILLS', 3))
EPOCHS, INTERVAL = (15, 5) if 'AGMAX_KILLS' in os.environ else (6, 2)
# 6 updates of training and 6 batches of validation an epoch.
LONG = [*FLAGS, '--agmax', '--mixup', '0.2', '--model-ema', '--model-ema-decay', '0.9', '-j', '0',
        '--epochs', str(EPOCHS), '--val-interval', str(INTERVAL), '--recovery-interval', '1']
INTERRUPTED = 75


class Run:
    """A run in processes of its own. Each rank is the leader of its session."""

    def __init__(self, photos, output, name, flags, ranks, function=train_cli.main):
        argv = [str(photos), *LONG, *flags, '--output', str(output), '--experiment', name, '--resume', 'auto']
        self.folder = Path(tempfile.mkdtemp(dir=output))
        self.output = Path(output) / name
        self._former_files = self._recovery_files()
        self.ranks = start_ranks(ranks, self.folder, function, argv, own_session=True,
                                 environment=torchrun_environment if ranks > 1 else no_environment)

    def signal(self, number, rank=0):
        """Send a signal to the rank and its loader workers, as SLURM does."""
        os.killpg(self.ranks[rank].pid, number)

    def _recovery_files(self):
        return {path.name for path in self.output.glob('recovery-*.pth.tar')}

    def wait_for_update(self):
        """Wait until this run, and not the one it resumes from, has written a file within an epoch."""
        self.wait_for(lambda: self._recovery_files() - self._former_files)

    def wait_for(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert all(rank.is_alive() for rank in self.ranks), logs(self.folder)
            assert time.monotonic() < end
            time.sleep(0.02)

    def end(self, *statuses):
        """Wait for these exit statuses of the ranks. Return what the ranks printed."""
        found = finish_ranks(self.ranks, 120)
        assert found == [*statuses], logs(self.folder)
        return logs(self.folder)


@pytest.fixture
def start(photos, tmp_path):
    """Function: start a run in a folder below tmp_path."""
    return lambda *flags, name='run', ranks=1, function=train_cli.main: Run(
        photos, tmp_path, name, flags, ranks, function)


def training(folder):
    """Whether a run has written something within an epoch."""
    return any(folder.glob('recovery-*.pth.tar'))


@pytest.fixture(scope='module')
def whole(photos, tmp_path_factory):
    """The files of an undisturbed run."""
    output = tmp_path_factory.mktemp('whole')
    Run(photos, output, 'run', [], 1).end(0)
    return outcome(output / 'run')


def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint(start, tmp_path, whole):
    """The run resumes after one signal, and gets the next."""
    for name in ('SIGTERM', 'SIGUSR1', 'SIGINT'):
        run = start()
        run.wait_for_update()
        run.signal(getattr(signal, name))
        errors = run.end(INTERRUPTED)
        assert re.search(f': error: {name}: saved .*epoch ', errors.splitlines()[-1])
    start().end(0)
    assert_equal(outcome(tmp_path / 'run'), whole)


def test_workers_ignore_signals(start, tmp_path):
    run = start('-j', '2', '--epochs', '400')
    run.wait_for(lambda: training(tmp_path / 'run'))
    run.signal(signal.SIGTERM)
    assert 'DataLoader worker' not in run.end(INTERRUPTED)


def train_endlessly(argv):
    """Train with an update that never ends. It prints the name of a signal that was recorded."""
    def wait(*_):
        signals = signal.getsignal(signal.SIGINT).__self__
        while True:
            print(signals.received, flush=True)
            time.sleep(0.02)

    AgMaxLoss.forward = wait
    train_cli.main(argv)


def test_a_second_interrupt_ends_at_once(start):
    run = start(function=train_endlessly)
    run.wait_for(lambda: 'None\n' in logs(run.folder))
    run.signal(signal.SIGINT)
    run.wait_for(lambda: 'SIGINT\n' in logs(run.folder))
    run.signal(signal.SIGINT)
    assert run.end(130).endswith('error: interrupted\n')


def test_killed_runs_equal_an_undisturbed_run(start, tmp_path, whole):
    """SIGKILL at random moments, also while a file is written: one is written after every update."""
    draw, killed, restarts = random.Random(0), 0, 0
    while killed < KILLS:
        run = start()
        restarts += 1
        before = time.time()
        try:
            run.wait_for(lambda before=before: any(path.stat().st_mtime > before for path in (
                tmp_path / 'run').glob('recovery-*.pth.tar')))
        except (AssertionError, FileNotFoundError):
            status = run.ranks[0].exitcode
            if status == 0:
                (tmp_path / 'run').rename(tmp_path / f'run-{restarts}')  # complete: once more from the start
                assert_equal(outcome(tmp_path / f'run-{restarts}'), whole)
                continue
            if status is not None:
                raise
        time.sleep(draw.random() * 0.5)
        with suppress(ProcessLookupError):
            run.signal(signal.SIGKILL)
        finish_ranks(run.ranks)
        killed += 1
        folder = tmp_path / 'run'
        for name in ('last.pth.tar', 'model_best.pth.tar'):
            if any(folder.glob('checkpoint-*.pth.tar')):
                load(folder / name)
    start().end(0)
    assert_equal(outcome(tmp_path / 'run'), whole)
    print(f'\n{killed} kills, {restarts + 1} starts, 0 bytes different')


def test_a_damaged_checkpoint_is_skipped_and_named(start, tmp_path, whole):
    run = start()
    run.wait_for(lambda: training(tmp_path / 'run') and any((tmp_path / 'run').glob('checkpoint-*')))
    run.signal(signal.SIGTERM)
    run.end(INTERRUPTED)
    newest = max((tmp_path / 'run').glob('recovery-*'), key=lambda path: [*map(int, re.findall(r'\d+', path.name))])
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    errors = start().end(0)
    line = next(line for line in errors.splitlines() if newest.name in line)
    assert 'damaged' in line and 'continuing from' in line
    assert_equal(outcome(tmp_path / 'run'), whole)


def test_a_dead_worker_is_named(start, tmp_path):
    run = start('-j', '2', '--epochs', '400')
    run.wait_for(lambda: training(tmp_path / 'run'))
    pid = run.ranks[0].pid
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert ': error: a loader worker died: ' in run.end(1).splitlines()[-1]


def test_a_suspended_run_continues(start, tmp_path):
    run = start('--epochs', '400', '--hang-timeout', '4')
    run.wait_for(lambda: training(tmp_path / 'run'))
    run.signal(signal.SIGSTOP)
    time.sleep(5)
    run.signal(signal.SIGCONT)
    time.sleep(1.5)  # in which the watchdog would have ended it
    assert run.ranks[0].is_alive()
    run.signal(signal.SIGTERM)
    assert 'SIGTERM: saved at' in run.end(INTERRUPTED)


def test_a_rank_that_hangs_is_named(start, tmp_path):
    run = start('--epochs', '4000', '--hang-timeout', '5', ranks=2)
    run.wait_for(lambda: training(tmp_path / 'run'))
    run.signal(signal.SIGSTOP, rank=1)
    assert finish_ranks(run.ranks[:1], 60) == [INTERRUPTED]
    run.signal(signal.SIGKILL, rank=1)
    printed = run.end(INTERRUPTED, -signal.SIGKILL)
    assert all(words in printed for words in ('5 s (--hang-timeout)', 'rank 1 does not answer', '--resume auto'))


def test_two_ranks_stop_together_and_resume(start, tmp_path):
    short = '--epochs', '4'
    start(*short, name='whole', ranks=2).end(0, 0)
    run = start(*short, ranks=2)
    run.wait_for(lambda: training(tmp_path / 'run'))
    run.signal(signal.SIGUSR1, rank=1)  # one of them alone
    assert re.search('saved at (the end of )?epoch', run.end(INTERRUPTED, INTERRUPTED))
    start(*short, ranks=2).end(0, 0)
    assert_equal(outcome(tmp_path / 'run'), outcome(tmp_path / 'whole'))


def test_a_run_resumes_on_another_number_of_ranks_and_logs_it(start, tmp_path):
    short = '--epochs', str(2 * INTERVAL)
    run = start(*short)
    run.wait_for(lambda: training(tmp_path / 'run'))
    run.signal(signal.SIGTERM)
    run.end(INTERRUPTED)
    errors = start(*short, '-b', '1', '--mixup', '0', ranks=2).end(0, 0)
    assert '2 ranks in place of 1' in errors and '--batch-size 1 in place of 2' in errors
    assert epochs_in(tmp_path / 'run') == [INTERVAL - 1, 2 * INTERVAL - 1]


def test_the_file_of_a_broken_update_reproduces_its_loss(photos, tmp_path, monkeypatch, capsys):
    """One forward pass with the saved weights and batch."""
    from timm.models import create_model

    from agmax_timm import AgMaxTask
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([str(photos), *FLAGS, '-j', '0', '--agmax', '--lr', '1e30', '--drop', '0', '--output',
                    str(tmp_path), '--experiment', 'run'])
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    path = next((tmp_path / 'run').glob('broken-*.pth'))
    kept = torch.load(path, weights_only=True)
    assert str(path) in message and 'not finite, samples' in message
    assert ', '.join(map(str, kept['indices'][0])) in message
    task = AgMaxTask(create_model(kept['model'], num_classes=kept['num_classes']), verbose=False)
    task.get_trainable_module().load_state_dict(kept['weights'])
    task.get_trainable_module().train()
    torch.manual_seed(0)
    losses = task(kept['input'], kept['target'])
    assert not losses[kept['broken'][0]].isfinite()


def test_a_broken_update_is_left_out(photos, tmp_path, monkeypatch):
    """With --nan-policy skip. Update, average and statistics of one batch are left out."""
    from agmax_timm.options.parse import parse_train_args
    from agmax_timm.training import run as train
    poison_losses(monkeypatch, {3})
    argv = [str(photos), *FLAGS, '-j', '0', '--agmax', '--epochs', '1', '--output', str(tmp_path)]
    with pytest.raises(RuntimeError, match='update 2 of epoch 0: ce not finite, samples'):
        train.train(parse_train_args([*argv, '--experiment', 'stopped']))
    poison_losses(monkeypatch, {3})
    results = train.train(parse_train_args([*argv, '--experiment', 'run', '--nan-policy', 'skip']))
    assert all(torch.tensor(list(results[0]['train'].values())).isfinite())
    assert all(value.isfinite().all() for value in load(tmp_path / 'run' / 'last.pth.tar')['state_dict'].values())
    assert 'Left out: update 2 of epoch 0' in (tmp_path / 'run' / 'train.log').read_text()


def test_a_gradient_that_is_not_finite_makes_no_update(photos, tmp_path, monkeypatch, capsys):
    """The loss is finite, so only the gradients show the fault."""
    poison_gradients(monkeypatch, {3})
    argv = [str(photos), *FLAGS, '-j', '0', '--agmax', '--epochs', '1', '--output', str(tmp_path)]
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([*argv, '--experiment', 'stopped', '--recovery-interval', '1'])
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    path, = (tmp_path / 'stopped').glob('broken-*.pth')
    kept = torch.load(path, weights_only=True)
    assert kept['broken'] == ['gradient'] and kept['losses'][0]['loss'] < float('inf')
    samples = ', '.join(map(str, kept['indices'][0]))
    for part in ('update 2 of epoch 0: gradient not finite', f'samples {samples}', str(path)):
        assert part in message
    newest = load(tmp_path / 'stopped' / 'recovery-0-1.pth.tar')
    assert newest['agmax_state']['position']['batch'] == 2
    assert all(value.isfinite().all() for value in newest['state_dict'].values())

    poison_gradients(monkeypatch, {3})
    train_cli.main([*argv, '--experiment', 'skipped', '--nan-policy', 'skip'])
    assert 'Left out: update 2 of epoch 0: gradient' in (tmp_path / 'skipped' / 'train.log').read_text()
    assert all(value.isfinite().all() for value in load(tmp_path / 'skipped' / 'last.pth.tar')['state_dict'].values())


@pytest.fixture
def scaled(monkeypatch):
    """Let runs on a CPU scale their losses, like those in float16 on a GPU."""
    from agmax_timm.assembly import model as build
    from agmax_timm.assembly.loss_scaler import LossScaler
    monkeypatch.setattr(build, 'build_precision', lambda args, device: build.Precision(scaler=LossScaler('cpu')))


def test_a_loss_scale_below_1_ends_the_run(photos, tmp_path, monkeypatch, capsys, scaled):
    """From 2 ** 16, the seventeenth skipped update in a row reduces the scale below 1."""
    poison_gradients(monkeypatch, range(1, 100))
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([str(photos), *FLAGS, '-j', '0', '--agmax', '--epochs', '9', '--output', str(tmp_path),
                    '--experiment', 'run'])
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for part in (
            'update 4 of epoch 2: gradient not finite', '17 updates in a row', 'scale is 0.5', '--amp-dtype bfloat16'):
        assert part in message
    kept = torch.load(next((tmp_path / 'run').glob('broken-*.pth')), weights_only=True)
    assert kept['broken'] == ['gradient'] and (kept['epoch'], kept['update']) == (2, 4)


def test_single_skipped_updates_are_counted_in_the_log(photos, tmp_path, monkeypatch, scaled):
    poison_gradients(monkeypatch, {1, 4})
    train_cli.main([str(photos), *FLAGS, '-j', '0', '--agmax', '--epochs', '1', '--output', str(tmp_path),
                '--experiment', 'run'])
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'Skipped update 0 of epoch 0' in log and 'now 32768; skipped so far: 1' in log
    assert 'Skipped update 3 of epoch 0' in log and 'now 16384; skipped so far: 2' in log
    assert load(tmp_path / 'run' / 'last.pth.tar')['amp_scaler']['scale'] == 2. ** 14


@pytest.mark.parametrize('update, flags', [
    (3, []), (6, []), (3, ['--recovery-interval', '3'])], ids=['next', 'end of the epoch', 'before a save'])
def test_a_gradient_that_is_read_later_names_its_own_update(photos, tmp_path, monkeypatch, capsys, update, flags):
    """As on a GPU: gradients are read with the next update, at the end of the epoch, or before a save."""
    from agmax_timm.training.updates import finite_check
    begin = finite_check.FiniteCheck.__init__

    def late(self, *args):
        begin(self, *args)
        self.at_once = False

    monkeypatch.setattr(finite_check.FiniteCheck, '__init__', late)
    poison_gradients(monkeypatch, {update})
    indices = []
    from agmax_timm.data.resumption.loader import ResumableLoader
    known = ResumableLoader.indices
    monkeypatch.setattr(ResumableLoader, 'indices', lambda self, number: (
        indices.append((number, known(self, number))), indices[-1][1])[1])
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([str(photos), *FLAGS, '-j', '0', '--agmax', '--epochs', '2', '--output', str(tmp_path),
                    '--experiment', 'run', *flags])
    assert exit_info.value.code == 1
    errors = capsys.readouterr().err
    (number, samples), = indices
    assert number == update - 1 and len(samples) == 2
    message = errors.strip().splitlines()[-1]
    assert f'update {number} of epoch 0: gradient not finite' in message
    assert f"samples {', '.join(map(str, samples))}." in message
    assert 'Test:' not in errors and not list((tmp_path / 'run').glob('*.pth*'))


def test_recovery_files_can_be_written_by_time(photos, tmp_path, monkeypatch):
    """Each update takes 4 s of this clock, so 10 s have passed after the third and after the sixth."""
    from agmax_timm.training.checkpoints import manager
    clock, written = [0.], []

    class Clock:
        @staticmethod
        def monotonic():
            return clock[0]

    requests, save_within = manager.CheckpointManager.requests, manager.CheckpointManager.save_within

    def slow(self):
        clock[0] += 4.
        return requests(self)

    def noted(self, position, *args):
        written.append((position.epoch, position.batch))
        save_within(self, position, *args)

    monkeypatch.setattr(manager, 'time', Clock)
    monkeypatch.setattr(manager.CheckpointManager, 'requests', slow)
    monkeypatch.setattr(manager.CheckpointManager, 'save_within', noted)
    train_cli.main([str(photos), *FLAGS, '-j', '0', '--epochs', '2', '--output', str(tmp_path), '--experiment', 'run',
                '--recovery-interval', '10s'])
    assert written == [(0, 3), (0, 6), (1, 3), (1, 6)]
    files = sorted(path.name for path in (tmp_path / 'run').glob('recovery-*'))
    assert files == ['recovery-1-2.pth.tar', 'recovery-1-5.pth.tar']
