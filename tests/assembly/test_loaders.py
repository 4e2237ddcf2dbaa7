"""Arguments of the training loader, from the options that have other names than they."""
import pytest
import torch

from agmax_timm.assembly import loaders
from agmax_timm.assembly.model import Precision
from agmax_timm.options.parse import parse_train_args

CONFIG = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, interpolation='bicubic')


@pytest.fixture
def arguments(monkeypatch):
    """Function: the arguments that the loader gets for these flags."""
    def build(*flags):
        made = []
        for name in ('create_train_loader', 'create_naflex_train_loader'):
            monkeypatch.setattr(loaders, name, lambda *args, **kwargs: made.append(kwargs))
        options = parse_train_args(['DIR', '--num-classes', '7', *' '.join(flags).split()])
        loaders.build_train_loader(options, [0], CONFIG, torch.device('cpu'), Precision(), (16, 16))
        return made[0]
    return build


def has(found, **expected):
    assert {name: found.get(name, 'missing') for name in expected} == expected


def test_augmentation(arguments):
    has(arguments('--agmax --reprob 0.1 --remode const --recount 3 --aa rand-m9 -j 2 --train-interpolation bilinear'),
        two_views=True, re_prob=0.1, re_mode='const', re_count=3, re_split=False, auto_augment='rand-m9',
        num_workers=2, interpolation='bilinear', num_aug_splits=0, num_aug_repeats=0)
    has(arguments('--aug-splits 3 --reprob 0.1 --resplit'), two_views=False, num_aug_splits=3, re_split=True)
    has(arguments('--no-aug --train-interpolation bilinear'), no_aug=True, interpolation='bicubic')


def test_several_sizes(arguments):
    has(arguments('--train-img-sizes 24 32 --train-batch-sizes 8 4 --train-size-probs 0.3 0.7 --seed 5',
                  '--train-batches-per-epoch 6'),
        input_size_choices=[24, 32], batch_size_choices=[8, 4], batch_choice_weights=[0.3, 0.7], batch_choice_seed=5,
        batch_choice_schedule='constant', batch_schedule_epochs=None, num_batches=6)
    has(arguments('--train-img-sizes 24 32 --train-size-schedule progressive --train-size-schedule-spread 0.4',
                  '--train-size-random-mix 0.2 --epochs 9'),
        batch_choice_schedule='progressive', batch_schedule_epochs=9, batch_schedule_spread=0.4,
        batch_schedule_random_mix=0.2)


@pytest.mark.parametrize('sizes, refused', [
    ('-b 7 --train-img-sizes 24 32 --train-batch-sizes 8 4', ''),
    ('-b 8 --train-img-sizes 24 32 --train-batch-sizes 8 3', '--train-batch-sizes 3'),
    ('-b 7 --train-img-sizes 24 32', '--batch-size 7'),
    ('-b 7 --train-batch-sizes 8 4', '--batch-size 7')])
def test_mixing_needs_even_batches_of_the_sizes_in_use(arguments, capsys, sizes, refused):
    if not refused:
        has(arguments('--mixup 0.2', sizes), batch_size=7, batch_size_choices=[8, 4])
        return
    with pytest.raises(SystemExit):
        arguments('--mixup 0.2', sizes)
    assert f'--mixup needs an even batch, got {refused}: use ' in capsys.readouterr().err


MIXUP = '--mixup 0.2 --cutmix 0.4 --mixup-prob 0.6 --mixup-switch-prob 0.7 --smoothing 0.3 --mixup-off-epoch 4'


def test_mixing(arguments):
    mixup = dict(mixup_alpha=0.2, cutmix_alpha=0.4, prob=0.6, switch_prob=0.7, label_smoothing=0.3, num_classes=7)
    found = arguments(MIXUP, '--mixup-mode elem --cutmix-minmax 0.2 0.8')
    assert found['mixup'] == dict(mixup, mode='elem', cutmix_minmax=[0.2, 0.8])
    assert arguments(MIXUP, '--naflex-loader')['mixup'] == dict(mixup, mixup_off_epoch=4)
    assert arguments()['mixup'] is None


def test_patches(arguments, monkeypatch):
    monkeypatch.setattr(loaders, 'rank', lambda: 1)
    monkeypatch.setattr(loaders, 'world_size', lambda: 3)
    has(arguments('--naflex-loader --naflex-train-seq-lens 9 16'),
        train_seq_lens=[9, 16], patch_size=(16, 16), patchify_channels_last=True, rank=1, world_size=3)
    has(arguments('--naflex-loader --naflex-patch-sizes 8 16 --naflex-patch-size-probs 0.3 0.7',
                  '--naflex-patchify-channels-first'),
        patch_size_choices=[8, 16], patch_size_choice_probs=[0.3, 0.7], patchify_channels_last=False)
