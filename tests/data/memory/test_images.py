"""Images kept decoded in memory: pixels, targets and damage as from files; crops and flips by batches."""
import multiprocessing
import pickle
import weakref

import numpy as np
import PIL.Image
import pytest
import timm.data
import torch
from timm.utils import random_seed

from agmax_timm import create_two_view_loader
from agmax_timm.base.errors import DamagedError
from agmax_timm.base.image_modes import MIXUP_MODES
from agmax_timm.data.augmentation.mixup import TwoViewMixup
from agmax_timm.data.loader import create_train_loader
from agmax_timm.data.memory import images as memory
from agmax_timm.data.memory.images import keep_decoded
from agmax_timm.data.sources.dataset_factory import create_dataset
from tests.helpers.images import CLASSES, PER_CLASS

CPU = torch.device('cpu')
COUNT = PER_CLASS * len(CLASSES)
# Pixels as they are, in levels.
LEVELS = dict(num_workers=0, device=CPU, mean=(0., 0., 0.), std=(1 / 255,) * 3)


def pixels(sample):
    return np.asarray(sample[0])


@pytest.mark.parametrize('small, chunk', [(memory._SMALL, memory._CHUNK), (0, 5)])  # one thread; several
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_kept_images_equal_those_of_the_files(photos, mode, small, chunk, monkeypatch):
    monkeypatch.setattr(memory, '_SMALL', small)
    monkeypatch.setattr(memory, '_CHUNK', chunk)
    files = create_dataset('', str(photos), 'train', input_img_mode=mode)
    kept = create_dataset('', str(photos), 'train', input_img_mode=mode)
    assert keep_decoded(kept, 2 ** 20)
    assert kept.memory.num_bytes == sum(pixels(files[index]).size for index in range(COUNT))
    for index in (*range(COUNT), -1):
        assert files[index][0].mode == kept[index][0].mode
        assert np.array_equal(pixels(files[index]), pixels(kept[index])) and files[index][1] == kept[index][1]


def test_images_that_do_not_fit_are_not_kept(photos, caplog):
    dataset = create_dataset('', str(photos), 'train')
    size = sum(pixels(dataset[index]).size for index in range(COUNT))
    with caplog.at_level('INFO'):
        assert not keep_decoded(dataset, size // 2)
    assert dataset.memory is None and 'not kept' in caplog.text
    assert not keep_decoded(dataset, 0)
    assert keep_decoded(dataset, size)


def test_images_beyond_the_estimated_size_are_read_from_files(photos, monkeypatch):
    """The total size is estimated from a sample of the images."""
    dataset, files = create_dataset('', str(photos), 'train'), create_dataset('', str(photos), 'train')
    sizes = [pixels(dataset[index]).size for index in range(COUNT)]
    assert COUNT * sizes[0] < sum(sizes)
    monkeypatch.setattr(memory, '_PROBES', 1)
    assert keep_decoded(dataset, COUNT * sizes[0])
    assert dataset.memory.get(0) is not None and dataset.memory.get(COUNT - 1) is None
    assert dataset.memory.common_shape is None
    assert all(np.array_equal(pixels(dataset[index]), pixels(files[index])) for index in range(COUNT))


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('backend', ['timm', 'fast'])
def test_workers_share_kept_images_and_open_no_file(photos, photo_numbers, monkeypatch, num_workers, backend):
    if backend == 'fast':
        pytest.importorskip('cv2')
        pytest.importorskip('simplejpeg')
    dataset = create_dataset('', str(photos), 'train')
    loader = create_two_view_loader(
        dataset, (3, 16, 16), 4, augment_backend=backend, image_memory='1M', color_jitter=None,
        **{**LEVELS, 'num_workers': num_workers, 'std': (1., 1., 1.)})
    opened = multiprocessing.Value('i', 0)

    def failing(*_):
        opened.value += 1
        raise AssertionError
    monkeypatch.setattr(type(dataset.reader), '__getitem__', failing)
    for _ in range(2):
        batches = list(loader)
        numbers = torch.cat([photo_numbers(x) for x, _ in batches])
        assert sorted(numbers.tolist()) == sorted(2 * list(range(COUNT)))
        assert torch.equal(numbers // PER_CLASS, torch.cat([target for _, target in batches]))
    assert opened.value == 0


def test_kept_images_are_not_pickled(photos):
    """Processes that are not forked read the files."""
    dataset = create_dataset('', str(photos), 'train')
    keep_decoded(dataset, 2 ** 20)
    content = pickle.dumps(dataset)
    assert len(content) < dataset.memory.num_bytes
    copy = pickle.loads(content)
    assert copy.memory.get(0) is None
    assert all(np.array_equal(pixels(copy[index]), pixels(dataset[index])) for index in range(COUNT))


@pytest.mark.parametrize('max_damaged', [.5, None])
def test_damaged_images_are_replaced_or_refused_as_from_files(photos, tmp_path, max_damaged):
    folder = tmp_path / 'train' / 'ant'
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted((photos / 'train' / 'ant').iterdir())):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[:100] if number == 1 else content)
    dataset = create_dataset('', str(tmp_path), 'train', max_damaged=max_damaged)
    assert keep_decoded(dataset, 2 ** 20)
    if max_damaged is None:
        with pytest.raises(DamagedError, match="001.jpg' cannot be decoded"):
            dataset[1]
    else:
        assert np.array_equal(pixels(dataset[1]), pixels(dataset[2]))
        assert dataset.damage.indices() == [1]


