"""Images from files: pixels as in timm except for 16 bits, and what happens to files that are not images."""
import io
import os
import random
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils import random_seed

from agmax_timm.base.errors import DamagedError, DataError
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.data.sources.decoding import UndecodableError, decode, why_undecodable
from agmax_timm.evaluation.prediction import _Files

HEIGHT, WIDTH = 24, 20


def noise(channels=3, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    shape = (HEIGHT, WIDTH, channels)[:3 if channels > 1 else 2]
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


def encoded(image, format='PNG', **kwargs):
    file = io.BytesIO()
    image.save(file, format, **kwargs)
    return file.getvalue()


def pixels(content, mode='RGB'):
    return np.asarray(decode(io.BytesIO(content), mode))


def png_chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(width, height, depth, colour, rows):
    """A PNG that PIL cannot write, of bytes [height, bytes of a row]."""
    data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(b'IDAT', data) + png_chunk(b'IEND', b'')


def bomb():
    """A PNG of 400 million pixels in 60 bytes."""
    return png(20000, 20000, 8, 0, [])


JPEG, PNG = encoded(Image.fromarray(noise()), 'JPEG'), encoded(Image.fromarray(noise()))
ZOO = {
    'empty.jpg': b'',
    'text.jpg': b'this is a note, not a photograph',
    'html.png': b'<!doctype html><title>404</title>',
    'zeros.jpg': bytes(4096),
    'one_byte.jpg': b'\xff',
    'signature.png': PNG[:8],
    'header.jpg': JPEG[:20],
    'half.jpg': JPEG[:len(JPEG) // 2],
    'last_bytes.jpg': JPEG[:-40],
    'half.png': PNG[:len(PNG) // 2],
    'checksum.png': PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    'header_checksum.png': PNG[:20] + b'\xff' + PNG[21:],
    'garbage.png': PNG[:45] + bytes(random.Random(0).randbytes(len(PNG) - 45)),
    'bomb.png': bomb(),
    'text_bomb.png': PNG[:33] + png_chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10 ** 7))) + PNG[33:],
    'archive.jpg': b'PK\x03\x04' + bytes(100),
    'gif.jpg': encoded(Image.fromarray(noise()[..., 0]), 'GIF')[:100],
    'tiff.jpg': encoded(Image.fromarray(noise()), 'TIFF')[:300],
    'webp.jpg': encoded(Image.fromarray(noise()), 'WEBP')[:100],
    'bmp.jpg': encoded(Image.fromarray(noise()), 'BMP')[:200],
}


@pytest.fixture
def folder(tmp_path):
    """Folder of classes a and b with five valid images each. The pixels contain class and number."""
    for label in 'ab':
        (tmp_path / label).mkdir()
        for number in range(5):
            Image.new('RGB', (8, 8), (ord(label), number, 0)).save(tmp_path / label / f'{number}.png')
    return tmp_path


def opened(folder, **kwargs):
    return create_dataset('', str(folder), 'train', **kwargs)


def number_of(sample):
    """Class, number and label of a sample of `folder`."""
    red, green, _ = sample[0].getpixel((0, 0))
    return chr(red), green, sample[1]


# Pixels: each against arithmetic on the array that was written.

def test_eight_bit_images_have_the_pixels_that_were_written():
    array = noise()
    assert (pixels(encoded(Image.fromarray(array))) == array).all()
    gray = array[..., 0]
    assert (pixels(encoded(Image.fromarray(gray))) == gray[..., None].repeat(3, 2)).all()
    assert (pixels(encoded(Image.fromarray(gray)), 'L') == gray).all()


def test_rgb_to_gray_is_the_luma_of_itu_601():
    array = noise().astype(int)
    expected = (array @ [19595, 38470, 7471] + 0x8000) >> 16
    assert (pixels(encoded(Image.fromarray(noise())), 'L') == expected).all()


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_of_gray_become_the_upper_eight(format, mode):
    array = noise(1, np.uint16)
    content = encoded(Image.fromarray(array), format)
    expected = array // 256 if mode == 'L' else (array // 256)[..., None].repeat(3, 2)
    assert (pixels(content, mode) == expected).all()
    assert Image.open(io.BytesIO(content)).mode in ('I;16', 'I')


