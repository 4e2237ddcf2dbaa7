"""Loaders: two views of every kind of data, and timm's own batches without options of this package."""
import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import FastCollateMixup, IterableImageDataset, Mixup, auto_augment, create_loader
from timm.utils import random_seed
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor, to_tensor

from agmax_timm import create_two_view_loader
from agmax_timm.data.backend import views_of
from agmax_timm.data.loader import create_train_loader
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.decoding import with_policy

pytestmark = pytest.mark.usefixtures('fixed_seed')
PER_CLASS = 4  # as in the photos
LEVELS = {'mean': (0., 0., 0.), 'std': (1., 1., 1.), 'device': 'cpu'}  # images come as levels in [0, 1]
GREY = {'mean': (0.,), 'std': (1.,), 'device': 'cpu'}
# Crops and flips, but no changes of colour: the blue level of a photo is its number.
COLOURLESS = {**LEVELS, 'color_jitter': None}


def make_tar(photos, folder):
    path = folder / 'photos.tar'
    with tarfile.open(path, 'w') as tar:
        tar.add(photos / 'train', arcname='.')
    return create_dataset('', str(path), 'train')


def make_wds(photos, folder):
    """Two shards of six samples in webdataset's layout. The class index is in a .cls file."""
    files = sorted((photos / 'train').glob('*/*.jpg'))
    shards = [files[::2], files[1::2]]
    for n, shard in enumerate(shards):
        with tarfile.open(folder / f'train-{n}.tar', 'w') as tar:
            for path in shard:
                for name, data in ((path.name, path.read_bytes()), (f'{path.stem}.cls', b'%d' % (int(path.stem) // 4))):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    split = {'name': 'train', 'filenames': ['train-0.tar', 'train-1.tar'], 'shard_lengths': [6, 6], 'num_samples': 12}
    (folder / '_info.json').write_text(json.dumps({'splits': {'train': split}}))
    return create_dataset('wds/photos', str(folder), 'train', is_training=True, batch_size=4)


def make_fashion_mnist(folder, images, labels):
    """The four files of torchvision's FashionMNIST."""
    raw = folder / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True)
    for part in ('train', 't10k'):
        header = struct.pack('>4i', 0x0803, *images.shape)
        (raw / f'{part}-images-idx3-ubyte').write_bytes(header + images.tobytes())
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x0801, len(labels)) + labels.tobytes())
    return create_dataset('torch/fashion_mnist', str(folder), 'train')


