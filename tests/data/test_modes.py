"""PIL modes of images: training and evaluation get the pixels of the file, or the mode is refused at the start."""
import io
import itertools
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.utils import random_seed

from agmax_timm.assembly import datasets, loaders
from agmax_timm.assembly import model as build
from agmax_timm.base.errors import OptionError
from agmax_timm.data.loader import create_train_loader
from agmax_timm.data.loading.balance import labels_of
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.held_out import part_of
from agmax_timm.options.data import DataSet
from agmax_timm.options.declare import declared
from agmax_timm.options.parse import parse_train_args

SIDE = 32
MODES = declared(DataSet)['input_img_mode'].check.names[1:]
REFUSED_BY_PREFETCHER = ('1', 'I', 'F')
REFUSED_WITHOUT_IT = ('I',)
MEAN, STD = 0.25, 0.5
NEUTRAL = ('--scale', '1', '1', '--ratio', '1', '1', '--hflip', '0', '--color-jitter', '0')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Folder of four classes with one PNG each: 8 bits of colour, gray, colour with alpha, and 16 bits of gray."""
    root = tmp_path_factory.mktemp('modes')
    rng = np.random.default_rng(0)
    eight = rng.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    sixteen = rng.integers(0, 2 ** 16, (SIDE, SIDE)).astype(np.uint16)
    for number, array in enumerate((eight[..., :3], eight[..., 0], eight, sixteen)):
        for split in ('train', 'val'):
            path = root / split / str(number) / '0.png'
            path.parent.mkdir(parents=True)
            Image.fromarray(array).save(path)
    return root


def pixels(root, number, mode):
    """Expected pixels of a loader [C, H, W], normalised: 8 bits as levels in [0, 1], floats unchanged."""
    image = Image.open(root / 'train' / str(number) / '0.png')
    if image.mode == 'I;16' and mode not in ('I', 'F'):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    array = np.atleast_3d(np.asarray(image.convert(mode))).transpose(2, 0, 1)
    levels = array / 255. if array.dtype == np.uint8 else array.astype(float)
    return (levels - MEAN) / STD


def batch_of(images, mode, loader, prefetcher, backend, *more):
    """Images and targets of a loader with these flags."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    args = parse_train_args([
        str(images), '--model', 'test_resnet', '--num-classes', '4', '-b', '4', '-j', '0', *NEUTRAL, '--device', 'cpu',
        '--in-chans', str(channels), '--input-img-mode', mode, '--augment-backend', backend,
        *(['--agmax'] if loader == 'two views' else []), *([] if prefetcher else ['--no-prefetcher']), *more])
    device = build.init_device(args.device)
    config = dict(input_size=(channels, SIDE, SIDE), mean=(MEAN,) * channels, std=(STD,) * channels,
                  interpolation='bicubic', crop_pct=1., crop_mode='center')
    precision = build.build_precision(args, device)
    train, validation = datasets.build_datasets(args, config)
    if loader == 'evaluation':
        return next(iter(loaders.build_eval_loader(args, validation, config, device, precision, 4)))
    return next(iter(loaders.build_train_loader(args, train, config, device, precision)))


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_every_loader_gives_the_pixels_of_the_file(images, mode):
    for loader, prefetcher, backend in itertools.product(
            ('one view', 'two views', 'evaluation'), (True, False), ('timm', 'fast')):
        refused = mode in (REFUSED_BY_PREFETCHER if prefetcher else REFUSED_WITHOUT_IT)
        reason = f"--input-img-mode '{mode}': .*use L" if refused else ''
        if not refused and backend == 'fast' and loader != 'evaluation' and not (mode == 'RGB' and prefetcher):
            reason = '--augment-backend fast: '
        if reason:
            with pytest.raises(OptionError, match=reason):
                batch_of(images, mode, loader, prefetcher, backend)
            continue
        input, target = batch_of(images, mode, loader, prefetcher, backend)
        assert sorted(target.tolist()) == sorted([0, 1, 2, 3] * (2 if loader == 'two views' else 1))
        for view, number in zip(input.double(), target.tolist()):
            expected = torch.tensor(pixels(images, number, mode))
            torch.testing.assert_close(view, expected, rtol=1e-6, atol=2e-6, msg=f'{loader} {prefetcher} {backend}')


def test_torchvision_decodes_files_to_the_mode(images):
    for mode in ('L', 'RGB', 'RGBA', 'HSV', 'F'):
        dataset = create_dataset('torch/image_folder', str(images), 'train', input_img_mode=mode)
        for number, (image, target) in enumerate(dataset):
            assert (image.mode, target) == (mode, number)
            expected = pixels(images, number, mode) * STD + MEAN
            assert np.allclose(pixels_of(image), expected, atol=1e-6), f'{mode}, image {number}'
    assert create_dataset('torch/image_folder', str(images), 'train')[0][0].mode == 'RGB'


