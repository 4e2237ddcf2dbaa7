"""The end of a run on several ranks: no rank ends before the first one has written its files."""
import errno
import json
import time
from argparse import Namespace

import pytest
import torch

from agmax_timm.base.errors import UserError
from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training.checkpoints import manager as manager_module
from agmax_timm.training.checkpoints.manager import CheckpointManager, check_weights
from agmax_timm.training.updates.finite_check import CheckResult
from agmax_timm.training.updates.losses import NonFiniteError, RunningLosses
from tests.helpers.saver import make_saver


def write_slowly(path):
    time.sleep(0.2)
    path.touch()


def refuse():
    time.sleep(0.2)
    raise OSError(errno.ENOSPC, 'No space left on device')


def end(rank, folder):
    """Write how leave() and close() end, and whether the file was there."""
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    manager = CheckpointManager.__new__(CheckpointManager)
    options = Namespace(start_epoch=None, no_resume_opt=False)
    manager.training, manager.damage = Namespace(device=torch.device('cpu'), options=options), None
    manager.signals = Namespace(signal_name='SIGTERM')
    manager.saver = make_saver(folder) if rank == 0 else None
    path, outcomes = folder / 'file', []
    for call, work in ((manager.leave, lambda: write_slowly(path)), (manager.close, refuse)):
        if manager.saver is not None:
            manager.saver._run(work, str(path))
        try:
            outcomes.append([call('here'), path.exists()])
        except UserError as error:
            outcomes.append([type(error).__name__, path.exists()])
    (folder / f'{rank}.json').write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()


def check(rank, folder):
    """Write the message about the running statistics of rank 1, which has seen other images than rank 0."""
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    norm = torch.nn.BatchNorm1d(2)
    if rank == 1:
        norm.running_var[0] = torch.inf
    with pytest.raises(NonFiniteError) as error:
        check_weights(Namespace(get_trainable_module=lambda: norm), torch.device('cpu'))
    (folder / f'{rank}.txt').write_text(str(error.value))
    torch.distributed.destroy_process_group()


def test_all_ranks_refuse_to_save_statistics_of_one_that_are_not_finite(tmp_path):
    torch.multiprocessing.start_processes(check, (tmp_path,), nprocs=2, start_method='fork')
    for rank in range(2):
        assert (tmp_path / f'{rank}.txt').read_text().startswith('running_var and 0 more of the weights are not finite')


@pytest.mark.parametrize('interval, ends, saves', [
    (2, [3, 6, 9], [2, 3, 5, 6, 8, 9]), (4, [9], [4, 8, 9]), (4, [3, 6, 9], [3, 6, 9]), (9, [], [9])])
def test_a_run_saves_after_every_number_of_updates_also_in_shorter_epochs(monkeypatch, interval, ends, saves):
    """An epoch has 3 updates. After some of them, the epoch is saved."""
    monkeypatch.setattr(manager_module, 'check_weights', lambda *args: None)
    options = Namespace(fsdp=False, recovery_interval=interval, save_epochs=[])
    training = Namespace(options=options, task=None, device='cpu')
    watchdog, signals = Namespace(beat=lambda: None), Namespace(received=None)
    manager = CheckpointManager(training, Namespace(loader=Namespace(dataset=None)), signals, watchdog)
    manager.gather, found = lambda *args: None, []
    for update in range(1, 10):
        save, stop = manager.requests()
        assert not stop
        if save:
            manager.after_update(0, update, RunningLosses(torch.device('cpu')), CheckResult([], [], save=True))
        if update in ends:
            manager.save_epoch(update // 3, None)
        if save or update in ends:
            found.append(update)
    assert found == saves


@pytest.mark.parametrize('flags, how', [
    ('', 'with --resume FILE'), ('--start-epoch 0', 'with --resume FILE, without --start-epoch'),
    ('--start-epoch 1 --no-resume-opt', 'with --resume FILE, without --start-epoch and --no-resume-opt')])
def test_the_message_names_flags_that_would_train_epochs_again(flags, how):
    manager = CheckpointManager.__new__(CheckpointManager)
    manager.training, manager.saver, manager.damage = Namespace(device='cpu'), None, None
    manager.training.options = parse_train_args(['DIR', '--resume', 'auto', '--experiment', 'run', *flags.split()])
    manager.signals = Namespace(signal_name='SIGTERM')
    with pytest.raises(Interrupted, match=f'SIGTERM: saved at here. The same command continues .* {how}$'):
        manager.leave('here')


def test_all_ranks_wait_until_the_first_one_has_written(tmp_path):
    torch.multiprocessing.start_processes(end, (tmp_path,), nprocs=2, start_method='fork')
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2))
    assert first == [['Interrupted', True], ['SaveError', True]]
    assert second == [['Interrupted', True], [None, True]]
