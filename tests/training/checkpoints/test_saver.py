"""The checkpoints of a run while processes die and disks fail: one is intact, `last` and `model_best` exist."""
import errno
import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agmax_timm.base import atomic_write
from agmax_timm.base.safe_load import read_file, verify
from agmax_timm.training.checkpoints import saver as saver_module
from agmax_timm.training.checkpoints.saver import SaveError
from agmax_timm.weights.find import checkpoint_names, newest_checkpoint
from tests.helpers.saver import make_saver

LAST, BEST = 'last.pth.tar', 'model_best.pth.tar'


def save_all(saver, metrics):
    for epoch, metric in enumerate(metrics):
        saver.save_checkpoint(epoch, metric)
    saver.close()


def epoch_of(path):
    return read_file(str(path))['epoch']


# Which files stay

@pytest.mark.parametrize('metrics, decreasing, kept, best', [
    ([1., 3., 2., 2.5], False, {1, 3}, 1),
    ([1., 3., 2., 2.5], True, {0, 2}, 0),
    ([1., 1., 1.], False, {0, 1}, 0),
    ([math.nan] * 3, False, {1, 2}, 0),
    ([math.nan, 1., math.nan, math.nan], False, {1, 3}, 1),
    ([math.nan, 1., 2., math.nan], False, {1, 2}, 2),
    ([1., math.nan, math.nan, 3.], False, {0, 3}, 3),
])
def test_the_best_are_kept_as_ranked_by_timm_and_nan_is_never_best(metrics, decreasing, kept, best, tmp_path):
    saver = make_saver(tmp_path, decreasing=decreasing)
    save_all(saver, metrics)
    assert {epoch_of(path) for path in tmp_path.glob('checkpoint-*')} == kept
    assert epoch_of(tmp_path / LAST) == len(metrics) - 1
    assert epoch_of(tmp_path / BEST) == best
    again = make_saver(tmp_path, decreasing=decreasing)
    again.load_state_dict_from_checkpoint(str(tmp_path / LAST))
    assert (again.checkpoint_files, again.best_epoch) == (saver.checkpoint_files, saver.best_epoch)


def test_later_changes_of_the_state_do_not_reach_the_file(tmp_path):
    saver = make_saver(tmp_path)
    state = {'position': {'epoch': 1, 'batch': 0}, 'rng': torch.arange(5), 'rows': [{'epoch': 0}]}
    saver.save_checkpoint(0, 1., state=state)
    state['rng'].zero_()
    state['rows'].clear()
    saver.close()
    saved = read_file(str(tmp_path / LAST))['agmax_state']
    assert saved['rng'].tolist() == [0, 1, 2, 3, 4] and saved['rows'] == [{'epoch': 0}]
    saver.save_recovery(1, 7)
    saver.close()
    assert 'agmax_state' not in read_file(str(tmp_path / 'recovery-1-7.pth.tar'))


def test_two_recovery_files_are_kept_including_former_ones(tmp_path):
    before = make_saver(tmp_path)
    before.save_recovery(0, 3)
    before.close()
    saver = make_saver(tmp_path)
    for batch in (7, 11):
        saver.save_recovery(0, batch)
        saver.close()
    assert checkpoint_names(str(tmp_path)) == ['recovery-0-11.pth.tar', 'recovery-0-7.pth.tar']


def resume_from(folder, name, start_epoch=math.inf, **kwargs):
    saver = make_saver(folder, **kwargs)
    saver.load_state_dict_from_checkpoint(str(folder / f'{name}.pth.tar'), start_epoch)
    return saver


def test_after_going_back_the_best_is_one_of_the_branch(tmp_path):
    """The best of the first two epochs, 0, was removed. Epoch 3 is of the branch that the run leaves."""
    saver = make_saver(tmp_path)
    for epoch, metric in enumerate((3., 1., 4., 5.)):
        saver.save_checkpoint(epoch, metric)
        if epoch == 1:
            saver.save_milestone(2)
            saver.save_recovery(2, 7)
    saver.close()
    assert not (tmp_path / 'checkpoint-0.pth.tar').exists() and epoch_of(tmp_path / BEST) == 3

    again = resume_from(tmp_path, 'recovery-2-7')
    assert again.best_epoch is None and epoch_of(tmp_path / BEST) == 2  # the recovery file: nothing else is left
    again = resume_from(tmp_path, 'milestone-2')
    assert (again.best_epoch, again.best_metric, epoch_of(tmp_path / BEST)) == (1, 1., 1)
    again.save_checkpoint(2, 0.5)
    again.close()
    assert (again.best_epoch, epoch_of(tmp_path / BEST)) == (1, 1)
    again.save_checkpoint(3, 2.)
    again.close()
    assert (again.best_epoch, epoch_of(tmp_path / BEST)) == (3, 3)


