"""The fast augmentation against timm's: from the same random state come the same views, batches and draws."""
import io
import pickle
import random
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.utils import random_seed
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.transforms import functional

from agmax_timm import create_two_view_loader
from agmax_timm.data.backend import views_of
from agmax_timm.data.loader import create_train_loader
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.decoding import UndecodableError, decode
from tests.helpers.images import PER_CLASS

pytest.importorskip('cv2')
pytest.importorskip('simplejpeg')

from agmax_timm.data.arrays import jitter as jitters
from agmax_timm.data.arrays.decoding import decode_array
from agmax_timm.data.arrays.jitter import DeviceJitter
from agmax_timm.data.arrays.transform import ArrayTransform, on_arrays

CPU = torch.device('cpu')


def photograph(height, width, seed):
    """Smooth colours, texture and edges."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    pixels = np.asarray(rough).astype(int) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 3:height // 2, width // 4:width // 2] += 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope='module')
def photographs():
    return [photograph(60 + 7 * seed, 90 - 3 * seed, seed) for seed in range(8)]


def random_states():
    python, numpy = random.getstate(), np.random.get_state()
    return python, numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()


VIEWS = 104  # by recipe
# The recipe, the most that a level and the root mean square of a view may be off, and the share of levels that may be
# off by more: a level off before an operation that cuts at a threshold is many after it.
RECIPES = {
    'standard': (dict(interpolation='random'), 4, .65, 0.),
    'bilinear, no jitter': (dict(interpolation='bilinear', color_jitter=None), 2, .25, 0.),
    'bicubic, no jitter': (dict(interpolation='bicubic', color_jitter=None), 2, .25, 0.),
    'flips': (dict(hflip=.5, vflip=.5, scale=(.5, 1.), ratio=(1., 1.), color_jitter=None), 1, .25, 0.),
    'jitter of some': (dict(color_jitter_prob=.5, grayscale_prob=.3, gaussian_blur_prob=.5), 4, .3, 0.),
    'hue': (dict(color_jitter=(.2, .2, .2, .1)), 8, .5, 0.),
    'lighting': (dict(lighting=.1, color_jitter=None), 2, .25, 0.),
    'pad': (dict(train_crop_mode='pad', color_jitter=None), 1, .25, 0.),
    'AutoAugment': (dict(auto_augment='original'), 4, 6., 2e-4),
    'AutoAugment as published': (dict(auto_augment='cifar10'), 4, 6., 2e-4),
    'AutoAugment as published, jitter': (dict(auto_augment='imagenet'), 4, 6., 2e-4),
    'AutoAugment v0': (dict(auto_augment='v0'), 4, 6., 2e-4),
    'RandAugment': (dict(auto_augment='rand-m9-mstd0.5-inc1'), 4, 6., 2e-4),
    'RandAugment by weights': (dict(auto_augment='rand-m7-n3-tweights', interpolation='bicubic'), 4, .5, 0.),
    'AugMix': (dict(auto_augment='augmix-m5-w4-d2'), 4, .6, 2e-4),
    '3-augment': (dict(auto_augment='3a'), 4, .5, 0.),
    'large magnitudes': (dict(auto_augment='rand-m15-n2-mmax30-inc1'), 4, 30., 2e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_the_same_random_state_gives_the_view_of_timm(photographs, memory_dataset, name):
    recipe, most, rms, share = RECIPES[name]
    dataset = memory_dataset(photographs)
    create_train_loader(dataset, (3, 32, 32), 4, augment_backend='timm', num_workers=0, device=CPU, **recipe)
    timm, fast = dataset.transform, pickle.loads(pickle.dumps(ArrayTransform(dataset.transform)))  # as workers may be
    beyond = 0
    for seed in range(VIEWS // len(photographs)):
        for image in photographs:
            random_seed(seed)
            expected = timm(image)
            states = random_states()
            random_seed(seed)
            view = fast(image)
            assert states == random_states()
            assert view.shape == expected.shape == (3, 32, 32) and view.dtype == torch.uint8
            difference = (view.int() - expected.int()).abs().double()
            assert difference.square().mean().sqrt() <= rms
            beyond += (difference > most).double().mean().item() / VIEWS
    assert beyond <= share


def test_a_view_shares_no_memory_with_its_image(memory_dataset):
    """Also if the crop is the whole image and no step changes the pixels."""
    dataset = memory_dataset([IMAGE] * 4)
    create_train_loader(dataset, (3, *IMAGE.size[::-1]), 4, num_workers=0, device=CPU, augment_backend='timm',
                        scale=(1., 1.), ratio=(IMAGE.width / IMAGE.height,) * 2, hflip=0., color_jitter=None)
    pixels = np.array(IMAGE)
    ArrayTransform(dataset.transform)(pixels).zero_()
    assert np.array_equal(pixels, np.array(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize('height, width', [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_empty_crops_of_tiny_images_are_as_in_timm(memory_dataset, height, width, interpolation):
    image = Image.new('RGB', (width, height), (200, 100, 50))
    dataset = memory_dataset([image] * 4)
    create_train_loader(dataset, (3, 16, 16), 4, augment_backend='timm', num_workers=0, device=CPU, scale=(.02, 1.),
                        color_jitter=None, interpolation=interpolation)
    timm, fast, black = dataset.transform, ArrayTransform(dataset.transform), 0
    for seed in range(100):
        random_seed(seed)
        expected = timm(image)
        random_seed(seed)
        assert (fast(image).int() - expected.int()).abs().max() <= 2
        black += not expected.any()
    assert black


def test_images_that_are_not_rgb_use_the_timm_backend_at_every_size(photos, caplog):
    for mode, choices in (('YCbCr', {}), ('YCbCr', dict(input_size_choices=[16, 24])), ('L', {})):
        channels = len(Image.new(mode, (1, 1)).getbands())
        dataset = create_dataset('', str(photos), 'train', input_img_mode=mode)
        with caplog.at_level('INFO'):
            loader = create_two_view_loader(
                dataset, 16, 4, num_workers=0, device=CPU, mean=(.5,) * channels, std=(.5,) * channels, **choices)
        assert caplog.records[-1].getMessage() == 'Augmentation by timm: images are not RGB.'
        assert views_of(loader.dataset) == 'by timm'
        assert next(iter(loader))[0].shape[1] == channels


def test_data_sets_of_torchvision_use_the_fast_backend(photos):
    dataset = create_dataset('torch/image_folder', str(photos), 'train')
    for choices in ({}, dict(input_size_choices=[16, 24])):
        loader = create_two_view_loader(dataset, 16, 4, num_workers=0, device=CPU, **choices)
        assert views_of(loader.dataset) == 'from arrays'
    create_two_view_loader(dataset, 16, 4, num_workers=0, device=CPU, augment_backend='timm')
    assert views_of(dataset) == 'by timm'


def test_every_policy_of_timm_has_an_equivalent():
    for policy in ('v0', 'v0r', 'original', 'originalr', '3a'):
        on_arrays(auto_augment.auto_augment_transform(policy))
    for policy in ('rand-m9', 'rand-m9-inc1', 'rand-tweights', 'rand-t3a', 'rand-t3aw'):
        on_arrays(auto_augment.rand_augment_transform(policy))
    on_arrays(auto_augment.augment_and_mix_transform('augmix-m3'))


@pytest.mark.parametrize('step, name', [
    (transforms.CenterCrop(8), 'CenterCrop'),
    (transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomRotation(3)]), 'RandomRotation'),
    (transforms.Resize(8), 'Resize of the smaller side'),
    (transforms.Resize((8, 8), transforms.InterpolationMode.LANCZOS), "interpolation 'lanczos'"),
])
def test_steps_without_an_equivalent_are_named(step, name):
    with pytest.raises(NotImplementedError, match=name):
        on_arrays(step)


def encoded(image, kind='JPEG', **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


IMAGE = photograph(37, 51, 0)
TURNED = Image.Exif()
TURNED[0x0112] = 6
CONTENTS = {
    'baseline': encoded(IMAGE, quality=90),
    '4:4:4': encoded(IMAGE, subsampling=0),
    'progressive': encoded(IMAGE, progressive=True),
    'gray': encoded(IMAGE.convert('L')),
    'CMYK': encoded(IMAGE.convert('CMYK')),
    'RGB within': encoded(IMAGE, keep_rgb=True),
    'turned': encoded(IMAGE, exif=TURNED),
    'more after it': encoded(IMAGE) + b'more',
    'damaged within': encoded(IMAGE)[:700] + b'\xff\x00\x12\xff\xd5' + encoded(IMAGE)[705:],
    'PNG': encoded(IMAGE, 'PNG'),
    'palette': encoded(IMAGE.quantize(7), 'PNG'),
    'alpha': encoded(IMAGE.convert('RGBA'), 'PNG'),
    '16 bits': encoded(Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16)), 'PNG'),
    'GIF': encoded(IMAGE, 'GIF'),
}


@pytest.mark.parametrize('kind', CONTENTS)
def test_decoded_pixels_equal_those_of_pil(kind):
    for turned in (False, True):
        pixels = decode_array(io.BytesIO(CONTENTS[kind]), exif_orientation=turned)
        assert np.array_equal(pixels, np.asarray(decode(io.BytesIO(CONTENTS[kind]), exif_orientation=turned)))


@pytest.mark.parametrize('content', [
    *(CONTENTS['baseline'][:end] for end in (-300, -2, 20, 0)), b'\xff\xd8garbage', b'text'])
def test_undecodable_content_is_refused_with_the_reason_of_pil(content):
    with pytest.raises(UndecodableError) as expected:
        decode(io.BytesIO(content))
    with pytest.raises(UndecodableError) as found:
        decode_array(io.BytesIO(content))
    assert str(found.value) == str(expected.value)


MIXUP = {
    'none': None,
    'batch': dict(mixup_alpha=.8, cutmix_alpha=1., num_classes=8),
    'pair': dict(mixup_alpha=.8, cutmix_alpha=1., mode='pair', prob=.5, num_classes=8),
    'elem': dict(mixup_alpha=.8, cutmix_alpha=1., mode='elem', prob=.7, num_classes=8, label_smoothing=.1),
}
# Pixels as they are, in levels.
LEVELS = dict(num_workers=0, device=CPU, mean=(0., 0., 0.), std=(1 / 255,) * 3)


@pytest.mark.parametrize('mixup', MIXUP)
def test_batches_of_both_backends_are_equal(memory_dataset, photographs, mixup):
    """Two mixed views: the order, partners, amounts and targets are the same."""
    batches = {}
    for backend in ('timm', 'fast'):
        random_seed(3)
        loader = create_two_view_loader(
            memory_dataset(photographs), (3, 32, 32), 4, mixup=MIXUP[mixup], augment_backend=backend,
            interpolation='random', re_prob=.3, re_mode='const', **LEVELS)
        batches[backend] = [batch for _ in range(5) for batch in loader]
        batches[backend].append((torch.rand(8), torch.tensor(np.random.rand(8))))
    for (x, target), (expected, expected_target) in zip(batches['fast'], batches['timm']):
        assert torch.equal(target, expected_target)
        assert x.shape == expected.shape and (x - expected).abs().max() <= 5
        assert (x - expected).square().mean() < .2


def test_a_reused_buffer_is_not_overwritten_before_it_is_read(photos, photo_numbers):
    """Workers reuse memory. A slow reader must still get images and targets that belong together."""
    loader = create_two_view_loader(
        create_dataset('', str(photos), 'train'), (3, 16, 16), 2, num_workers=2, augment_backend='fast', device=CPU,
        color_jitter=None, mean=(0., 0., 0.), std=(1., 1., 1.), persistent_workers=True)
    for epoch in range(3):
        kept = []
        for number, (x, target) in enumerate(loader):
            if number % 2 == epoch % 2:
                time.sleep(.05)  # the workers get as far ahead as they may
            kept.append((x, target))
        numbers = torch.cat([photo_numbers(x) for x, _ in kept])
        assert torch.equal(numbers // PER_CLASS, torch.cat([target for _, target in kept]))
        assert sorted(numbers.tolist()) == sorted(2 * list(range(12)))


@pytest.mark.parametrize('kwargs, reason', [
    (dict(no_aug=True), 'CenterCrop'),
    (dict(use_prefetcher=False), 'without the prefetcher'),
    (dict(train_crop_mode='rkrc'), 'ResizeKeepRatio'),
    (dict(interpolation='lanczos'), "interpolation 'lanczos'"),
    (dict(auto_augment='augmix-m3-b1'), 'AugMix with b1'),
])
def test_the_reason_against_the_fast_backend_is_logged(memory_dataset, photographs, caplog, kwargs, reason):
    def create(backend):
        return create_two_view_loader(
            memory_dataset(photographs), (3, 32, 32), 4, augment_backend=backend, num_workers=0, device=CPU, **kwargs)
    with pytest.raises(ValueError, match=f'augment_backend fast: .*{reason}'):
        create('fast')
    with caplog.at_level('INFO'):
        create('auto')
    message, = [record.message for record in caplog.records if record.levelname == 'INFO']
    assert 'Augmentation by timm' in message and reason in message


def test_one_view_uses_the_timm_backend_by_default(memory_dataset, photographs):
    def transform(backend):
        dataset = memory_dataset(photographs)
        create_train_loader(dataset, (3, 32, 32), 4, num_workers=0, device=CPU, augment_backend=backend)
        return type(dataset.transform)
    assert [transform(backend) for backend in ('auto', 'timm', 'fast')] == [
        transforms.Compose, transforms.Compose, ArrayTransform]


def test_one_view_of_both_backends_is_equal(memory_dataset, photographs):
    batches = []
    for backend in ('timm', 'fast'):
        random_seed(3)
        loader = create_train_loader(
            memory_dataset(photographs), (3, 32, 32), 4, augment_backend=backend, color_jitter=None,
            mixup=dict(mixup_alpha=1., num_classes=8), **LEVELS)
        batches.append([batch for _ in range(3) for batch in loader])
    for (x, target), (expected, expected_target) in zip(*batches):
        assert torch.equal(target, expected_target) and (x - expected).abs().max() <= 2


def test_images_that_are_not_rgb_are_refused_with_their_mode(memory_dataset):
    loader = create_two_view_loader(
        memory_dataset([IMAGE.convert('L')] * 4), 32, 2, augment_backend='fast', num_workers=0, device=CPU)
    with pytest.raises(ValueError, match=r"images must be RGB.* image\.convert\('RGB'\)"):
        next(iter(loader))


@pytest.fixture
def jitter():
    return transforms.ColorJitter(.4, .3, .6)


def to_levels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize('dtype', jitters.DTYPES, ids=str)
def test_a_batch_is_jittered_like_pil_images(photographs, jitter, dtype, monkeypatch):
    """Each image has its own factors and its own order of steps."""
    images = [image.resize((40, 30)) for image in photographs] * 12
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]], dtype=dtype).view(2, 1, 3, 1, 1)
    device_jitter = DeviceJitter(jitter, mean, std)
    steps, factors = device_jitter.draw(len(images))
    assert len(set(map(tuple, steps.tolist()))) == 6
    adjust = functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation
    expected = []
    for image, order, amounts in zip(images, steps.tolist(), factors.tolist()):
        for step, factor in zip(order, amounts):
            image = adjust[step](image, factor)
        expected.append(to_levels(image))
    levels = torch.stack([to_levels(image) for image in images]).float()
    normalised = (levels.to(dtype) - mean) / std  # as timm's prefetcher does it
    device_jitter.draw = lambda count: (steps, factors)
    whole = device_jitter(normalised.clone())
    found = whole.float() * device_jitter.std + device_jitter.mean
    rounding = 0. if dtype == torch.float32 else .13
    difference = found - torch.stack(expected)
    assert difference.abs().max() <= 1.01 + rounding and difference.square().mean() < .01
    monkeypatch.setattr(jitters, '_CHUNK', 7 * 3 * 40 * 30)  # 7 images
    assert torch.equal(device_jitter(normalised), whole) and len(images) % 7


class Peak(TorchDispatchMode):
    """Tracks the bytes of tensors that operators make."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for value in made if isinstance(made, (tuple, list)) else [made]:
            storage = value.untyped_storage()
            if storage.data_ptr() not in given:
                self.live[id(value)] = storage.nbytes()
                weakref.finalize(value, self.live.pop, id(value))
        self.most = max(self.most, sum(self.live.values()))
        return made


