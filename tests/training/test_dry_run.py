"""The output of --dry-run, against closed forms and real runs. It writes no files."""
import logging
import math
import shutil
from argparse import Namespace

import pytest
import torch

from agmax_timm.assembly import model as build
from agmax_timm.commands import train as train_cli
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import dry_run
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints.manager import most_files
from agmax_timm.training.output import run_folder
from agmax_timm.training.output.log_file import LogFile
from tests.helpers.saver import make_saver

FLAGS = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--lr', '0.05',
         '--warmup-epochs', '0', '--epochs', '4', '--checkpoint-hist', '2', '--experiment', 'run']


@pytest.fixture
def plan(photos, tmp_path, capsys):
    """Function: the lines of a dry run with these flags on the photos, by title."""
    def run(*flags):
        capsys.readouterr()
        assert training.train(parse_train_args(
            [str(photos), *FLAGS, '--output', str(tmp_path / 'output'), '--dry-run', *flags])) == []
        lines = capsys.readouterr().out.splitlines()
        return {title: text.strip() for title, _, text in (line.partition('  ') for line in lines)}
    return run


@pytest.fixture
def at_two_seconds(monkeypatch):
    """An update of 4 images takes 2 seconds, an evaluation 3 seconds."""
    monkeypatch.setattr(dry_run, 'time_updates', lambda built: (2., 2.))
    monkeypatch.setattr(dry_run, 'time_evaluation', lambda built: 3.)


def test_epochs_updates_times_and_rates_equal_closed_forms(plan, at_two_seconds, tmp_path):
    """12 images are 3 batches of 4."""
    told = plan('--agmax', '--model-ema', '--val-interval', '2')
    assert told['epochs'] == '4 to go, of 4' and told['updates'] == '3 per epoch, 12 to go'
    assert told['batch'] == '4 images, 8 views on each rank'
    for part in ('over all images', '4 images on 1 rank', '3 classes'):
        assert part in told['marginals']
    assert told['speed'] == '2.0 images/s, 4.0 views/s, 2.000 s per update'
    assert told['training'] == '00:24' and told['evaluation'] == '00:12, 2 times 6.0 s', 'the EMA is evaluated as well'
    pixels = 2 * (48 + 52 + 56) * (64 + 60) * 3
    assert told['ranks'] == '1 on cpu'
    assert told['augmentation'].endswith(f', images are kept in memory, {pixels / 2 ** 20:.2f} MiB')
    last = 0.05 * (1 + math.cos(math.pi * 3 / 4)) / 2
    assert told['learning rate'] == f'cosine, 0.05 in epoch 0, {last:.3g} in epoch 3'
    assert not (tmp_path / 'output').exists()


def test_the_memory_of_predictions_is_listed(plan, at_two_seconds):
    told = plan('--agmax-teacher', 'memory', '--agmax-teacher-topk', '2')
    assert told['batch'] == '4 images, 4 views on each rank' and 'marginals' not in told
    size = 12 * (2 * 8 + 1) / 2 ** 20
    assert told['remembered'] == (
        f'12 images x the 2 largest of 3 classes, momentum 0.8, {size:.2f} MiB on each rank and in each checkpoint')


def test_accumulation_warm_up_and_missing_validation_are_considered(plan, at_two_seconds):
    told = plan('--grad-accum-steps', '2', '--stop-epoch', '3', '--warmup-epochs', '2', '--warmup-lr', '0.01',
                '--sched-on-updates', '--val-split', '', '--image-memory', '0')
    assert told['epochs'] == '3 to go, of 4' and told['updates'] == '2 per epoch, 6 to go'
    assert told['batch'] == '4 images, 4 views on each rank' and 'marginals' not in told
    assert told['speed'] == '2.0 images/s, 2.000 s per update' and told['evaluation'] == 'none'
    assert told['augmentation'] == 'by timm, images are not kept in memory'
    last = 0.05 * (1 + math.cos(math.pi * 4 / 8)) / 2  # after 4 of 8 updates, where the warm-up ends
    assert told['learning rate'] == f'cosine, 0.01 in epoch 0, 0.03 in epoch 1, {last:.3g} in epoch 2'