def test_files_that_another_branch_overwrote_are_not_ranked_as_those_of_the_resumed_one(tmp_path):
    saver = make_saver(tmp_path, history=3)
    for epoch, metric in enumerate((1., 5., 2.)):
        saver.save_checkpoint(epoch, metric)
        saver.save_milestone(epoch + 1)
    saver.close()
    other = resume_from(tmp_path, 'milestone-1', history=3)
    other.save_checkpoint(1, 3.)
    other.close()
    again = resume_from(tmp_path, 'milestone-3', history=3)
    assert [value for _, value in again.checkpoint_files] == [2., 1.]
    assert (again.best_epoch, again.best_metric, epoch_of(tmp_path / BEST)) == (2, 2., 2)


@pytest.mark.parametrize('start, ranked, best, file', [
    (4, [4., 3., 2., 1.], 3, 3), (3, [3., 2., 1.], 1, 1), (1, [1.], 0, 0), (0, [], None, 3)])
def test_epochs_that_are_trained_again_do_not_rank(tmp_path, start, ranked, best, file):
    save_all(make_saver(tmp_path, history=5), [1., 3., 2., 4.])
    again = resume_from(tmp_path, 'last', start, history=5)
    assert [value for _, value in again.checkpoint_files] == ranked
    assert (again.best_epoch, epoch_of(tmp_path / BEST)) == (best, file)
    again.save_checkpoint(start, 3.5)
    again.close()
    expected = start if start < 4 else 3
    assert (again.best_epoch, epoch_of(tmp_path / BEST)) == (expected, expected)
    assert [value for _, value in again.checkpoint_files] == sorted([*ranked, 3.5], reverse=True)


def test_a_copy_of_a_recovery_file_does_not_take_the_place_of_its_epoch(tmp_path):
    saver = make_saver(tmp_path, history=2)
    save_all(saver, [1.])
    saver.save_recovery(1, 7)
    saver.save_checkpoint(1, 3.)
    saver.close()
    (tmp_path / 'recovery-1-7.pth.tar').rename(tmp_path / 'copy.pth.tar')
    resume_from(tmp_path, 'copy', history=2)
    assert read_file(str(tmp_path / 'checkpoint-1.pth.tar'))['metric'] == 3.


def test_the_best_stays_if_the_user_removed_the_other_files(tmp_path):
    save_all(make_saver(tmp_path), [1., 3., 2.])
    for path in tmp_path.glob('checkpoint-*'):
        path.unlink()
    again = resume_from(tmp_path, 'last')
    assert (again.best_epoch, again.best_metric, epoch_of(tmp_path / BEST)) == (1, 3., 1)


def test_resuming_from_the_best_keeps_each_file_under_its_own_name(tmp_path):
    """The best before it was epoch 0."""
    save_all(make_saver(tmp_path, history=3), [1., 3., 2.])
    again = resume_from(tmp_path, 'model_best', history=3)
    assert again.best_epoch == 1
    assert [epoch_of(tmp_path / f'{name}.pth.tar') for name in ('checkpoint-0', 'checkpoint-1', 'model_best')] == [
        0, 1, 1]


def test_the_loss_of_training_is_not_compared_with_that_of_validation(tmp_path):
    before = make_saver(tmp_path, decreasing=True)
    before.args, before.metadata = replace(before.args, val_split=''), {'metric_name': 'loss'}
    save_all(before, [0.1])
    again = make_saver(tmp_path, decreasing=True)
    again.metadata = {'metric_name': 'loss'}
    again.load_state_dict_from_checkpoint(str(tmp_path / LAST))
    assert again.best_epoch is None
    again.save_checkpoint(1, 2.)
    again.close()
    assert (again.best_epoch, again.best_metric, epoch_of(tmp_path / BEST)) == (1, 2., 1)


# Processes that die

def sequence(folder):
    saver = make_saver(folder, history=1)
    for epoch, metric in enumerate((1., 2., 1.5)):
        saver.save_recovery(epoch, 4)
        saver.save_checkpoint(epoch, metric)
    saver.close()


def before_each_call(monkeypatch, action):
    """Call action(name) before each operation on files of the process."""
    def watch(name):
        function = getattr(os, name)

        def call(*args):
            action(name)
            return function(*args)
        monkeypatch.setattr(os, name, call)
    for name in ('fsync', 'replace', 'link', 'unlink', 'remove'):
        watch(name)