SIDE, PADDING = 16, 2
SHIFTS = range(-PADDING, PADDING + 1)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Folder of images of one size, with random pixels and no loss."""
    root = tmp_path_factory.mktemp('small')
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        folder = root / 'train' / CLASSES[number // PER_CLASS]
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.integers(1, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        PIL.Image.fromarray(image).save(folder / f'{number:03d}.png')
    return root


def small_loader(small, two_views=True, **kwargs):
    pytest.importorskip('cv2')
    pytest.importorskip('simplejpeg')
    dataset = create_dataset('', str(small), 'train')
    kwargs = {**LEVELS, 'train_crop_mode': 'pad', 'color_jitter': None, 'augment_backend': 'fast', **kwargs}
    return dataset, create_train_loader(
        dataset, (3, SIDE, SIDE), 4, two_views=two_views, image_memory='1M', **kwargs)


def draws_of(small):
    """Index, shift and flip of every possible crop, by its pixels."""
    dataset = create_dataset('', str(small), 'train')
    found = {}
    for index in range(COUNT):
        padded = np.pad(pixels(dataset[index]), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        for top in SHIFTS:
            for left in SHIFTS:
                part = padded[top + PADDING:, left + PADDING:][:SIDE, :SIDE]
                for flip in (False, True):
                    found[(part[:, ::-1] if flip else part).tobytes()] = index, top, left, flip
    return found


@pytest.mark.parametrize('two_views', [True, False])
def test_small_images_are_cropped_and_flipped_uniformly_by_batches(small, two_views):
    dataset, loader = small_loader(small, two_views)
    assert dataset.batches is not None
    known, seen, draws = draws_of(small), [], []
    for _ in range(100):
        for x, target in loader:
            views = [known[view.permute(1, 2, 0).byte().numpy().tobytes()] for view in x]
            assert [index // PER_CLASS for index, *_ in views] == target.tolist()
            if two_views:
                assert [index for index, *_ in views[:4]] == [index for index, *_ in views[4:]]
                draws += [(a[1:], b[1:]) for a, b in zip(views[:4], views[4:])]
            seen += views
    assert np.all(np.bincount([index for index, *_ in seen]) == len(seen) // COUNT)
    for place, values in ((1, SHIFTS), (2, SHIFTS), (3, (False, True))):  # uniform, by 5 standard deviations
        shares = [np.mean([view[place] == value for view in seen]) for value in values]
        expected = 1 / len(values)
        assert np.abs(np.array(shares) - expected).max() < 5 * (expected * (1 - expected) / len(seen)) ** .5
    if two_views:  # independent: as often alike as two draws are
        expected = 1 / (2 * len(SHIFTS) ** 2)
        assert abs(np.mean([a == b for a, b in draws]) - expected) < 5 * (expected / len(draws)) ** .5


@pytest.mark.slow
def test_auto_augment_after_batched_crops_has_the_distribution_of_timm(small):
    """Compared by the moments of the pixels."""
    moments = {}
    for backend in ('timm', 'fast'):
        random_seed(0)
        dataset, loader = small_loader(small, auto_augment='original', augment_backend=backend)
        assert (dataset.batches is not None) == (backend == 'fast')
        views = torch.cat([x for _ in range(150) for x, _ in loader])
        moments[backend] = torch.stack([views.mean((1, 2, 3)), views.std((1, 2, 3)), views[:, 0].mean((1, 2))])
    difference = moments['fast'].mean(1) - moments['timm'].mean(1)
    error = (moments['fast'].var(1) / moments['fast'].shape[1] * 2).sqrt()
    assert (difference.abs() < 5 * error).all()


def test_views_are_made_one_by_one_if_the_images_are_not_in_memory(small):
    dataset, loader = small_loader(small)
    copy = pickle.loads(pickle.dumps(dataset))
    random_seed(0)
    samples = copy.__getitems__([0, 5])
    random_seed(0)
    for index, (views, target) in zip((0, 5), samples):
        expected, expected_target = dataset[index]
        assert target == expected_target and all(map(torch.equal, views, expected))


@pytest.mark.parametrize('mixup', [dict(mixup_alpha=1.), dict(cutmix_alpha=1., mode='elem', prob=.7)])
def test_batched_crops_are_mixed_as_other_batches(small, mixup):
    mixup = dict(mixup, num_classes=3)
    _, plain = small_loader(small)
    _, loader = small_loader(small, mixup=mixup)
    random_seed(0)
    expected, target = next(iter(plain))  # draws nothing of numpy's
    expected, soft = TwoViewMixup(**mixup)(expected.byte(), target)
    random_seed(0)
    mixed, mixed_target = next(iter(loader))
    assert torch.equal(mixed_target, soft) and (mixed - expected).abs().max() <= 1
    assert not torch.equal(soft, soft.round())


@pytest.mark.parametrize('two_views', [True, False])
@pytest.mark.parametrize('mode', MIXUP_MODES)
def test_mixing_whole_images_does_not_change_the_kept_ones(small, two_views, mode):
    mixup = dict(mixup_alpha=0., cutmix_alpha=1., mode=mode, num_classes=3)
    dataset, loader = small_loader(
        small, two_views, mixup=mixup, train_crop_mode='rrc', scale=(1., 1.), ratio=(1., 1.))
    before = [dataset.memory.get(index)[0].copy() for index in range(COUNT)]
    known = {image[:, ::way].tobytes() for image in before for way in (1, -1)}
    mixed = torch.cat([x for _ in range(3) for x, _ in loader]).permute(0, 2, 3, 1).byte().numpy()
    assert sum(view.tobytes() in known for view in mixed) < len(mixed) / 2
    assert all(np.array_equal(dataset.memory.get(index)[0], before[index]) for index in range(COUNT))


def test_kept_images_are_read_only_without_a_warning(small, recwarn):
    dataset, loader = small_loader(small, train_crop_mode='rrc', auto_augment='rand-m9')
    for kept in (dataset.memory.get(0), dataset.memory.get_kept(0)):
        with pytest.raises(ValueError, match='read-only'):
            kept[0][...] = 0
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        for _ in range(3):
            list(loader)
    finally:
        torch.set_warn_always(always)
    assert not [warning for warning in recwarn if 'not writable' in str(warning.message)]


@pytest.mark.parametrize('kwargs', [
    dict(train_crop_mode='rrc'), dict(augment_backend='timm'), dict(image_memory='0')])
def test_other_settings_make_views_one_by_one(small, kwargs):
    pytest.importorskip('cv2')
    dataset = create_dataset('', str(small), 'train')
    create_train_loader(dataset, (3, SIDE, SIDE), 4, two_views=True, **{
        **LEVELS, 'train_crop_mode': 'pad', 'augment_backend': 'fast', 'image_memory': '1M', **kwargs})
    assert dataset.batches is None


SMALL = dict(train_crop_mode='pad', image_memory='1M', color_jitter=None, augment_backend='fast', **LEVELS)
# Loaders that a script may create one after the other for the same data set. Every second one decodes to arrays.
LOADERS = {
    'batches in memory': lambda dataset: create_two_view_loader(dataset, SIDE, 4, **SMALL),
    'sizes of timm': lambda dataset: timm.data.create_loader(
        dataset, SIDE, 4, is_training=True, input_size_choices=[8, 12], num_workers=0, device=CPU),
    'sizes': lambda dataset: create_two_view_loader(
        dataset, SIDE, 4, input_size_choices=[8, 12], **{**SMALL, 'train_crop_mode': None}),
    'no prefetcher': lambda dataset: create_two_view_loader(dataset, SIDE, 4, use_prefetcher=False, **LEVELS),
    'mixed': lambda dataset: create_train_loader(
        dataset, SIDE, 4, mixup=dict(mixup_alpha=1., num_classes=3), **SMALL),
    'evaluation': lambda dataset: timm.data.create_loader(dataset, SIDE, 4, num_workers=0, device=CPU),
}


def test_each_loader_of_a_data_set_gives_the_batches_of_a_new_data_set(small):
    pytest.importorskip('cv2')
    pytest.importorskip('simplejpeg')

    def first_batch(name, dataset):
        loader = LOADERS[name](dataset)
        random_seed(5)
        return next(iter(loader))
    used = create_dataset('', str(small), 'train')
    for name in LOADERS:
        for mine, expected in zip(first_batch(name, used), first_batch(name, create_dataset('', str(small), 'train'))):
            assert torch.equal(mine, expected), name
    assert used.memory is not None


def test_images_are_probed_one_at_a_time(tmp_path, monkeypatch):
    """Images that do not fit are not all in memory while their size is estimated."""
    for number in range(20):
        (tmp_path / 'train' / 'ant').mkdir(parents=True, exist_ok=True)
        PIL.Image.new('RGB', (20, 20)).save(tmp_path / 'train' / 'ant' / f'{number}.png')
    alive, most, decode = weakref.WeakSet(), [], memory._decode

    def watched(dataset, index):
        image, target = decode(dataset, index)
        pixels = image.copy().view(Pixels)
        alive.add(pixels)
        most.append(len(alive))
        return pixels, target
    monkeypatch.setattr(memory, '_decode', watched)
    assert not keep_decoded(create_dataset('', str(tmp_path), 'train'), 1000)
    assert len(most) == 20 and max(most) <= 2


class Pixels(np.ndarray):
    """Arrays that are hashed by identity, for a WeakSet."""
    __hash__ = object.__hash__


def test_a_limit_above_the_memory_of_the_machine_is_accepted(photos):
    dataset = create_dataset('', str(photos), 'train')
    assert keep_decoded(dataset, 10 ** 20) and dataset.memory.is_available


def test_image_memory_warns_of_data_sets_made_by_timm(photos, caplog):
    dataset = timm.data.create_dataset('', str(photos), 'train')
    create_two_view_loader(dataset, 16, 4, num_workers=0, device=CPU)
    assert not [record for record in caplog.records if record.levelname == 'WARNING']
    create_two_view_loader(dataset, 16, 4, num_workers=0, device=CPU, image_memory='1G')
    assert 'agmax_timm.create_dataset' in caplog.text


def test_the_number_of_kept_images_is_logged(tmp_path, caplog):
    for number, side in enumerate((10, 10, 10, 40)):
        (tmp_path / 'train' / 'ant').mkdir(parents=True, exist_ok=True)
        PIL.Image.new('RGB', (side, side)).save(tmp_path / 'train' / 'ant' / f'{number}.png')
    (tmp_path / 'train' / 'ant' / '0.png').write_bytes(b'')
    with caplog.at_level('INFO'):
        assert keep_decoded(create_dataset('', str(tmp_path), 'train', max_damaged=1.), 10 ** 5)
    assert '3 of 4 images are decoded' in caplog.text


def test_a_given_amount_is_used_if_free_memory_is_unknown(photos, monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda: 0)
    dataset = create_dataset('', str(photos), 'train')
    assert keep_decoded(dataset, 2 ** 30) and all(dataset.memory.get(index) for index in range(COUNT))