@pytest.mark.parametrize('flags, metric', [((), 'top1'), (('--val-split', ''), 'loss')])
def test_the_rate_of_a_plateau_schedule_depends_on_the_metric(plan, at_two_seconds, flags, metric):
    told = plan('--sched', 'plateau', '--warmup-epochs', '2', '--warmup-lr', '0.01', *flags)
    assert told['learning rate'] == f'plateau, 0.01 in epoch 0, lower if {metric} gets no better'


def test_parameters_and_disk_use_equal_those_of_the_run(plan, photos, tmp_path, monkeypatch, caplog):
    flags = ['--agmax', '--opt', 'adamw', '--model-ema']
    told = plan(*flags)
    training.train(parse_train_args([str(photos), *FLAGS, *flags, '--output', str(tmp_path), '--epochs', '1']))
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    model = build.create_model('test_resnet', num_classes=3)
    count = sum(parameter.numel() for parameter in model.parameters())
    beside = sum(value.numel() for value in checkpoint['task_state']['qnet'].values())
    assert told['parameters'] == f'{count}, and {beside} used in training only'
    size, *_ = told['checkpoints'].split()
    assert float(size) == pytest.approx((tmp_path / 'run' / 'last.pth.tar').stat().st_size / 2 ** 20, rel=0.02)
    assert ' MiB each, 4 at most: ' in told['checkpoints'] and 'will not fit' not in caplog.text

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=2 ** 20))
    assert '1.00 MiB are free in' in plan(*flags)['checkpoints']
    assert '4 checkpoints of ' in caplog.text and 'will not fit into the 1.00 MiB' in caplog.text


@pytest.mark.parametrize('epochs, history, milestones', [(8, 2, []), (8, 2, [5, 6, 9]), (3, 2, []), (2, 4, [1]),
                                                         (1, 1, [])])
def test_the_largest_number_of_files_equals_that_of_a_saver(epochs, history, milestones, tmp_path):
    """Metrics get worse, so the last checkpoint is not among the best."""
    saver = make_saver(tmp_path, history=history)
    most = 0
    for epoch in range(epochs):
        most = max(most, 1 + len({path.stat().st_ino for path in tmp_path.iterdir()}))
        saver.save_checkpoint(epoch, -epoch)
        if epoch + 1 in milestones:
            saver.save_milestone(epoch + 1)
        saver.wait()
    saver.close()
    args = Namespace(checkpoint_hist=history, save_epochs=milestones, recovery_interval=0)
    assert most_files(args, range(1, epochs + 1)) == most
    args.recovery_interval = 100
    assert most_files(args, range(1, epochs + 1)) == most + 2


@pytest.mark.parametrize('durations, made, speed, flags', [
    ([10., 2., 2.], 3, '2.0 images/s, 2.000 s per update', []),  # the whole epoch: it takes less than the limit
    ([10., 8., 2.], 2, '0.5 images/s, 8.000 s per update', []),
    ([10., 8., 2.], 2, '0.5 images/s, 8.000 s per update', ['--aug-splits', '2', '--aa', 'rand-m9']),
])
def test_speed_is_measured_after_the_first_update_for_a_few_seconds(plan, monkeypatch, durations, made, speed, flags):
    clock, updates = [0.], []

    class Slow(dry_run.Step):
        def accumulate(self, update, *args):
            clock[0] += durations[len(updates)]
            updates.append(update)
            super().accumulate(update, *args)

    monkeypatch.setattr(dry_run, 'Step', Slow)
    monkeypatch.setattr(dry_run, 'time', Namespace(perf_counter=lambda: clock[0]))
    told = plan(*flags)
    assert len(updates) == made and told['speed'] == speed
    assert told['memory'].endswith('GiB of host memory at most, without workers') or 'MiB' in told['memory']


