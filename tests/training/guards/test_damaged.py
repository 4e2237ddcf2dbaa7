"""Runs on data with images that cannot be decoded: messages, end of the run, and files."""
import csv
import logging
import multiprocessing
import os
import shutil
import tarfile
import types

import pytest
import torch
import torch.distributed as dist

from agmax_timm.base.errors import DamagedError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.decoding import damage_of
from agmax_timm.training.guards import damaged
from agmax_timm.training.guards.damaged import DamageLog
from agmax_timm.training.output import log
from tests.helpers.run_files import load

NAFLEX = ['--model', 'naflexvit_base_patch16_gap', '--model-kwargs', 'embed_dim=16', 'depth=1', 'num_heads=2',
          '--naflex-loader', '--naflex-max-seq-len', '9']


@pytest.fixture
def data(photos, tmp_path):
    """A copy of the photos: 12 for training, 12 for validation. A test may damage its files."""
    return shutil.copytree(photos, tmp_path / 'data')


def flags(data, *more):
    return [str(data), '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0',
            '--lr', '0.05', '--warmup-epochs', '0', '--epochs', '2', '--output', str(data.parent),
            '--experiment', 'run', *more]


def error_of(main, argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if ' error: ' in line]
    assert caught.value.code == 2 and len(lines) == 1
    return lines[0]


def test_a_run_reports_new_damage_once_per_epoch_and_all_at_its_end(data, caplog):
    for name in ('ant/000.jpg', 'cat/010.jpg'):
        (data / 'train' / name).write_bytes(b'')
    with caplog.at_level(logging.WARNING):
        train_cli.main(flags(data, '--max-damaged', '0.2', '-j', '2', '--agmax'))
    warnings = [record.getMessage() for record in caplog.records if record.name == 'train']
    assert len(warnings) == 2  # the first epoch, the end; nothing is new in the second epoch
    assert warnings[0].startswith('2 more training images cannot') and warnings[1].startswith('2 of 12 training images')
    for warning in warnings:
        assert f"{data / 'train' / 'ant' / '000.jpg'}: empty file" in warning and 'cat/010.jpg' in warning
    with open(data.parent / 'run' / 'damaged.csv', newline='') as f:
        rows = list(csv.reader(f))
    assert rows == [['path', 'reason']] + [
        [str(data / 'train' / name), 'empty file'] for name in ('ant/000.jpg', 'cat/010.jpg')]


def test_file_names_that_are_not_text_are_written_and_a_full_disk_is_reported(
        data, tmp_path, monkeypatch, file_size_limit):
    name, told = os.path.join(os.fsencode(data / 'train' / 'ant'), b'\xff\xe9.jpg'), []
    with open(name, 'wb') as f:
        f.write(b'text')
    dataset = create_dataset('', str(data), 'train', max_damaged=1.)
    assert len([*dataset]) == 13
    for logger in (damaged, log):  # names that no test report could hold
        monkeypatch.setattr(logger, '_logger', types.SimpleNamespace(warning=told.append))
    DamageLog(dataset.damage, torch.device('cpu'), str(tmp_path)).after_epoch()
    assert len(told) == 1 and (tmp_path / 'damaged.csv').read_bytes() == b'path,reason\r\n%s,not an image\r\n' % name

    dataset.damage._reported.zero_()
    with file_size_limit(8):
        DamageLog(dataset.damage, torch.device('cpu'), str(tmp_path)).after_epoch()
    for part in (str(tmp_path / 'damaged.csv'), ': File too large', 'training continues'):
        assert part in told[2]
    assert (tmp_path / 'damaged.csv').read_bytes().startswith(b'path,reason\r\n'), 'the file of before stays'