def test_torchvision_turns_files_as_their_exif_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / 'train' / 'ant').mkdir(parents=True)
    Image.new('RGB', (40, 20)).save(tmp_path / 'train' / 'ant' / '0.jpg', exif=exif)
    for turned, size in ((False, (40, 20)), (True, (20, 40))):
        assert create_dataset(
            'torch/image_folder', str(tmp_path), 'train', exif_orientation=turned)[0][0].size == size


def pixels_of(image):
    array = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    return array / 255. if array.dtype == np.uint8 else array.astype(float)


@pytest.fixture(scope='module')
def mnist(tmp_path_factory):
    """torchvision's files of MNIST, and their images: 12 to train on and 12 to test on."""
    folder = tmp_path_factory.mktemp('mnist')
    array = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    raw = folder / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for part in ('train', 't10k'):
        (raw / f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, *array.shape) + array.tobytes())
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, 12) + bytes(i % 3 for i in range(12)))
    return folder, array


def test_images_of_torchvision_that_are_arrays_have_the_mode(mnist):
    folder, array = mnist
    for mode in ('L', 'RGB', 'HSV', 'RGBA'):
        dataset = create_dataset('torch/mnist', str(folder), 'train', input_img_mode=mode, transform=lambda x: [x])
        assert len(dataset) == 12 and class_names(dataset)[9] == '9 - nine'
        for part in dataset, part_of(dataset, 0.25, seed=0, held_out=True):  # with one image of each class
            assert labels_of(part).tolist() == [target for _, target in part]
        (image,), target = dataset[5]
        assert target == 2 and image.tobytes() == Image.fromarray(array[5]).convert(mode).tobytes()
        part.transform = None
        assert part[0][0].mode == mode and isinstance(dataset[0][0], list), 'a part has a transform of its own'
    assert create_dataset('torch/mnist', str(folder), 'train')[0][0].mode == 'L'


@pytest.mark.parametrize('loader, mode, prefetcher', [
    ('one view', 'HSV', True), ('two views', 'RGB', True), ('evaluation', 'RGB', False)])
def test_loaders_give_the_pixels_of_mnist(mnist, loader, mode, prefetcher):
    folder, array = mnist
    resized = [Image.fromarray(image).convert(mode).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in array]
    expected = np.stack([(pixels_of(image) - MEAN) / STD for image in resized])
    expected = np.concatenate([expected, expected[..., ::-1]])
    views, targets = batch_of(folder, mode, loader, prefetcher, 'auto', '--dataset', 'torch/mnist',
                              '--train-interpolation', 'bicubic', '--hflip', '0.5', '--num-classes', '10', '-b', '12')
    differences = np.array([np.abs(expected - view).max(axis=(1, 2, 3)) for view in views.double().numpy()])
    assert differences.min(1).max() <= 2 / 255 / STD, 'rounding of the fast backend'
    found = differences.argmin(1) % 12
    assert targets.tolist() == (found % 3).tolist()
    for view in np.split(found, 2) if loader == 'two views' else [found]:
        assert sorted(view) == [*range(4 if loader == 'evaluation' else 12)]


STEPS = [
    ('auto_augment', 'rand-m9-n6'), ('auto_augment', 'rand-m9-inc1-n6'), ('auto_augment', 'original'),
    ('auto_augment', 'augmix-m5-w4-d2'), ('auto_augment', '3a'), ('grayscale_prob', 1.), ('gaussian_blur_prob', 1.),
    ('color_jitter', 0.4), ('color_jitter', (0.4, 0.4, 0.4, 0.1))]


def works(image, step, value):
    """Whether timm's transform keeps the mode of the image before it becomes a tensor, in each of 40 draws."""
    channels = len(image.getbands())
    transform = create_transform(
        (channels, 16, 16), is_training=True, use_prefetcher=True, mean=(0.5,) * channels,
        **{'color_jitter': None, step: value})
    for seed in range(40):
        random_seed(seed)
        changed = image
        try:
            for part in transform.transforms[:-1]:
                changed = part(changed)
        except (OSError, ValueError, NotImplementedError):  # PIL's and torchvision's for modes that they do not take
            return False
        if changed.mode != image.mode:  # gray as RGB among images of other colours
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize('step, value', STEPS)
def test_augmentation_keeps_the_mode_or_is_refused(images, step, value):
    for mode in set(MODES) - set(REFUSED_WITHOUT_IT):
        dataset = create_dataset('', str(images), 'train', input_img_mode=mode)
        image = dataset[0][0]
        size = (len(image.getbands()), 16, 16)
        kwargs = dict(num_workers=0, device='cpu', use_prefetcher=mode not in REFUSED_BY_PREFETCHER,
                      **{'color_jitter': None, step: value})
        if works(image, step, value):
            create_train_loader(dataset, size, 4, mean=(0.5,) * size[0], std=(0.5,) * size[0], **kwargs)
            continue
        with pytest.raises(ValueError, match=f'^{step} .*mode .*, got .?{mode}.?: '):
            create_train_loader(dataset, size, 4, **kwargs)
        create_train_loader(dataset, size, 4, mean=(0.5,) * size[0], std=(0.5,) * size[0], no_aug=True, **kwargs)