@pytest.mark.parametrize('dtype, chunks', [(torch.float32, 1.), (torch.float16, 2.)])
def test_jitter_needs_the_memory_of_one_chunk(jitter, monkeypatch, dtype, chunks):
    images, levels = torch.rand(64, 3, 32, 32, dtype=dtype), torch.tensor([[0.], [1.]])
    device_jitter = DeviceJitter(jitter, *levels.view(2, 1, 1, 1, 1))
    monkeypatch.setattr(jitters, '_CHUNK', 8 * 3 * 32 * 32)
    with Peak() as peak:
        device_jitter(images)
    chunk = 4 * jitters._CHUNK
    assert .5 * chunk < peak.most < 1.1 * chunks * chunk


def test_random_factors_for_a_gpu_are_in_pinned_memory(jitter, monkeypatch):
    """A copy from other memory waits for the device."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda values: pinned.append(values.shape) or values.clone())
    images, levels = torch.rand(6, 3, 4, 4), (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1) / 255)
    for expected, device_jitter in (([], DeviceJitter(jitter, *levels)),
                                    ([(6, 3), (6, 3)], DeviceJitter(jitter, *levels, pinned=True))):
        torch.manual_seed(0)
        jittered = device_jitter(images.clone())
        assert pinned == expected
    torch.manual_seed(0)
    assert torch.equal(jittered, DeviceJitter(jitter, *levels)(images))


def test_device_jitter_draws_the_distribution_of_torchvision(jitter):
    device_jitter = DeviceJitter(jitter, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    steps, factors = device_jitter.draw(6000)
    orders = torch.unique(steps, dim=0, return_counts=True)[1]
    assert len(orders) == 6 and (orders - 1000).abs().max() < 5 * 1000 ** .5
    for number, (low, high) in enumerate((jitter.brightness, jitter.contrast, jitter.saturation)):
        drawn = factors[steps == number].sort().values
        assert low <= drawn[0] and drawn[-1] <= high
        uniform = low + (high - low) * (torch.arange(6000) + .5) / 6000
        assert (drawn - uniform).abs().max() < (high - low) * 1.63 / 6000 ** .5  # Kolmogorov-Smirnov, 1 percent
    _, alone = DeviceJitter(transforms.ColorJitter(.4), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).draw(100)
    assert ((alone == 1.).sum(1) == 2).all()


@pytest.mark.parametrize('channels_last', [False, True])
def test_batches_have_the_memory_format_of_the_model(photographs, memory_dataset, channels_last):
    loader = create_two_view_loader(
        memory_dataset(photographs), (3, 32, 24), 4, augment_backend='fast', channels_last=channels_last, **LEVELS)
    for x, _ in loader:
        assert x.is_contiguous() != channels_last
        assert x.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_jitter_runs_on_the_device_if_it_can(photographs, memory_dataset):
    def build(device, **kwargs):
        dataset = memory_dataset(photographs)
        loader = create_two_view_loader(
            dataset, (3, 32, 32), 4, num_workers=0, augment_backend='fast', device=device, **kwargs)
        names = [type(function).__name__ for function in loader.random_erasing.transforms]
        return 'ColorJitter' in repr(dataset.transform), 'DeviceJitter' in names
    meta = torch.device('meta')  # any that is not the CPU
    for kwargs in ({}, dict(cutout=8, re_prob=.5), dict(img_dtype=torch.float16)):
        assert build(meta, **kwargs) == (False, True)
    for device, kwargs in (
            (CPU, {}), (meta, dict(mixup=dict(mixup_alpha=1., num_classes=8))), (meta, dict(lighting=.1)),
            (meta, dict(color_jitter=(.1, .1, .1, .1))), (meta, dict(color_jitter_prob=.5)),
            (meta, dict(img_dtype=torch.bfloat16))):  # whose levels are not exact
        assert build(device, **kwargs) == (True, False)