def test_a_run_that_resumes_with_one_update_left_is_measured_on_the_next_epoch(plan, photos, tmp_path, monkeypatch):
    """It was stopped at the last update, or one before, so that the rest of the epoch tells nothing."""
    flags = ['--recovery-interval', '1', '--val-split', '']
    training.train(parse_train_args([str(photos), *FLAGS, '--output', str(tmp_path), '--stop-epoch', '1', *flags]))
    first, train = [], dry_run.train_one_epoch

    def noted(epoch, *args, first_batch, **kwargs):
        first.append((epoch, first_batch))
        train(epoch, *args, first_batch=first_batch, **kwargs)

    monkeypatch.setattr(dry_run, 'train_one_epoch', noted)
    for batch in (2, 1):
        told = plan('--resume', str(tmp_path / 'run' / f'recovery-0-{batch}.pth.tar'), *flags)
        assert told['updates'] == f'3 per epoch, {11 - batch} to go' and told['speed'].endswith(' s per update')
    assert first == [(1, 0), (1, 0)]


@pytest.mark.parametrize('batches, fsdp, made', [
    (2, False, 2),  # the whole share of this rank
    (10, False, 4), (10, True, 3)])
def test_an_evaluation_is_measured_after_its_first_batch_for_a_few_seconds(monkeypatch, batches, fsdp, made):
    """A batch takes 5 seconds, the first one 9. The evaluator has no compute(), in which ranks wait for each other."""
    clock, updated = [0.], []

    def outputs_of(model, loader, *args):
        for index in loader:
            clock[0] += 5. if index else 9.
            yield None, index, None

    monkeypatch.setattr(dry_run, 'outputs_of', outputs_of)
    monkeypatch.setattr(dry_run, 'evaluation_sample_limit', lambda loader: None)
    monkeypatch.setattr(dry_run, 'time', Namespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(dry_run, 'SECONDS', 11.)
    monkeypatch.setattr(dry_run, 'EVALUATED', 3)
    evaluator = Namespace(update=lambda output, target: updated.append(output))
    run = Namespace(
        options=Namespace(fsdp=fsdp), device=torch.device('cpu'), loader_eval=range(batches), precision=None,
        task=Namespace(create_evaluator=lambda max_samples: evaluator, get_eval_model=lambda: None),
        checkpoints=Namespace(watchdog=Namespace(beat=lambda: None)))
    assert dry_run.time_evaluation(run) == batches * 5. and updated == list(range(made))


def test_memory_is_that_reserved_by_the_allocator(monkeypatch):
    """This is the memory that runs out. It exceeds that of the tensors."""
    device = torch.device('cuda')
    for name, value in dict(max_memory_reserved=3 * 2 ** 30, max_memory_allocated=2 ** 30, get_device_name='A GPU',
                            get_device_properties=Namespace(total_memory=80 * 2 ** 30)).items():
        monkeypatch.setattr(torch.cuda, name, lambda of, value=value: value if of is device else None)
    for part in ('3.00 GiB reserved', '80.00 GiB of A GPU', 'tensors took 1.00 GiB'):
        assert part in dry_run._memory(device)


def test_a_resumed_run_counts_remaining_epochs_and_changes_no_file(plan, at_two_seconds, photos, tmp_path):
    output = ['--output', str(tmp_path / 'output')]
    training.train(parse_train_args([str(photos), *FLAGS, *output, '--stop-epoch', '3']))
    (tmp_path / 'output' / 'run' / '.lock').unlink()
    run_folder._locks.clear()
    logging.root.removeHandler(next(handler for handler in logging.root.handlers if isinstance(handler, LogFile)))
    before = {path.name: path.read_bytes() for path in (tmp_path / 'output' / 'run').iterdir()}
    told = plan('--resume', 'auto')
    assert told['epochs'] == '1 to go, of 4' and told['updates'] == '3 per epoch, 3 to go'
    assert {path.name: path.read_bytes() for path in (tmp_path / 'output' / 'run').iterdir()} == before
    with pytest.raises(ValueError, match='holds another run'):
        plan()


@pytest.mark.parametrize('flags, status, words', [
    (['--num-classes', '2'], 2, 'the data has 3 classes'),
    (['--lr', '1e30', '--agmax'], 1, 'not finite'),
])
def test_a_run_that_cannot_work_is_refused_as_without_dry_run(photos, tmp_path, capsys, flags, status, words):
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([str(photos), *FLAGS, '--dry-run', '--output', str(tmp_path / 'output'), *flags])
    assert exit_info.value.code == status
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / 'output').exists()