def test_the_reason_for_a_damaged_image_in_a_tar_file_is_that_of_its_content(data, tmp_path, monkeypatch, caplog):
    """Also if a file below the working directory has the same name."""
    contents = {'ant/000.jpg': b'', 'bee/004.jpg': b'text'}
    for name, content in contents.items():
        (data / 'train' / name).write_bytes(content)
    with tarfile.open(tmp_path / 'data.tar', 'w') as tar:
        tar.add(data / 'train', arcname='')
    monkeypatch.chdir(data / 'val')  # which has a valid ant/000.jpg, and no bee/004.jpg
    (data / 'val' / 'ant' / '000.jpg').write_bytes((data / 'val' / 'bee' / '004.jpg').read_bytes())
    (data / 'val' / 'bee' / '004.jpg').unlink()
    dataset = create_dataset('', str(tmp_path / 'data.tar'), 'train', max_damaged=1.)
    for name in contents:
        dataset.damage.record([dataset.damage.path(index) for index in range(12)].index(name), 'as by a worker')
    DamageLog(dataset.damage, torch.device('cpu'), str(tmp_path)).after_epoch()
    with open(tmp_path / 'damaged.csv', newline='') as f:
        assert [*csv.reader(f)][1:] == [['ant/000.jpg', 'empty file'], ['bee/004.jpg', 'not an image']]
    assert '  ant/000.jpg: empty file\n  bee/004.jpg: not an image' in caplog.text
    assert dataset.reader.tar_state.tf is None, 'workers that are forked later open their own'


def test_valid_data_gives_no_message(data, caplog):
    with caplog.at_level(logging.WARNING):
        train_cli.main(flags(data, '--epochs', '1', '--max-damaged', '0'))
    assert 'decoded' not in caplog.text and not (data.parent / 'run' / 'damaged.csv').exists()


@pytest.mark.parametrize('more', [['-j', '0'], ['-j', '2'], ['-j', '2', '--agmax'], ['--aug-splits', '2', '--aa',
                                  'augmix-m5'], NAFLEX + ['--naflex-train-seq-lens', '4', '9']], ids=' '.join)
def test_too_many_damaged_images_end_the_run_with_one_line(more, data, capsys):
    for path in (data / 'train').glob('*/*.jpg'):
        path.write_bytes(path.read_bytes()[:300])
    (data / 'train' / 'ant' / '000.jpg').write_bytes((data / 'val' / 'ant' / '000.jpg').read_bytes())
    line = error_of(train_cli.main, flags(data, '--max-damaged', '0.5', *more), capsys)
    assert ' of 12 samples' in line and '--max-damaged 0.5' in line and '--check-data' in line and '.jpg' in line
    assert not (data.parent / 'run' / 'last.pth.tar').exists()
    with open(data.parent / 'run' / 'damaged.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) > 6 and all(row['path'].endswith('.jpg') and row['reason'] for row in rows)


def test_max_damaged_is_1_percent_by_default(data, capsys):
    (data / 'train' / 'ant' / '000.jpg').write_bytes(b'')
    assert '1 of 12 samples (8.33%)' in error_of(train_cli.main, flags(data), capsys)


def test_a_damaged_training_image_of_torch_data_ends_the_run_with_one_line(data, capsys):
    path = data / 'train' / 'ant' / '000.jpg'
    path.write_bytes(b'no photograph')
    line = error_of(train_cli.main, flags(data, '--dataset', 'torch/image_folder', '--max-damaged', '1'), capsys)
    assert str(path) in line and 'cannot be decoded' in line


@pytest.mark.parametrize('share', ['-0.1', '1.5'])
def test_an_invalid_max_damaged_is_refused(share, data, capsys):
    line = error_of(train_cli.main, flags(data, '--max-damaged', share), capsys)
    assert '--max-damaged must be between 0 and 1' in line


@pytest.mark.parametrize('more', [['-j', '0'], ['-j', '2'], NAFLEX + ['--naflex-train-seq-lens', '4']], ids=' '.join)
def test_validation_in_a_run_refuses_the_first_damaged_image(more, data, capsys):
    path = data / 'val' / 'bee' / '005.jpg'
    path.write_bytes(b'no photograph')
    line = error_of(train_cli.main, flags(data, '--max-damaged', '1', *more), capsys)
    assert str(path) in line and 'cannot be decoded' in line


@pytest.mark.parametrize('workers', ['0', '2'])
def test_validate_refuses_the_first_damaged_image(workers, train_once, data, capsys):
    checkpoint = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '1') / 'last.pth.tar'
    path = data / 'val' / 'bee' / '005.jpg'
    path.write_bytes(path.read_bytes()[:300])
    argv = [str(data), '--checkpoint', str(checkpoint), '-b', '4', '-j', workers]
    line = error_of(validate_cli.main, argv, capsys)
    assert f"{path}' cannot be decoded: " in line and '--check-data' in line