def die_at(monkeypatch, step, links):
    """Let this process end before its file operation number `step`. Writing half of a file is one operation."""
    count = 0

    def point(name):
        nonlocal count
        if count == step:
            os._exit(9)
        count += 1
        if name == 'link' and not links:
            raise OSError(errno.EPERM, 'no hard links here')

    def save_in_halves(content, f, save=torch.save):
        whole = io.BytesIO()
        save(content, whole)
        half = whole.tell() // 2
        for part in (whole.getvalue()[:half], whole.getvalue()[half:]):
            f.write(part)
            f.flush()
            point('write')

    before_each_call(monkeypatch, point)
    monkeypatch.setattr(saver_module.torch, 'save', save_in_halves)


def run_in_child(monkeypatch, folder, step, links):
    """Whether a process completed the sequence."""
    child = os.fork()
    if child == 0:
        try:
            die_at(monkeypatch, step, links)
            sequence(folder)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


@pytest.mark.parametrize('links', [True, False])
def test_checkpoints_are_intact_if_a_process_dies_at_any_step(links, memory_path, monkeypatch):
    for step in range(1000):
        folder = memory_path / str(step)
        folder.mkdir()
        complete = run_in_child(monkeypatch, folder, step, links)
        names = checkpoint_names(str(folder))
        for name in names:  # no file of a checkpoint's name is ever damaged
            verify(str(folder / name))
        path, damaged = newest_checkpoint(str(folder))
        assert (path is None) == (not names) and not damaged
        assert LAST in names or not any(name.startswith(('checkpoint', 'model')) for name in names)
        assert BEST in names or not any(name.startswith('checkpoint') for name in names)
        if path is None:
            continue

        atomic_write.remove_unfinished(str(folder))
        saver = make_saver(folder)
        saver.load_state_dict_from_checkpoint(path)
        if saver.best_epoch is not None:
            assert BEST in os.listdir(folder)
            assert epoch_of(folder / BEST) == saver.best_epoch == (0, 1, 1)[epoch_of(folder / LAST)]
        assert not complete or [epoch_of(folder / name) for name in (LAST, BEST)] == [2, 1]
        saver.save_checkpoint(4, 9.)
        saver.close()
        assert [epoch_of(folder / name) for name in (LAST, BEST)] == [4, 4]
        assert not [name for name in os.listdir(folder) if name.endswith(atomic_write.UNFINISHED)]
        if complete:
            return
    raise AssertionError('the sequence did not end')


def test_model_best_exists_at_every_step_after_the_first_checkpoint(tmp_path, monkeypatch):
    saver = make_saver(tmp_path)
    save_all(saver, [1.])
    seen = []

    def look(name):
        seen.append([epoch_of(tmp_path / file) for file in (LAST, BEST)])
    before_each_call(monkeypatch, look)
    save_all(saver, [2., 3., 1., 4.])
    monkeypatch.undo()
    assert len(seen) > 20


# Disks that refuse

@pytest.mark.parametrize('background', [True, False])
def test_a_full_disk_is_reported_and_existing_files_stay(background, tmp_path, caplog, file_size_limit):
    saver = make_saver(tmp_path, side=100)
    saver._background.enabled = background
    with file_size_limit(20_000):
        saver.save_checkpoint(0, 1.)
        with pytest.raises(SaveError, match='last.pth.tar.*: File too large; .*no checkpoint'):
            saver.close()
    assert os.listdir(tmp_path) == []
    save_all(saver, [1.])
    with file_size_limit(20_000):
        saver.save_checkpoint(1, 2.)
        saver.save_milestone(2)
        with pytest.raises(SaveError, match='last.pth.tar.*: File too large; .*last.pth.tar.* intact'):
            saver.close()
    assert re.search('last.pth.tar.* intact. Training continues', caplog.text)
    assert sorted(os.listdir(tmp_path)) == ['checkpoint-0.pth.tar', LAST, BEST]
    assert epoch_of(tmp_path / LAST) == 0 and saver.best_epoch == 0
    saver.save_checkpoint(2, 1.5)
    saver.close()
    assert epoch_of(tmp_path / BEST) == saver.best_epoch == 2


@pytest.mark.parametrize('step', range(12))
def test_the_next_save_repairs_a_failed_one(step, tmp_path, monkeypatch):
    saver = make_saver(tmp_path)
    save_all(saver, [1., 1.5])
    calls = []

    def fail(name):
        calls.append(name)
        if len(calls) == step + 1:
            raise OSError(errno.EIO, 'Input/output error')
    before_each_call(monkeypatch, fail)
    saver.save_checkpoint(2, 3.)
    saver.wait()
    monkeypatch.undo()
    for name in (LAST, BEST):
        assert epoch_of(tmp_path / name) in (1, 2)
    saved = epoch_of(tmp_path / LAST) == 2
    saver.save_checkpoint(3, 2.)
    saver.close()
    assert epoch_of(tmp_path / LAST) == 3
    assert not list(tmp_path.glob('*.unfinished'))
    if saver.best_epoch == 2:
        assert saved and epoch_of(tmp_path / BEST) == 2
    assert epoch_of(tmp_path / BEST) == saver.best_epoch