def test_big_endian_sixteen_bits_become_the_upper_eight():
    array = noise(1, np.uint16)
    content = encoded(Image.frombytes('I;16B', (WIDTH, HEIGHT), array.astype('>u2').tobytes()), 'TIFF')
    assert Image.open(io.BytesIO(content)).mode == 'I;16B'
    assert (pixels(content, 'L') == array >> 8).all()


@pytest.mark.parametrize('mode', ['I', 'F', 'I;16', None, ''])
def test_modes_of_sixteen_bits_or_more_keep_sixteen_bits(mode):
    array = noise(1, np.uint16)
    assert (pixels(encoded(Image.fromarray(array)), mode) == array).all()


def test_sixteen_bits_of_colour_or_of_gray_with_alpha_become_the_upper_eight():
    for channels, colour in ((3, 2), (4, 6), (2, 4)):
        array = noise(channels, np.uint16)
        content = png(WIDTH, HEIGHT, 16, colour, array.astype('>u2').reshape(HEIGHT, -1))
        upper = (array >> 8)[..., :3] if channels > 2 else (array >> 8)[..., :1].repeat(3, 2)
        assert (pixels(content) == upper).all()


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_thirty_two_bits_are_clipped(dtype):
    array = np.linspace(-300, 600, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)
    content = encoded(Image.fromarray(array), 'TIFF')
    assert (pixels(content, 'L') == np.clip(array, 0, 255).astype(np.uint8)).all()  # fractions are cut


def test_cmyk_is_converted_as_ink_on_white():
    array = noise(4)
    image = Image.frombytes('CMYK', (WIDTH, HEIGHT), array.tobytes())
    ink, key = array[..., :3].astype(float), array[..., 3:].astype(float)
    expected = (255 - ink) * (255 - key) / 255
    assert np.abs(pixels(encoded(image, 'TIFF')) - expected).max() <= 1


def test_inverted_cmyk_of_adobe_is_inverted_again():
    """PIL writes CMYK JPEGs inverted and with Adobe's marker, as Photoshop does."""
    content = encoded(Image.new('CMYK', (WIDTH, HEIGHT), (200, 10, 60, 30)), 'JPEG', quality=100)
    assert b'Adobe' in content
    expected = [(255 - ink) * (255 - 30) / 255 for ink in (200, 10, 60)]
    assert np.abs(pixels(content) - expected).max() <= 3


@pytest.mark.parametrize('transparency', [None, 3, bytes(range(256))])
def test_palette_images_have_their_colours_also_where_transparent(transparency):
    indices, palette = noise(1, seed=1), noise()[:16, :16].reshape(256, 3)
    image = Image.fromarray(indices).copy()
    image.putpalette(palette.tobytes())
    kwargs = {} if transparency is None else dict(transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PIL on transparency
        assert (pixels(encoded(image, **kwargs)) == palette[indices]).all()


def test_alpha_is_dropped():
    array = noise(4)
    assert (pixels(encoded(Image.fromarray(array))) == array[..., :3]).all()
    gray_alpha = Image.merge('LA', [Image.fromarray(noise(1, seed=seed)) for seed in (1, 2)])
    assert (pixels(encoded(gray_alpha)) == noise(1, seed=1)[..., None].repeat(3, 2)).all()


def test_one_bit_is_black_and_white():
    bits = noise(1) > 127
    assert (pixels(encoded(Image.fromarray(bits))) == 255 * bits[..., None].repeat(3, 2)).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied_if_asked_for(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    deep = (np.arange(600).reshape(20, 30) * 100).astype(np.uint16)
    for image, kind in ((noise(), 'PNG'), (noise(), 'JPEG'), (noise(1), 'JPEG'), (deep, 'PNG')):
        content = encoded(Image.fromarray(image), kind, exif=exif)
        as_stored = decode(io.BytesIO(content))
        with_exif = as_stored.copy()
        with_exif.info['exif'] = exif.tobytes()
        expected = np.asarray(ImageOps.exif_transpose(with_exif))
        assert np.array_equal(decode(io.BytesIO(content), exif_orientation=True), expected)
        assert np.array_equal(expected, as_stored) == (orientation == 1)
    assert (pixels(encoded(Image.fromarray(noise()), exif=exif)) == noise()).all()


def test_damaged_exif_data_has_no_effect():
    content = encoded(Image.fromarray(noise()), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\xff\xffgarbage')
    assert np.array_equal(decode(io.BytesIO(content), exif_orientation=True), decode(io.BytesIO(content)))


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(noise(1, seed=seed)) for seed in (1, 2)]
    content = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert (pixels(content, 'L') == noise(1, seed=1)).all()


@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'GIF', 'BMP'])
def test_the_ending_of_a_file_name_may_be_that_of_another_format(format, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '0.jpg').write_bytes(encoded(Image.new('RGB', (8, 8), (255, 255, 255)), format))
    assert opened(tmp_path)[0][0].getpixel((0, 0)) == (255, 255, 255)