def test_missing_data_is_refused_before_the_model_is_built(data, capsys, monkeypatch):
    monkeypatch.setattr('agmax_timm.assembly.model.build_model', None)
    shutil.rmtree(data / 'val')
    assert "no folder for split 'validation'" in error_of(train_cli.main, flags(data), capsys)


def run_rank(rank, root, found):
    """Find one damaged image, then end the epoch. Write the damage that this rank knows, and its error."""
    dist.init_process_group('gloo', f'file://{root}/store', rank=rank, world_size=2)
    dataset = create_dataset('', str(root), 'train', max_damaged=0.1)
    dataset[found]
    assert dataset.damage.count() == 1
    with pytest.raises(DamagedError) as caught:
        DamageLog(dataset.damage, torch.device('cpu')).after_epoch()
    (root / f'rank{rank}').write_text(f'{dataset.damage.indices()} {caught.value}')
    dist.destroy_process_group()


def test_two_ranks_share_their_damage_and_end_together(data):
    """Each of two ranks finds one damaged image, which alone does not exceed the limit."""
    for name in ('ant/000.jpg', 'cat/010.jpg'):
        (data / 'train' / name).write_bytes(b'')
    fork = multiprocessing.get_context('fork')  # torch is imported already
    ranks = [fork.Process(target=run_rank, args=(rank, data, found)) for rank, found in enumerate((0, 10))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    for rank in range(2):
        assert (data / f'rank{rank}').read_text().startswith('[0, 10] 2 of 12 samples')


def test_damage_found_after_the_ranks_agreed_does_not_end_one_of_them(data, monkeypatch):
    damage = create_dataset('', str(data), 'train', max_damaged=0.1).damage
    damage_log = DamageLog(damage, torch.device('cpu'))
    damage.record(0, 'x')
    monkeypatch.setattr(damage, 'take_new', lambda: damage.flags.fill_(1).tolist())  # as a worker may do
    damage_log.after_epoch()
    assert damage.too_many
    with pytest.raises(DamagedError, match='12 of 12 samples'):
        damage_log.after_epoch()


def test_a_resumed_naflex_run_remembers_all_damaged_images(data):
    """Also those with a higher index than the run has batches. The image is repaired, so it is not found again."""
    path = data / 'train' / 'cat' / '011.jpg'
    content = path.read_bytes()
    path.write_bytes(b'')
    argv = flags(data, '-b', '8', '--max-damaged', '1', '--resume', 'auto', *NAFLEX, '--naflex-train-seq-lens', '4')
    for more in (['--stop-epoch', '1'], []):
        train_cli.main([*argv, *more])
        assert load(data.parent / 'run' / 'last.pth.tar')['agmax_state']['damaged'] == [11]
        path.write_bytes(content)


def test_data_sets_without_damage_records_are_accepted(memory_dataset):
    damage_log = DamageLog(damage_of(memory_dataset([])), torch.device('cpu'))
    damage_log.after_epoch()
    damage_log.at_end()


def test_an_error_of_a_worker_is_reduced_to_its_last_line():
    plain = DamagedError('a.jpg cannot be decoded')
    again = DamagedError(f'Caught it.\nTraceback\n{DamagedError.__module__}.DamagedError: a\nb.jpg cannot\n')
    assert str(plain) == 'a.jpg cannot be decoded' and str(again) == 'a\nb.jpg cannot'
