"""Drawing all classes equally often: expected frequencies, shares of ranks, and the samples of real loaders."""
import numpy as np
import pytest
import torch

from agmax_timm.assembly.loaders import build_train_loader
from agmax_timm.assembly.model import Precision
from agmax_timm.base.errors import DataError
from agmax_timm.data.loading.balance import BalancedSampler, labels_of
from agmax_timm.data.resumption.loader import make_resumable
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.options.parse import parse_train_args
from agmax_timm.training.epochs import set_epoch
from tests.helpers.shards import write_parquet

LABELS = np.repeat([0, 4, 1, 2], [900, 5, 90, 5])  # no image has class 3
DATA_CONFIG = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear')


def test_classes_and_the_images_of_a_class_are_equally_frequent():
    sampler, draws = BalancedSampler(LABELS), []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        draws += sampler
    assert len(draws) == 20 * len(LABELS)
    counts = np.bincount(LABELS[draws], minlength=5)
    deviation = (len(draws) * 1 / 4 * 3 / 4) ** 0.5
    assert counts[3] == 0 and np.all(np.abs(counts[[0, 1, 2, 4]] - len(draws) / 4) < 4 * deviation)
    images = np.bincount(draws, minlength=len(LABELS))
    expected = len(draws) / 4 / np.bincount(LABELS)[LABELS]
    assert np.all(np.abs(images - expected) < 5 * expected ** 0.5)


def drawn_in(epoch, number, labels=LABELS, seed=1):
    """Draws of a pass of an epoch. The first pass is as in earlier versions, which had one."""
    generator = np.random.default_rng((seed, epoch, number) if number else (seed, epoch))
    names = sorted({*labels})
    classes = generator.integers(len(names), size=len(labels))
    members = [np.flatnonzero(labels == names[index]) for index in classes]
    places = generator.integers([len(images) for images in members])
    return [int(images[place]) for images, place in zip(members, places)]


def test_the_order_depends_only_on_seed_epoch_and_pass():
    sampler = BalancedSampler(LABELS, 1)
    torch.rand(3), np.random.rand(3)
    for epoch in (0, 1, 0, 1):
        sampler.set_epoch(epoch)
        orders = [list(sampler) for _ in range(3)]
        assert orders == [drawn_in(epoch, number) for number in range(3)]
        assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(BalancedSampler(LABELS, 2)) == drawn_in(0, 0, seed=2) != drawn_in(0, 0)


@pytest.mark.parametrize('ranks', [2, 4, 3])
def test_ranks_share_the_order_of_one_process(ranks):
    samplers = [BalancedSampler(LABELS, 3, ranks, rank) for rank in range(ranks)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(sampler) for sampler in samplers} == {-(-1000 // ranks)}
    if 1000 % ranks == 0:
        assert [index for indices in zip(*parts) for index in indices] == list(BalancedSampler(LABELS, 3))


def test_labels_of_the_index_equal_those_of_the_samples(photos, tmp_path):
    folder = create_dataset('', str(photos), 'train')
    parquet = create_dataset(f"hfds/{write_parquet(tmp_path / 'data')}", str(tmp_path / 'cache'), 'train')
    demo = create_dataset('demo', '', 'train')
    for dataset in (folder, parquet, demo):
        labels = labels_of(dataset)
        shown = range(0, len(dataset), max(1, len(dataset) // 20))
        assert len(labels) == len(dataset) and all(labels[index] == dataset[index][1] for index in shown)


def test_data_without_an_index_of_classes_is_refused(memory_dataset):
    with pytest.raises(DataError, match='--class-stats auto and --balanced-sampling'):
        labels_of(torch.utils.data.TensorDataset(torch.zeros(3)))


@pytest.mark.parametrize('flags', [
    '-j 0', '-j 2 --agmax', '-j 2 --use-multi-epochs-loader', '-j 0 --agmax --no-prefetcher --mixup 0.2',
    '-j 0 --train-img-sizes 24 32', '-j 0 --train-img-sizes 24 32 --train-batches-per-epoch 8'])
def test_loaders_use_the_order_of_the_sampler(photos, flags):
    options = parse_train_args([str(photos), '--balanced-sampling', '--num-classes', '3', '-b', '4', '--seed', '7',
                                *flags.split()])
    dataset = create_dataset('', str(photos), 'train', is_training=True)
    loader = build_train_loader(options, dataset, DATA_CONFIG, torch.device('cpu'), Precision())
    loader, resumable = make_resumable(loader, torch.device('cpu'))
    expected = BalancedSampler(labels_of(dataset), 7)
    for epoch in (0, 1, 5) if 'multi' not in flags else (0, 1, 2):
        set_epoch(loader, epoch)
        expected.set_epoch(epoch)
        assert len(list(loader)) == len(loader)
        drawn = [index for number in range(len(loader)) for index in resumable.indices(number)]
        drawn = [index[0] if isinstance(index, tuple) else index for index in drawn]  # with its scheduled size
        passes = [list(expected) for _ in range(-(-len(drawn) // len(dataset)))]
        assert drawn == sum(passes, [])[:len(drawn)] and len(drawn) == (32 if 'per-epoch' in flags else 12)


@pytest.mark.parametrize('flags, words', [
    ('--balanced-sampling --aug-repeats 3', ['--aug-repeats', '--balanced-sampling']),
    ('--balanced-sampling --naflex-loader', ['--balanced-sampling', '--naflex-loader']),
    ('--balanced-sampling --dataset wds/x --train-num-samples 9', ['--balanced-sampling', "--dataset 'wds/x", 'hfds/']),
    ('--balanced-sampling --dataset hfds/x --task multilabel --num-classes 3', ['--balanced-sampling', 'multilabel']),
    ('--class-stats auto --loss-class-weight inv_freq --dataset wds/x', ['--class-stats auto', 'hfds/']),
    ('--class-stats auto --loss-pos-weight neg_pos --dataset hfds/x --task multilabel --num-classes 3',
     ['--class-stats auto', 'multilabel']),
])
def test_data_and_options_that_do_not_fit_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse_train_args(['x', *flags.split()])
    error = capsys.readouterr().err
    assert end.value.code == 2 and all(word in error for word in words), error