KINDS = {
    'folder': lambda photos, folder: create_dataset('', str(photos), 'train'),
    'tar': make_tar,
    'torch': lambda photos, folder: create_dataset('torch/image_folder', str(photos), 'train'),
    'wds': make_wds,
}


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_data_gives_two_views(photos, photo_numbers, tmp_path, kind, num_workers, use_prefetcher):
    dataset = KINDS[kind](photos, tmp_path)
    assert isinstance(dataset, IterableDataset) == (kind == 'wds')
    loader = create_two_view_loader(
        dataset, 16, 4, num_workers=num_workers, use_prefetcher=use_prefetcher, **COLOURLESS)
    for _ in range(2):
        numbers = []
        for x, target in loader:
            assert x.shape == (8, 3, 16, 16) and x.dtype == torch.float32
            assert target.shape == (8,) and target.dtype == torch.int64
            first, second = photo_numbers(x).chunk(2)
            assert torch.equal(first, second)
            assert torch.equal(target, torch.cat([first, second]) // PER_CLASS)
            assert not torch.equal(*x.chunk(2))
            numbers += first.tolist()
        # A shard a worker: timm rounds each worker's half up to whole batches, and repeats.
        assert len(loader) == len(numbers) // 4
        assert sorted(numbers) == list(range(12)) or (kind == 'wds' and set(numbers) == set(range(12)))


class Bare(Dataset):
    """Samples of another data set in the form that `change` gives them, without a transform."""

    def __init__(self, dataset, change=lambda image, target: (image, target)):
        self.samples = dataset
        self.change = change

    def __getitem__(self, index):
        return self.change(*self.samples[index])

    def __len__(self):
        return len(self.samples)


class Fixed(Bare):
    """Samples with an attribute `transform` that is not used."""
    transform = None


# What torch makes of a data set, and which photos are in it.
PARTS = {
    'Subset': (lambda dataset: Subset(dataset, [1, 3, 5, 7, 9, 11, 0, 2]), [0, 1, 2, 3, 5, 7, 9, 11]),
    'ConcatDataset': (lambda dataset: ConcatDataset([dataset, Subset(dataset, range(4))]), [*range(4), *range(12)]),
    'nested': (lambda dataset: Subset(ConcatDataset([dataset, dataset]), range(8, 16)), [*range(4), *range(8, 12)]),
    'without a transform': (Bare, [*range(12)]),
}


@pytest.mark.parametrize('backend', ['timm', 'fast'])
@pytest.mark.parametrize('kind', PARTS)
def test_data_sets_without_a_transform_give_two_views(photos, photo_numbers, kind, backend):
    if backend == 'fast':
        pytest.importorskip('cv2')
    base = create_dataset('', str(photos), 'train')
    make, expected = PARTS[kind]
    loader = create_two_view_loader(make(base), 16, 4, num_workers=0, augment_backend=backend, **COLOURLESS)
    numbers = []
    for x, target in loader:
        assert x.shape == (8, 3, 16, 16)
        first, second = photo_numbers(x).chunk(2)
        assert torch.equal(first, second) and not torch.equal(*x.chunk(2))
        assert torch.equal(target, torch.cat([first, second]) // PER_CLASS)
        numbers += first.tolist()
    assert sorted(numbers) == sorted(expected)


def test_the_other_part_of_a_random_split_stays_unchanged(photos):
    base = create_dataset('', str(photos), 'train')
    train, validation = random_split(base, [8, 4])
    before = [np.asarray(image) for image, _ in validation]
    loader = create_two_view_loader(train, 16, 4, num_workers=0, **LEVELS)
    assert len(list(loader)) == 2 and base.transform is None
    assert all(np.array_equal(image, now) for image, (now, _) in zip(before, validation))


def test_a_subset_gives_views_of_scheduled_sizes(photos, photo_numbers):
    loader = create_two_view_loader(
        Subset(create_dataset('', str(photos), 'train'), range(8)), 16, 4, num_workers=0, input_size_choices=[16, 24],
        **COLOURLESS)
    for x, target in loader:
        assert x.shape[:2] == (8, 3) and x.shape[2] in (16, 24)
        assert torch.equal(photo_numbers(x) // PER_CLASS, target)


def folder(photos, transform=None):
    return ImageFolder(str(photos / 'train'), transform=transform)


class Streamed(IterableDataset):
    def __iter__(self):
        yield from ((torch.rand(3, 16, 16), 0) for _ in range(8))


UNPAIRED = {
    'a transform below': (lambda photos: Subset(folder(photos, to_tensor), range(8)), r'Subset gives \(Tensor, int\)'),
    'tensors': (lambda photos: TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8)),
                r'TensorDataset gives \(Tensor, Tensor\)'),
    'dictionaries': (lambda photos: Bare(folder(photos), lambda image, target: {'img': image, 'label': target}),
                     "Bare .* no 'image', only 'img', 'label': give image_key"),
    'an image alone': (lambda photos: Bare(folder(photos), lambda image, target: image),
                       r'\(PIL image, class index\), Bare gives Image'),
    'images': (lambda photos: Fixed(folder(photos)),
               'got Image: .* apply .* transform'),
    'three channels': (lambda photos: Fixed(folder(photos, to_tensor)), r'got a tensor \[3, .*attribute transform'),
    'two channels': (lambda photos: Fixed(folder(photos), lambda image, target: (pil_to_tensor(image)[:2], target)),
                     r'got a tensor \[2, '),
    'one view': (lambda photos: Fixed(folder(photos), lambda image, target: ((pil_to_tensor(image),), target)),
                 r'got 1 \(Tensor\)'),
    'three views': (lambda photos: Fixed(folder(photos), lambda image, target: ((pil_to_tensor(image),) * 3, target)),
                    r'got 3 \(Tensor, Tensor, Tensor\)'),
    'a stream': (lambda photos: Streamed(), r'got a tensor \[3, 16, 16\]'),
    'streams': (lambda photos: ChainDataset([Streamed()]), r'got a tensor \[3, 16, 16\]'),
    'several labels': (lambda photos: Bare(folder(photos), lambda image, target: (image, torch.tensor([1., 0., 1.]))),
                       r'each image needs one class index, got targets torch.float32 \[4, 3\]'),
    'shares': (lambda photos: Bare(folder(photos), lambda image, target: (image, 0.5)), 'got targets torch.float64'),
    'names': (lambda photos: Bare(folder(photos), lambda image, target: (image, 'ant')), 'got targets str'),
}


@pytest.mark.parametrize('backend', ['timm', 'fast'])
@pytest.mark.parametrize('kind', UNPAIRED)
def test_data_without_two_views_is_refused(photos, kind, backend):
    if backend == 'fast':
        pytest.importorskip('cv2')
    make, message = UNPAIRED[kind]
    loader = create_two_view_loader(make(photos), 16, 4, num_workers=0, augment_backend=backend, device='cpu')
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


def test_a_worker_states_the_remedy(photos):
    loader = create_two_view_loader(UNPAIRED['a transform below'][0](photos), 16, 4, num_workers=1, device='cpu')
    with pytest.raises(ValueError, match='create the data set without a transform'):
        next(iter(loader))


class Tensors(TensorDataset):
    transform = None

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return self.transform(image), target


@pytest.mark.slow
@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_tensor_images_need_a_loader_without_the_prefetcher(use_prefetcher):
    """The prefetcher would subtract 255 times the mean from numbers in [0, 1]."""
    images = torch.rand(4, 3, 16, 16)
    loader = create_two_view_loader(
        Tensors(images, torch.arange(4)), 16, 4, num_workers=0, augment_backend='timm', use_prefetcher=use_prefetcher,
        scale=(1, 1), ratio=(1, 1), hflip=0., color_jitter=None, **LEVELS)
    if use_prefetcher:
        with pytest.raises(ValueError, match='levels 0 to 255.*use_prefetcher=False'):
            next(iter(loader))
    else:
        x, target = next(iter(loader))
        torch.testing.assert_close(x, images[target])


@pytest.mark.parametrize('input_size, shape', [
    (24, (24, 24)), ((16, 24), (16, 24)), ((3, 24, 16), (24, 16)), ((3, 8, 40), (8, 40)),
])
@pytest.mark.parametrize('crop_mode', [None, 'rrc', 'rkrc', 'rkrr', 'pad'])
@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_every_size_and_crop_mode_gives_its_shape(photos, photo_numbers, input_size, shape, crop_mode, use_prefetcher):
    loader = create_two_view_loader(
        create_dataset('', str(photos), 'train'), input_size, 6, num_workers=0, use_prefetcher=use_prefetcher,
        train_crop_mode=crop_mode, cutout=4, **COLOURLESS)
    for x, target in loader:
        assert x.shape == (12, 3, *shape) and target.shape == (12,)
    assert len(loader) == 2


@pytest.mark.parametrize('use_prefetcher', [True, False])
@pytest.mark.parametrize('kind', ['demo', 'fashion_mnist'])
def test_images_of_one_channel_give_two_views(tmp_path, kind, use_prefetcher):
    if kind == 'demo':
        dataset = create_dataset('demo', split='train', input_img_mode='L')
        images, labels, batch_size = dataset.images, dataset.targets, 250
    else:
        images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
        labels, batch_size = (np.arange(12) % 10).astype(np.uint8), 6
        dataset = make_fashion_mnist(tmp_path, images, labels)
    loader = create_two_view_loader(
        dataset, (1, 28, 28), batch_size, num_workers=0, use_prefetcher=use_prefetcher, no_aug=True, **GREY)
    label_of = {image.tobytes(): int(label) for image, label in zip(images, labels)}
    seen = []
    for x, target in loader:
        assert x.shape == (2 * batch_size, 1, 28, 28)
        # Without augmentation both views are the image itself.
        views = [view.tobytes() for view in (x[:, 0] * 255).round().byte().numpy()]
        assert views[:batch_size] == views[batch_size:]
        assert [label_of[view] for view in views] == target.tolist()
        seen += views[:batch_size]
    assert sorted(seen) == sorted(image.tobytes() for image in images)


@pytest.mark.slow
def test_images_of_one_channel_are_augmented():
    dataset = create_dataset('demo', split='train', input_img_mode='L')
    loader = create_two_view_loader(
        dataset, (1, 28, 28), 500, num_workers=0, train_crop_mode='pad', cutout=8,
        mixup={'mixup_alpha': 1., 'num_classes': 10}, **GREY)
    for x, target in loader:
        assert x.shape == (1000, 1, 28, 28) and target.shape == (1000, 10)


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_the_prefetcher_converts_the_dtype(photos, use_prefetcher):
    loader = create_two_view_loader(
        create_dataset('', str(photos), 'train'), 16, 6, num_workers=0, use_prefetcher=use_prefetcher,
        img_dtype=torch.bfloat16, mixup={'mixup_alpha': 1., 'num_classes': 3}, device='cpu')
    for x, target in loader:
        # timm's DataLoader has no dtype: it is the prefetcher that converts.
        assert x.dtype == (torch.bfloat16 if use_prefetcher else torch.float32) and target.dtype == torch.float32
        assert isinstance(loader, DataLoader) != use_prefetcher


@pytest.mark.parametrize('policy', [
    'original', 'originalr', 'cifar10', 'imagenet-mstd0.5', '3a', 'rand-m9-mstd0.5', 'rand-m7-inc1', 'augmix-m3-w3',
])
@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_every_policy_gives_two_different_views(photos, policy, use_prefetcher):
    loader = create_two_view_loader(
        create_dataset('', str(photos), 'train'), 24, 4, num_workers=0, use_prefetcher=use_prefetcher,
        auto_augment=policy, lighting=0.1, cutout=8, train_crop_mode='pad', device='cpu')
    batches = list(loader)
    assert len(batches) == 3
    for x, _ in batches:
        assert x.isfinite().all() and not torch.equal(*x.chunk(2))


def test_posterize_accepts_0_bits():
    """timm's rand-...-inc1 needs it. It is the reason for the upper bound of Pillow's version."""
    image = auto_augment.posterize(Image.new('RGB', (4, 4), 'white'), 0)
    assert image.getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_erasing_and_cutout_are_drawn_for_each_view(gradient_dataset, use_prefetcher):
    """Erasing writes noise beyond the range of the pixels, CutOut writes zeros, which no pixel has."""
    loader = create_two_view_loader(
        gradient_dataset(256), 32, 64, num_workers=0, use_prefetcher=use_prefetcher, re_prob=0.5, re_mode='pixel',
        cutout=10, color_jitter=None, mean=(-2.,) * 3, std=(1.,) * 3, device='cpu')
    erased, cut = [], []
    for x, _ in loader:
        views = x.unflatten(0, (2, -1))
        cut.append((views == 0).any(2).double().mean((2, 3)))
        erased.append(((views != 0) & (views < 1.9)).any(2).any(2).any(2))
    erased, cut = torch.cat(erased, 1), torch.cat(cut, 1)
    assert (cut > 0).all() and cut.max() <= 10 * 10 / 32 ** 2
    # Each view on its own: half are erased, and half agree.
    assert abs(erased.double().mean() - 0.5) < 4 * 0.5 / 512 ** 0.5
    assert abs((erased[0] == erased[1]).double().mean() - 0.5) < 4 * 0.5 / 256 ** 0.5


MIXUP = {'mixup_alpha': 0.4, 'cutmix_alpha': 1., 'prob': 0.8, 'label_smoothing': 0.1, 'num_classes': 3}


def timms_batches(dataset, mixup, use_prefetcher, **kwargs):
    collate = FastCollateMixup(**mixup) if mixup and use_prefetcher else None
    loader = create_loader(dataset, 24, 4, is_training=True, collate_fn=collate, use_prefetcher=use_prefetcher,
                           device=torch.device('cpu'), **kwargs)
    mix = Mixup(**mixup) if mixup and not use_prefetcher else lambda *batch: batch
    return [mix(*batch) for _ in range(2) for batch in loader]


@pytest.mark.slow
@pytest.mark.parametrize('mixup', [None, MIXUP, {**MIXUP, 'mode': 'pair'}, {**MIXUP, 'mode': 'elem'}])
@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_one_view_equals_that_of_timm(photos, use_prefetcher, num_workers, mixup):
    kwargs = {'use_prefetcher': use_prefetcher, 'num_workers': num_workers, 'auto_augment': 'rand-m9-mstd0.5',
              're_prob': 0.5, 're_mode': 'pixel', 'interpolation': 'random'}
    datasets = [create_dataset('', str(photos), 'train') for _ in range(2)]
    random_seed(7)
    theirs = timms_batches(datasets[0], mixup, **kwargs)
    random_seed(7)
    loader = create_train_loader(datasets[1], 24, 4, mixup=mixup, device='cpu', **kwargs)
    ours = [batch for _ in range(2) for batch in loader]
    assert len(ours) == len(theirs) == 6
    for (x, target), (their_x, their_target) in zip(ours, theirs):
        assert torch.equal(x, their_x) and torch.equal(target, their_target)


def test_one_view_has_pad_crops_and_cutout(photos, photo_numbers):
    loader = create_train_loader(
        create_dataset('', str(photos), 'train'), 32, 4, num_workers=0, train_crop_mode='pad', cutout=8, **COLOURLESS)
    for x, target in loader:
        assert x.shape == (4, 3, 32, 32) and target.shape == (4,)
        black = (x == 0).all(1).float().mean((1, 2))
        assert (black > 0).all()


@pytest.mark.parametrize('use_prefetcher', [True, False])
def test_the_loader_has_the_attributes_of_that_of_timm(photos, use_prefetcher):
    dataset = create_dataset('', str(photos), 'train')
    loader = create_two_view_loader(
        dataset, 16, 4, num_workers=0, use_prefetcher=use_prefetcher, mixup=MIXUP, device='cpu')
    assert loader.dataset is dataset and len(loader) == 3
    assert len(loader.sampler) == 12 and loader.batch_sampler.batch_size == 4
    assert loader.mixup_enabled


@pytest.mark.parametrize('batch_size, kwargs, message', [
    (5, {'mixup': MIXUP}, 'even batch_size, got 5: use 4 or 6'),
    (5, {'mixup': MIXUP, 'use_prefetcher': False}, 'even batch_size, got 5: use 4 or 6'),
    (1, {'mixup': MIXUP}, 'even batch_size, got 1: use 2$'),
    (4, {'mixup': MIXUP, 'input_size_choices': [16, 24], 'batch_size_choices': [6, 3]}, 'even batch_size, got 3'),
    (4, {'input_size_choices': [16, 24], 'batch_size_choices': [15, 14]}, 'batch_size 14 .* 12 images: use 12 or less'),
    (13, {'input_size_choices': [16, 24]}, 'batch_size 13 .* 12 images: use 12 or less'),
    (13, {'num_batches': 3}, 'batch_size 13 .* 12 images: use 12 or less'),
    (13, {}, 'batch_size 13 .* 12 images: use 12 or less'),
    (4, {'num_aug_splits': 2}, 'num_aug_splits'),
    (4, {'train_crop_mode': 'pad', 'input_size_choices': [16, 24]}, 'input_size_choices'),
    (4, {'train_crop_mode': 'padd'}, "rrc, rkrc, rkrr, pad, got 'padd'"),
    (4, {'no_aug': True, 'cutout': 8}, 'no_aug'),
    (4, {'no_aug': True, 'lighting': 0.1}, 'no_aug'),
    (4, {'no_aug': True, 'train_crop_mode': 'pad'}, 'no_aug'),
    (4, {'lighting': 0.1, 'mean': (0.5,), 'std': (0.5,)}, 'lighting 0.1'),
    (4, {'mixup': {**MIXUP, 'mode': 'half'}}, 'half'),
    (4, {'mixup': {'mixup_alpha': 0.}}, 'mixup_alpha'),
])
def test_invalid_combinations_are_refused(photos, batch_size, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_two_view_loader(
            create_dataset('', str(photos), 'train'), 16, batch_size, num_workers=0, device='cpu', **kwargs)


def test_splits_of_data_in_sequence_are_refused():
    with pytest.raises(ValueError, match='num_aug_splits needs a data set with an index'):
        create_train_loader(Streamed(), 16, 4, num_aug_splits=2, num_workers=0, device='cpu')


def test_repeats_that_do_not_fill_a_batch_are_refused(memory_dataset, monkeypatch):
    """300 images are 300 // 256 * 256 / 2 = 128 for each of two ranks, in timm's RepeatAugSampler."""
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 0)
    dataset = memory_dataset([Image.new('RGB', (16, 16))] * 300)

    def create(batch_size):
        return create_train_loader(
            dataset, 16, batch_size, num_aug_repeats=3, distributed=True, num_workers=0, device='cpu')
    assert len(create(128)) == 1
    with pytest.raises(ValueError, match='num_aug_repeats 3 gives each process 128 images.* 129: use 128 or less'):
        create(129)


@pytest.mark.parametrize('choices, num_batches', [((6, 4), None), ((6, 4), 5), ((16, 14), 3)])
def test_batch_sizes_of_scheduled_sizes_replace_the_batch_size(photos, choices, num_batches):
    """Several passes in an epoch fill any batch."""
    loader = create_two_view_loader(
        create_dataset('', str(photos), 'train'), 16, 129, num_workers=0, device='cpu', mixup=MIXUP,
        input_size_choices=[16, 24], batch_size_choices=choices, num_batches=num_batches)
    sizes = [(x.shape[-1], len(x) // 2) for x, _ in loader]
    assert {*sizes} <= {*zip([16, 24], choices)} and len(sizes) == (num_batches or len(loader)) > 1


def test_a_batch_may_contain_all_images(photos):
    loader = create_two_view_loader(create_dataset('', str(photos), 'train'), 16, 12, num_workers=0, device='cpu')
    assert [len(x) for x, _ in loader] == [24]


class ReaderTfds:
    """A reader as timm's of tfds/, which converts images itself. The image of sample i has the colour (20 i, 0, 90)."""
    remap_class, input_img_mode, batch_size = False, 'RGB', 4

    def __len__(self):
        return 8

    def __iter__(self):
        yield from ((Image.new('RGB', (20, 20), (20 * number, 0, 90)), number) for number in range(8))


def test_images_of_tfds_are_rgb():
    pytest.importorskip('cv2')

    def read(**kwargs):
        dataset = with_policy(IterableImageDataset('', ReaderTfds()), None)
        loader = create_two_view_loader(dataset, 16, 4, num_workers=0, **COLOURLESS, **kwargs)
        images, numbers = map(torch.cat, zip(*loader))
        expected = torch.stack([numbers * 20 / 255, numbers * 0, numbers * 0 + 90 / 255], 1)
        return views_of(loader.dataset), (images - expected[..., None, None]).abs()

    assert read(augment_backend='timm')[0] == 'by timm'
    for backend in ('auto', 'fast'):
        made, errors = read(augment_backend=backend)
        assert made == 'from arrays' and errors.max() < 1e-6
    assert read(lighting=0.1)[1][:, 0].amax((1, 2)).count_nonzero() > 8, 'red of most of the 16 views is shifted'


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_images_of_every_mode_are_converted(tmp_path, mode):
    for i, file_mode in enumerate(['L', 'P', 'RGBA', 'RGB']):
        folder = tmp_path / f'class{i}'
        folder.mkdir()
        Image.new('RGB', (20, 20), (200, 100, 50)).convert(file_mode).save(folder / 'image.png')
    channels = len(mode)
    loader = create_two_view_loader(
        create_dataset('', str(tmp_path), 'train', input_img_mode=mode), (channels, 16, 16), 4, num_workers=0,
        mean=(0.5,) * channels, std=(0.5,) * channels, device='cpu')
    assert [x.shape for x, _ in loader] == [(8, channels, 16, 16)]