def test_other_errors_of_the_writer_are_raised(tmp_path):
    saver = make_saver(tmp_path)
    saver.save_checkpoint(0, 1., state={'hook': lambda: None})
    with pytest.raises(Exception, match='pickle|lambda'):
        saver.close()


# What is found again

def flip(path):
    """Flip a bit of the last part of a file, so that its metadata stay readable."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b'PK\x01\x02') - 20] ^= 1
    Path(path).write_bytes(content)


def test_the_newest_intact_checkpoint_is_found(tmp_path):
    saver = make_saver(tmp_path, history=5)
    assert newest_checkpoint(str(tmp_path)) == (None, []) == newest_checkpoint(str(tmp_path / 'missing'))
    save_all(saver, [1., 2.])
    for name in ('checkpoint-0', 'last'):  # a file of its own
        content = (tmp_path / f'{name}.pth.tar').read_bytes()
        (tmp_path / f'{name}.pth.tar').unlink()
        (tmp_path / f'{name}.pth.tar').write_bytes(content)
    saver.save_recovery(2, 4, state={'position': {'epoch': 2, 'batch': 5}})
    saver.save_recovery(2, 9, state={'position': {'epoch': 2, 'batch': 10}})
    saver.close()
    (tmp_path / 'last.pth.tar.unfinished').write_bytes(b'PK')
    (tmp_path / 'tmp.pth.tar').write_bytes(b'PK')

    order = ['recovery-2-9', 'recovery-2-4', 'last', 'checkpoint-1', 'checkpoint-0']
    damaged = []
    for name in order:
        path = str(tmp_path / f'{name}.pth.tar')
        found, passed = newest_checkpoint(str(tmp_path))
        assert found == path
        assert [path for path, _ in passed] == damaged
        flip(path)
        damaged.append(path)
        if name == 'checkpoint-1':
            damaged.append(str(tmp_path / BEST))  # the same file
    found, passed = newest_checkpoint(str(tmp_path))
    assert found is None
    reasons = dict(passed)
    assert reasons[str(tmp_path / BEST)].endswith('model_best.pth.tar is the same file as checkpoint-1.pth.tar')
    assert "last.pth.tar' is damaged: " in reasons[str(tmp_path / LAST)]


def test_a_recovery_file_without_state_is_older_than_the_end_of_its_epoch(tmp_path):
    saver = make_saver(tmp_path)
    save_all(saver, [1.])
    saver.save_recovery(0, 4)
    saver.close()
    assert newest_checkpoint(str(tmp_path))[0] == str(tmp_path / LAST)
    saver.save_recovery(1, 4, state={'position': {'epoch': 1, 'batch': 5}})
    saver.close()
    assert newest_checkpoint(str(tmp_path))[0] == str(tmp_path / 'recovery-1-4.pth.tar')


def position(batch, size, ranks=1, trained=False):
    """A state before a batch of epoch 1, with batches of this size on each rank."""
    return {'position': {'epoch': 1, 'batch': batch, 'trained': trained},
            'ranks': [{'loader': {'shape': {'ranks': ranks, 'batch size': size}}}] * ranks}


@pytest.mark.parametrize('before, after', [
    (position(4, 2), position(3, 4)), (position(6, 4), position(4, 4, ranks=2)), (position(4, 2), position(9, 1)),
    (position(6, 2), position(3, 4, trained=True)), (position(6, 2, trained=True), None)])
def test_the_newest_checkpoint_has_the_most_trained_images(tmp_path, before, after):
    """The batch size or the number of ranks changed within the epoch, so the numbers of batches do not compare."""
    saver = make_saver(tmp_path)
    saver.save_recovery(1, 9, state=before)
    if after is None:  # the end of the epoch
        saver.save_checkpoint(1, 1.)
    else:
        saver.save_recovery(1, 8, state=after)
    saver.close()
    name = LAST if after is None else 'recovery-1-8.pth.tar'
    assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / name), [])


def test_files_without_an_epoch_are_ignored(tmp_path):
    save_all(make_saver(tmp_path), [1.])
    (tmp_path / 'checkpoint-7.pth.tar').write_bytes(b'')
    torch.save({'weight': torch.ones(1)}, tmp_path / 'weights.pth.tar')
    found, passed = newest_checkpoint(str(tmp_path))
    assert found == str(tmp_path / LAST)
    assert passed == [(str(tmp_path / 'checkpoint-7.pth.tar'), f"'{tmp_path / 'checkpoint-7.pth.tar'}' is empty")]
