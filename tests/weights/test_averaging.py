"""The mean of the best checkpoints of a run."""
import shutil
from argparse import Namespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from agmax_timm import export
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.weights import averaging
from agmax_timm.weights.saved_model import read_model
from tests.helpers.run_files import load, status_of


def numpy_mean(states):
    """The mean of each tensor in float64, converted back. Integers are those of the first state."""
    return {name: np.mean([state[name].double().numpy() for state in states], axis=0).astype(value.numpy().dtype)
            if value.is_floating_point() else value.numpy() for name, value in states[0].items()}


@pytest.mark.parametrize('count, flags, key', [
    (1, ('--raw',), 'state_dict'), (2, (), 'state_dict_ema'), (3, ('--use-ema',), 'state_dict_ema'),
    (3, ('--raw',), 'state_dict')])
def test_average_writes_the_mean_of_the_best_checkpoints(ema_run, tmp_path, flags, key, count):
    top1 = [load(ema_run / f'checkpoint-{epoch}.pth.tar')['metric'] for epoch in range(4)]
    epochs = sorted(range(4), key=lambda epoch: (-top1[epoch], epoch))[:count]
    export.main([str(ema_run), str(tmp_path / 'mean'), '--average', str(count), *flags])
    found = safetensors.torch.load_file(tmp_path / 'mean' / 'model.safetensors')
    states = [load(ema_run / f'checkpoint-{epoch}.pth.tar')[key] for epoch in epochs]
    expected = numpy_mean(states)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), value, err_msg=name)
    batches = next(name for name in found if name.endswith('num_batches_tracked'))
    assert found[batches] == states[0][batches] and found[batches].dtype == torch.int64


def test_an_average_has_no_metrics_and_names_its_files(ema_run):
    saved = averaging.average_models(str(ema_run), 2, use_ema=None)
    assert saved.metrics == {} and saved.class_names == ['ant', 'bee', 'cat']
    assert saved.source == ' + '.join(averaging.best_checkpoints(str(ema_run), 2))
    assert saved.weights.startswith('the mean of 2 checkpoints: the EMA of')


def write_run(folder, metrics, kind=Namespace, **args):
    """A run's folder as timm leaves it, or with options of another kind. All tensors of an epoch are its number."""
    folder.mkdir()
    model = timm.create_model('test_resnet', num_classes=3)
    for epoch, metric in enumerate(metrics):
        state = {name: torch.full_like(value, epoch) for name, value in model.state_dict().items()}
        torch.save({'epoch': epoch, 'metric': metric, 'state_dict': state, 'arch': 'test_resnet',
                    'args': kind(model='test_resnet', num_classes=3, **args)},
                   folder / f'checkpoint-{epoch}.pth.tar')


@pytest.mark.parametrize('kind', [Namespace, dict])
def test_checkpoints_with_the_lowest_loss_are_the_best(tmp_path, kind):
    write_run(tmp_path / 'loss', [0.9, 0.1, 0.2, 0.7], kind, eval_metric='loss')
    write_run(tmp_path / 'top1', [9., 1., 2., 7.], kind, eval_metric='top1')
    for name, mean in (('loss', 1.5), ('top1', 1.5)):
        tensors = averaging.average_models(str(tmp_path / name), 2).state_dict
        assert (tensors['fc.weight'] == mean).all()
    assert averaging.average_models(str(tmp_path / 'loss'), 1).state_dict['fc.weight'][0, 0] == 1
    assert averaging.average_models(str(tmp_path / 'top1'), 1).state_dict['fc.weight'][0, 0] == 0


def test_of_equal_checkpoints_the_earlier_is_better(tmp_path):
    write_run(tmp_path / 'run', [1., 3., 3., 2.], eval_metric='top1')
    assert [path[-9] for path in averaging.best_checkpoints(str(tmp_path / 'run'), 4)] == ['1', '2', '3', '0']


def test_an_epoch_whose_metric_is_nan_is_not_averaged(tmp_path):
    write_run(tmp_path / 'run', [0.3, 0.5, float('nan'), 0.9], eval_metric='loss')
    assert [path[-9] for path in averaging.best_checkpoints(str(tmp_path / 'run'), 3)] == ['0', '1', '3']
    with pytest.raises(OptionError, match='3 checkpoints'):
        averaging.best_checkpoints(str(tmp_path / 'run'), 4)


def test_checkpoints_of_an_abandoned_branch_are_not_averaged(train_once, photos, tmp_path):
    """The run goes back to its first epoch, and the new second epoch is its last. Two files of the old branch stay."""
    run = shutil.copytree(train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '4'), tmp_path / 'run')
    train_cli.main([str(photos), '--model', 'test_resnet', '--img-size', '32', '--num-classes', '3', '-b', '4',
                    '-j', '0', '--warmup-epochs', '0', '--lr', '0.01', '--output', str(tmp_path), '--experiment', 'run',
                    '--resume', str(run / 'checkpoint-0.pth.tar'), '--epochs', '2'])
    assert sorted(path.name[11] for path in run.glob('checkpoint-*')) == ['0', '1', '2', '3']
    assert sorted(path[-9] for path in averaging.best_checkpoints(str(run), 2)) == ['0', '1']
    with pytest.raises(OptionError, match='2 checkpoints'):
        averaging.best_checkpoints(str(run), 3)


def test_a_run_without_validation_is_ranked_by_its_loss(train_once):
    folder = train_once('--model', 'test_resnet', '--img-size', '32', '--epochs', '3', '--val-split', '')
    losses = {epoch: load(folder / f'checkpoint-{epoch}.pth.tar')['metric'] for epoch in range(3)}
    best = sorted(losses, key=losses.get)
    assert [path.rsplit('-', 1)[1] for path in averaging.best_checkpoints(str(folder), 3)] == [
        f'{epoch}.pth.tar' for epoch in best]
    assert read_model(str(folder)).metrics == {'epoch': best[0]}


def test_checkpoints_of_two_models_cannot_be_averaged(tmp_path, capsys):
    write_run(tmp_path / 'run', [1., 2.], eval_metric='top1')
    other = load(tmp_path / 'run' / 'checkpoint-0.pth.tar')
    other['state_dict'] = timm.create_model('test_resnet', num_classes=4).state_dict()
    vars(other['args'])['num_classes'] = 4
    torch.save(other, tmp_path / 'run' / 'checkpoint-0.pth.tar')
    assert status_of(export.main, [str(tmp_path / 'run'), str(tmp_path / 'out'), '--average', '2']) == 2
    error, = capsys.readouterr().err.splitlines()
    assert 'checkpoint-0.pth.tar' in error
