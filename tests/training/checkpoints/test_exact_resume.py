"""Runs that were interrupted at any point, any number of times, equal the uninterrupted run to the last bit."""
import random
from argparse import Namespace

import datasets
import pytest
import torch

from agmax_timm.base.signals import Interrupted
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.checkpoints.state import _generator_states, _load_generator_states
from tests.helpers.exact import FLAGS, StopAfter, assert_equal, outcome
from tests.helpers.run_files import load
from tests.helpers.scaling import scale_float16
from tests.helpers.shards import write_parquet, write_shards


@pytest.fixture
def run(photos, tmp_path):
    """Function: the folder of a run that is interrupted after each number of checks, and then completed."""
    def start(name, flags, stops=()):
        argv = [str(photos), *FLAGS, *flags, '--output', str(tmp_path), '--experiment', name, '--resume', 'auto']
        for looks in stops:
            with pytest.raises(Interrupted):
                training.train(parse_train_args(argv), StopAfter(looks))
        training.train(parse_train_args(argv))
        return tmp_path / name
    return start


# An epoch has 6 batches of training and 6 of validation. Three epochs delete a checkpoint; for most options, two do.
# Each number is that of the checks that pass before an interruption: (1, 2) interrupts at the second check and three
# checks later. A fault at one of them stays in the result, so one run is interrupted at all of them.
@pytest.mark.parametrize('flags, stops', [
    ('-j 0 --balanced-sampling', (1, 1, 2, 1, 5, 15)),
    ('-j 0 --agmax --mixup 0.2 --reprob 0.5 --model-ema --model-ema-decay 0.9', (2, 7, 3)),
    ('-j 2 --agmax --cutmix 1 --reprob 0.5 --model-ema --model-ema-decay 0.9', (3, 16, 3)),
    ('-j 2 --epochs 2 --agmax --use-multi-epochs-loader --balanced-sampling --aa rand-m9-mstd0.5', (14, 4)),
    ('-j 4 --epochs 2 --agmax --use-multi-epochs-loader', (5, 9)),  # at the last batch of an epoch, then in the next
    ('-j 0 --epochs 2 --agmax --agmax-marginal-images 2 --no-prefetcher --mixup 0.2 --grad-accum-steps 4',
     (1, 7)),
    ('-j 0 --agmax --amp --amp-dtype bfloat16 --opt adamw --sched plateau --patience-epochs 0', (1, 1, 9)),
    ('-j 2 --epochs 2 --agmax --img-size 48 --augment-backend fast --train-crop-mode pad --mixup 0.2', (3,)),
    ('-j 0 --epochs 2 --opt lookahead_adam --sched-on-updates --clip-grad 1', (4,)),
    ('-j 0 --epochs 2 --agmax --freeze conv1 bn1 layer1 --clip-grad 1 --clip-mode agc --nan-policy skip', (3,)),
    ('-j 0 --epochs 2 --train-img-sizes 24 32 --agmax', (2, 3)),
    ('-j 0 -b 8 --agmax --model naflexvit_base_patch16_gap --model-kwargs embed_dim=16 depth=1 num_heads=2 '
     '--epochs 2 --naflex-loader --naflex-train-seq-lens 4 9 --naflex-max-seq-len 9', (1,)),
    ('-j 2 -b 4 --model naflexvit_base_patch16_gap --model-kwargs embed_dim=16 depth=1 num_heads=2 '
     '--epochs 2 --naflex-loader --naflex-train-seq-lens 4 9 --naflex-max-seq-len 9', (2, 3)),
    ('-j 0 --epochs 2 --agmax --model-ema --model-dtype bfloat16', (2,)),
    ('-j 0 --epochs 2 --opt lookahead_adahessian --lr 0.01', (2,)),
    ('-j 0 --epochs 2 --agmax-teacher memory --agmax-teacher-ramp 0.9 --model-ema --train-img-sizes 24 32', (2,)),
    ('-j 2 --epochs 2 --agmax-teacher memory --agmax-teacher-topk 2 --cutmix 1 --mixup-mode elem --balanced-sampling '
     '--use-multi-epochs-loader --grad-accum-steps 2', (2, 3)),
    ('-j 2 --epochs 2 --agmax --val-split 0.25 --exif-orientation', (2, 4, 3)),
])
def test_interrupted_runs_equal_uninterrupted_ones(run, flags, stops):
    expected = outcome(run('whole', flags.split()))
    assert_equal(outcome(run('interrupted', flags.split(), stops)), expected)


def test_interrupted_runs_in_float16_continue_with_their_scale(run, monkeypatch):
    """The first updates are skipped, and the scale grows again. Both count updates over an interruption."""
    scale_float16(monkeypatch, init_scale=2. ** 126, growth_interval=3)
    flags = '-j 0 --agmax --amp --model-ema --model-ema-decay 0.9 --sched-on-updates'.split()
    expected = outcome(run('whole', flags))
    assert expected['amp_scaler']['scale'] < 2. ** 126 and expected['amp_scaler']['_growth_tracker']
    assert_equal(outcome(run('interrupted', flags, (2, 7, 3))), expected)