# Good data: timm's images and random draws.

def test_valid_images_and_random_draws_equal_those_of_timm(photos):
    def transform(image):
        return torch.rand(3), random.random(), np.random.rand(), image.mode, image.tobytes()

    def draws(dataset):
        random_seed(3)
        dataset.transform = transform
        return [dataset[index] for index in (4, 0, 11, 4)]

    root = str(photos / 'train')
    theirs = ImageDataset(root, reader=ReaderImageFolder(root), target_transform=str)
    ours = create_dataset('', str(photos), 'train', target_transform=str)
    for (mine, label), (timms, timms_label) in zip(draws(ours), draws(theirs)):
        assert label == timms_label and mine[1:] == timms[1:] and torch.equal(mine[0], timms[0])


# What cannot be decoded.

@pytest.mark.parametrize('name', ZOO)
def test_files_that_are_not_images_are_refused_with_one_reason(name, tmp_path):
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(ZOO[name]))
    reason = str(caught.value)
    assert reason and '\n' not in reason and 'object at' not in reason
    (tmp_path / name).write_bytes(ZOO[name])
    assert why_undecodable(_Files([str(tmp_path / name)]), 0) == reason
    assert (name == 'empty.jpg') == (reason == 'empty file')


@pytest.mark.parametrize('name', ZOO)
def test_training_replaces_a_damaged_image_by_the_next_one(name, folder):
    (folder / 'a' / '2.png').write_bytes(ZOO[name])
    dataset = opened(folder, max_damaged=0.1)
    assert number_of(dataset[2]) == ('a', 3, 0)
    assert dataset.damage.indices() == [2] and dataset.damage.count() == 1
    assert [number_of(dataset[i])[1] for i in range(len(dataset))] == [0, 1, 3, 3, 4, 0, 1, 2, 3, 4]
    assert dataset.damage.count() == 1


@pytest.mark.parametrize('name', ZOO)
def test_evaluation_refuses_a_damaged_image_with_its_path(name, folder):
    path = folder / 'b' / '4.png'
    path.write_bytes(ZOO[name])
    dataset = opened(folder)
    with pytest.raises(DataError, match='^[^\n]*$') as caught:
        dataset[9]
    assert str(caught.value).startswith(f"'{path}' cannot be decoded: ") and '--check-data' in str(caught.value)


@pytest.mark.filterwarnings('ignore')  # PIL's, on metadata
def test_random_damage_gives_an_image_or_an_undecodable_error():
    generator = random.Random(0)
    good = [JPEG, PNG, *(encoded(Image.fromarray(noise()), kind) for kind in ('GIF', 'TIFF', 'WEBP', 'BMP', 'PPM'))]
    outcomes = []
    for _ in range(400):
        content = bytearray(generator.choice(good))
        for _ in range(generator.choice((1, 4, 20))):
            content[generator.randrange(min(len(content), 200))] = generator.randrange(256)
        try:
            assert decode(io.BytesIO(content)).mode == 'RGB'
            outcomes.append(True)
        except UndecodableError:
            outcomes.append(False)
    assert 50 < sum(outcomes) < 350