def test_interpolations_by_which_a_policy_cannot_rotate_are_refused(images):
    dataset = create_dataset('', str(images), 'train')
    image, resizing = dataset[0][0], ('box', 'hamming', 'lanczos')
    for policy, interpolation in itertools.product(('rand-m9-n9', 'v0', 'augmix-m3'), resizing):
        transform = create_transform(16, is_training=True, auto_augment=policy, interpolation=interpolation)
        with pytest.raises(ValueError, match='Resampling'):
            for _ in range(50):
                transform(image)
        kwargs = dict(auto_augment=policy, interpolation=interpolation, num_workers=0, device='cpu')
        with pytest.raises(ValueError, match=f"interpolation '{interpolation}'.* '{policy}' .*: use bilinear"):
            create_train_loader(dataset, 16, 4, **kwargs)
        create_train_loader(dataset, 16, 4, **kwargs, no_aug=True)
    for policy, interpolation in (
            ('v0', 'nearest'), *itertools.product(('rand-m9-n9-t3a', '3a', 'cifar10', 'imagenet-mstd0.5'), resizing)):
        create_train_loader(
            dataset, 16, 4, auto_augment=policy, interpolation=interpolation, num_workers=0, device='cpu')
        for _ in range(9):
            dataset.transform(image)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('kind', ['wds', 'hfids'])
def test_sixteen_bits_of_data_in_sequence_become_the_upper_eight(tmp_path, kind, mode):
    array = np.random.default_rng(0).integers(0, 2 ** 16, (SIDE, SIDE)).astype(np.uint16)
    content = io.BytesIO()
    Image.fromarray(array).save(content, 'PNG')
    if kind == 'wds':
        pytest.importorskip('webdataset')
        with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
            for name, data in (('0.jpg', content.getvalue()), ('0.cls', b'3')):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        dataset = create_dataset('wds/x', str(tmp_path), 'val.tar|1', input_img_mode=mode)
    else:
        datasets = pytest.importorskip('datasets')
        rows = {'image': [{'bytes': content.getvalue(), 'path': None}], 'label': [3]}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value('int64'))
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / 'train.parquet')
        dataset = create_dataset(f'hfids/{tmp_path}', str(tmp_path / 'cache'), 'train', input_img_mode=mode,
                                 num_samples=1)
    (image, target), = dataset
    assert image.mode == mode and target == 3
    assert (np.atleast_3d(np.asarray(image)) == np.atleast_3d(array // 256)).all()


@pytest.mark.parametrize('words, message', [
    (['--in-chans', '4', '--aa', 'rand-m9'], "--aa 'rand-m9' works on images of mode L, RGB, got 'RGBA': leave it out"),
    (['--input-img-mode', 'LAB'], "--color-jitter 0.4 works on images of mode .*, got 'LAB': set it to 0"),
    (['--input-img-mode', 'HSV', '--grayscale-prob', '0.1', '--color-jitter', '0'],
     "--grayscale-prob 0.1 works on images of mode L, RGB, got 'HSV': leave it out"),
    (['--aa', 'v0', '--train-interpolation', 'box'], "--train-interpolation 'box' only resizes, and --aa 'v0' rotates"),
    (['--cutmix-minmax', '0.5', '0.54', '--train-img-sizes', '32', '24'],
     '--cutmix-minmax 0.5 0.54 is less than a pixel of 24: '),
    (['--aa', 'v0', '--train-interpolation', 'box', '--naflex-loader'], "--train-interpolation 'box' only resizes"),
])
def test_a_refusal_names_the_flag(images, words, message):
    args = parse_train_args([str(images), '--num-classes', '4', '-b', '4', '-j', '0', '--device', 'cpu', *words])
    device = build.init_device(args.device)
    channels = args.in_chans or 3
    config = dict(input_size=(channels, SIDE, SIDE), mean=(MEAN,) * channels, std=(STD,) * channels,
                  interpolation='bicubic', crop_pct=1., crop_mode='center')
    train, _ = datasets.build_datasets(args, config)
    with pytest.raises(OptionError, match=message):
        loaders.build_train_loader(args, train, config, device, build.build_precision(args, device))