@pytest.mark.parametrize('kind', ['wds', 'hfids'])
@pytest.mark.parametrize('flags, stops', [
    ('-j 0 --mixup 0.2', (1, 6, 4)),
    ('-j 2 --reprob 0.5', (3, 4, 4)),
])
def test_interrupted_runs_on_shards_equal_uninterrupted_ones(run, tmp_path, monkeypatch, kind, flags, stops):
    """18 samples of training and 13 of validation are read again up to the interruption."""
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(datasets.config, 'SLEEP_TIME_ON_THREADS_SHUTDOWN', 0)
    if kind == 'wds':
        write_shards(tmp_path)
        data = ['--dataset', 'wds/x', '--data-dir', str(tmp_path), '--val-split', 'val']
    else:
        data = ['--dataset', f"hfids/{write_parquet(tmp_path / 'parquet')}", '--data-dir', str(tmp_path / 'cache'),
                '--train-num-samples', '18', '--val-num-samples', '13']
    flags = [*data, '--epochs', '2', '--agmax', *flags.split()]
    expected = outcome(run('whole', flags))
    assert_equal(outcome(run('interrupted', flags, stops)), expected)


class Generator:
    """A torch generator of any device, whose state has the size of that device."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.state = torch.zeros(16 if self.device.type == 'cuda' else 5056, dtype=torch.uint8)

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@pytest.mark.parametrize('noted', [True, False], ids=['type noted', 'former'])
@pytest.mark.parametrize('saved_on, has, draws_on, expected', [
    ('cuda', 'cuda', 'cuda', 'cuda'),
    ('cuda', 'cpu', 'cuda', 'cuda'),  # Adahessian before its first step
    ('cpu', 'cpu', 'cpu', 'cpu'),
    ('cuda', 'cpu', 'cpu', None),
    ('cpu', 'cuda', 'cuda', None),
])
def test_a_generator_is_restored_only_from_its_kind_of_device(monkeypatch, noted, saved_on, has, draws_on, expected):
    monkeypatch.setattr(torch, 'Generator', Generator)
    saved = _generator_states(Namespace(generator=Generator(saved_on), other=random.Random(3)))
    assert saved['generator']['device_type'] == saved_on
    saved['generator']['state'] += 7
    if not noted:
        saved['generator'] = saved['generator']['state']
    owner = Namespace(generator=Generator(has), other=random.Random(4))
    assert _load_generator_states(owner, saved, torch.device(draws_on)) is (expected is not None)
    assert owner.other.random() == random.Random(3).random()
    assert owner.generator.device.type == expected or expected is None and owner.generator.device.type == has
    assert set(owner.generator.state.tolist()) == ({7} if expected else {0})


def of_a_gpu(folder, noted):
    """Replace the random states in the checkpoints of a run by those of a GPU."""
    state_of_gpu = torch.zeros(16, dtype=torch.uint8)
    for path in folder.glob('*.pth.tar'):
        checkpoint = load(path)
        state = checkpoint['agmax_state']
        kind = {'device_type': 'cuda'} if noted else {}
        for rank in state['ranks']:
            for saved in (rank.get('random'), rank['loader']['random'], rank['loader']['before']):
                if saved is not None:
                    saved.update(device=state_of_gpu, **kind)
        ema = {name: {'state': state_of_gpu, **kind} if noted else state_of_gpu for name in state['generators']['ema']}
        assert ema
        state['generators']['ema'] = ema
        torch.save(checkpoint, path)


def test_a_run_on_a_gpu_can_be_resumed_without_one(run, photos, tmp_path, caplog):
    """Nothing draws from the GPU here, so the result is the same. One line per resumption states what is left out."""
    flags = ['--epochs', '1', '-j', '0', '--agmax', '--model-ema', '--model-ema-decay', '0.9']
    argv = [str(photos), *FLAGS, *flags, '--output', str(tmp_path), '--experiment', 'ours', '--resume', 'auto']
    for looks, noted in ((2, True), (5, False)):  # within the epoch, and within its evaluation
        with pytest.raises(Interrupted):
            training.train(parse_train_args(argv), StopAfter(looks))
        of_a_gpu(tmp_path / 'ours', noted)
    ours = outcome(run('ours', flags))
    warnings = [message for message in caplog.messages if 'another kind of device' in message]
    assert len(warnings) == 2
    assert all('for training and the EMA' in warning and 'left out' in warning for warning in warnings)
    assert_equal(ours, outcome(run('expected', flags)))
    assert len([message for message in caplog.messages if 'another kind of device' in message]) == 2