@pytest.mark.parametrize('problem, reason', [
    ('gone', 'No such file or directory'), ('dangling', 'No such file or directory'), ('folder', 'Is a directory'),
    ('forbidden', 'Permission denied'),
])
def test_files_that_cannot_be_opened_count_as_damaged(problem, reason, folder, monkeypatch):
    path = folder / 'a' / '1.png'
    dataset = opened(folder, max_damaged=0.1)
    path.unlink()
    if problem == 'dangling':
        path.symlink_to(folder / 'nothing')
        dataset = opened(folder, max_damaged=0.1)
    elif problem == 'folder':
        path.mkdir()
    elif problem == 'forbidden':  # the tests may run as root, who is never refused
        def refused(_):
            raise PermissionError(13, reason, str(path))
        read = type(dataset.reader).__getitem__
        monkeypatch.setattr(type(dataset.reader), '__getitem__',
                            lambda self, index: refused(index) if index == 1 else read(self, index))
    assert number_of(dataset[1]) == ('a', 2, 0) and dataset.damage.indices() == [1]
    dataset.damage.max_share = None
    with pytest.raises(DamagedError, match=f"^'{path}' cannot be decoded: {reason}:"):
        dataset[1]


def test_a_large_image_gives_no_warning_and_a_much_larger_one_is_refused(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', HEIGHT * WIDTH - 1)  # PIL warns here, and raises at twice that
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (pixels(PNG) == noise()).all()
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(UndecodableError, match='bomb'):
        decode(io.BytesIO(PNG))


def test_lack_of_memory_is_not_treated_as_damage(folder, monkeypatch):
    def exhausted(*_):
        raise MemoryError
    monkeypatch.setattr(Image, 'open', exhausted)
    with pytest.raises(MemoryError):
        opened(folder, max_damaged=1.)[0]


def test_an_error_of_the_transform_is_not_treated_as_damage(folder):
    dataset = opened(folder, max_damaged=1.)
    dataset.transform = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        dataset[0]
    assert not dataset.damage.count()


def test_a_damaged_last_image_is_replaced_by_the_first_and_its_label(folder):
    (folder / 'b' / '4.png').write_bytes(b'')
    dataset = opened(folder, max_damaged=0.1)
    assert number_of(dataset[9]) == ('a', 0, 0) and number_of(dataset[-1]) == ('a', 0, 0)
    assert dataset.damage.indices() == [9]


def test_many_damaged_images_in_a_row_are_replaced(folder):
    for number in range(5, 25):
        (folder / 'a' / f'{number}.png').write_bytes(b'')
    dataset = opened(folder, max_damaged=0.9)
    assert number_of(dataset[5]) == ('b', 0, 1) and dataset.damage.indices() == list(range(5, 25))


def test_a_deferred_check_is_done_after_100_damaged_images_in_a_row(folder):
    """As if the disk was disconnected: the reading of all the data in search of an image is not waited for."""
    for number in range(5, 250):
        (folder / 'a' / f'{number}.png').write_bytes(b'')
    (folder / 'a' / '104.png').write_bytes(PNG)
    dataset = opened(folder, max_damaged=0.1)
    dataset.damage.deferred = True
    assert dataset[5][0].size == (WIDTH, HEIGHT) and dataset.damage.indices() == list(range(5, 104))
    with pytest.raises(DamagedError, match='^199 of 255 samples .* cannot be decoded, more than --max-damaged 0.1'):
        dataset[105]
    assert dataset.damage.indices() == [*range(5, 104), *range(105, 205)]


def test_data_with_only_damaged_images_is_refused(folder):
    for path in folder.glob('*/*.png'):
        path.write_bytes(b'')
    with pytest.raises(DamagedError, match='none of the 10 samples'):
        opened(folder, max_damaged=1.)[3]


@pytest.mark.parametrize('max_damaged, allowed', [(0., 0), (0.1, 1), (0.19, 1), (0.2, 2), (1., 3)])
def test_more_damaged_images_than_max_damaged_are_refused(max_damaged, allowed, folder):
    dataset = opened(folder, max_damaged=max_damaged)
    for number in range(3):
        (folder / 'a' / f'{number}.png').write_bytes(b'')
    for number in reversed(range(3)):  # one more damaged sample each time
        if 3 - number <= allowed:
            dataset[number]
            continue
        with pytest.raises(DamagedError) as caught:
            dataset[number]
        assert all(part in str(caught.value) for part in (
            f'{3 - number} of 10 samples', f'--max-damaged {max_damaged:g}', f'a/{number}.png', '--check-data'))
        break


def test_damaged_images_in_tar_files_are_replaced_or_refused(folder):
    (folder / 'a' / '2.png').write_bytes(ZOO['half.png'])
    path = folder / 'data.tar'
    with tarfile.open(path, 'w') as tar:
        for label in 'ab':
            tar.add(folder / label, arcname=label)
    dataset = create_dataset('', str(path), 'train', max_damaged=0.1)
    assert number_of(dataset[2]) == ('a', 3, 0) and dataset.damage.path(2) == 'a/2.png'
    with pytest.raises(DamagedError, match="^'a/2.png' cannot be decoded"):
        create_dataset('', str(path), 'train')[2]
    whole = create_dataset('', str(path), 'train', max_damaged=1.)
    os.truncate(path, whole.reader.samples[9][0].offset_data + 10)  # after it was listed
    assert number_of(whole[9]) == ('a', 0, 0) and whole.damage.indices() == [9]


def test_torch_image_folder_names_a_damaged_file(folder):
    (folder / 'a' / '2.png').write_bytes(b'')
    with pytest.raises(DamagedError, match=f"{folder}/a/2.png' cannot be decoded"):
        create_dataset('torch/image_folder', str(folder), 'train')[2]


# What a data set remembers of it.

def test_indices_of_damaged_images_can_be_saved_and_restored(folder):
    damage, other = opened(folder, max_damaged=1.).damage, opened(folder, max_damaged=1.).damage
    damage.record(7, 'x')
    damage.record(2, 'x')
    assert damage.indices() == [2, 7] and damage.take_new() == [2, 7] and damage.take_new() == []
    other.restore(damage.indices())
    other.restore([])
    assert other.indices() == [2, 7] and other.count() == 2
    damage.record(2, 'x')
    damage.record(3, 'x')
    assert damage.take_new() == [3]
    other.restore([0, 10])  # the data has fewer samples than it had
    assert other.indices() == [0, 2, 7]


def identity_loader(dataset, workers, **kwargs):
    dataset.transform = np.array
    return torch.utils.data.DataLoader(dataset, 2, num_workers=workers, **kwargs)


@pytest.mark.parametrize('workers, persistent, context', [
    (0, False, None), (2, False, 'fork'), (2, True, 'fork')])
def test_workers_report_damaged_images_to_the_main_process(workers, persistent, context, folder):
    for name in ('a/1.png', 'b/3.png'):
        (folder / name).write_bytes(b'')
    dataset = opened(folder, max_damaged=0.5)
    loader = identity_loader(dataset, workers, persistent_workers=persistent, multiprocessing_context=context)
    for late in ('a/4.png', None):
        targets = torch.cat([target for _, target in loader]).tolist()
        assert targets.count(0) == (5 if late else 4)
        if late:
            assert dataset.damage.indices() == [1, 8]
            (folder / late).write_bytes(b'')
    assert dataset.damage.indices() == [1, 4, 8]


def test_a_data_set_sent_to_another_process_shares_its_damage(folder):
    """Workers that are spawned get it in this way: pickled by torch's rules."""
    dataset, queue = opened(folder, max_damaged=1.), torch.multiprocessing.get_context('fork').Queue()
    queue.put(dataset)
    queue.get().damage.record(3, 'x')
    assert dataset.damage.indices() == [3]


@pytest.mark.parametrize('max_damaged', [None, 0.])
def test_an_error_of_a_worker_is_one_line(max_damaged, folder):
    (folder / 'a' / '3.png').write_bytes(b'')
    with pytest.raises(DamagedError) as caught:
        list(identity_loader(opened(folder, max_damaged=max_damaged), 2))
    assert '\n' not in str(caught.value) and f'{folder}/a/3.png' in str(caught.value)
    assert str(caught.value).startswith((f"'{folder}", '1 of 10 samples (10.00%)'))
