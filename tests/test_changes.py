"""What may differ from a checkpoint when a run goes on: data and options, told, refused or passed over in silence."""
import shutil

import pytest
from test_exact_resume import FLAGS, StopAfter
from test_resume import epochs

from agmax_timm.run import training
from agmax_timm.run.config import parse_train_args
from agmax_timm.run.interruption import Interrupted


@pytest.fixture
def folder(photos, tmp_path):
    """A copy of the photos, to be changed."""
    return shutil.copytree(photos, tmp_path / 'photos')


@pytest.fixture
def argv(folder, tmp_path):
    return [str(folder), *FLAGS, '-j', '0', '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto']


def test_a_renamed_class_is_one_line(folder, argv, capsys):
    """The outputs of the model would mean something else, in silence where the order stays."""
    training.train(parse_train_args([*argv, '--stop-epoch', '1']))
    for split in ('train', 'val'):
        (folder / split / 'cat').rename(folder / split / 'dog')
    with pytest.raises(SystemExit) as exit_info:
        training.main(argv)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'the classes of the train data changed since (without cat)' in line
    assert 'restore them, or start from the weights with --initial-checkpoint' in line


def test_another_number_of_samples_is_told_between_epochs(folder, argv, tmp_path, caplog):
    training.train(parse_train_args([*argv, '--stop-epoch', '1']))
    (folder / 'train' / 'ant' / '000.jpg').unlink()
    training.train(parse_train_args(argv))
    assert 'Not as in the checkpoint: 11 samples in the train data in place of 12' in caplog.text
    assert epochs(tmp_path / 'run') == [0, 1, 2]


def test_another_number_of_samples_within_an_epoch_is_one_line(folder, argv, capsys):
    with pytest.raises(Interrupted):
        training.train(parse_train_args(argv), StopAfter(2))
    (folder / 'train' / 'ant' / '000.jpg').unlink()
    with pytest.raises(SystemExit) as exit_info:
        training.main(argv)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'is within an epoch, and there are 11 samples in the train data in place of 12: restore the data' in line
