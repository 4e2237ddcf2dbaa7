"""Data and runs for the tests, made on the spot: nothing is downloaded."""
import json
import logging
import os
import resource
import signal
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from timm.models import create_model
from timm.utils import random_seed
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as WorkersIterator

from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.training.output import log
from agmax_timm.weights.saved_model import SavedModel
from agmax_timm.weights.staging import stage
from tests.helpers import scale
from tests.helpers.flags import SMALL_VALIDATION
from tests.helpers.images import CLASSES, PER_CLASS, MemoryDataset, gradient_image
from tests.helpers.run_files import write_small_curves
from tests.helpers.slow import is_slow

# The same examples each time, at any speed of the machine.
settings.register_profile('suite', derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile('suite')


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if is_slow(item):
            item.add_marker('slow')


@pytest.fixture(autouse=True)
def restored_logging():
    """Undo what a run does to the root logger, which belongs to its process."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    for handler in set(logging.root.handlers) - set(handlers):
        logging.root.removeHandler(handler)
        handler.close()
    logging.root.setLevel(level)


@pytest.fixture(scope='session', autouse=True)
def small_curves():
    """Let runs write a small curves.png. A test of the curves calls the original function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, 'plot_curves', write_small_curves)
        yield


@pytest.fixture(autouse=True)
def end_workers():
    """Function: end loader workers that an exception's frames still refer to. It is called after each test.

    The garbage collector closes their queues before it tells them to end, and then waits 5 seconds for each.
    """
    begin, iterators = WorkersIterator.__init__, weakref.WeakSet()

    def recorded(iterator, loader):
        iterators.add(iterator)
        begin(iterator, loader)

    def end():
        for iterator in iterators:
            iterator._shutdown_workers()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkersIterator, '__init__', recorded)
        yield end
    end()


@pytest.fixture
def memory_path(tmp_path):
    """As tmp_path, in memory if there is such a file system. For tests that write very often."""
    if not os.access('/dev/shm', os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir='/dev/shm') as folder:
        yield Path(folder)


@pytest.fixture(scope='session')
def file_size_limit():
    """Function: a context in which files larger than this many bytes fail like on a full disk."""
    @contextmanager
    def limit(size):
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
    return limit


@pytest.fixture
def fixed_seed():
    random_seed(42)


@pytest.fixture(scope='session')
def memory_dataset():
    return MemoryDataset


@pytest.fixture(scope='session')
def gradient_dataset():
    """Function: a data set of `count` gradient images, always the same, with the index as target."""
    image = gradient_image(256, 256)
    return lambda count: MemoryDataset([image] * count)


@pytest.fixture(scope='session')
def colour_dataset():
    """Function: a data set of `count` images. They are red, green or blue for class 0, 1 or 2."""
    colours = [Image.new('RGB', (24, 20), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    return lambda count: MemoryDataset([colours[i % 3] for i in range(count)], [i % 3 for i in range(count)])


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    """Folder with the splits train and val, of class folders of gradient JPEGs of several sizes.

    The blue level of each is unique in its split: 20 * number + 10, number // PER_CLASS being the class.
    """
    root = tmp_path_factory.mktemp('photos')
    for split in ('train', 'val'):
        for number in range(PER_CLASS * len(CLASSES)):
            folder = root / split / CLASSES[number // PER_CLASS]
            folder.mkdir(parents=True, exist_ok=True)
            image = gradient_image(48 + 4 * (number % 3), 64 - 4 * (number % 2), 20 * number + 10)
            image.save(folder / f'{number:03d}.jpg', quality=95, subsampling=0)
    return root


@pytest.fixture(scope='session')
def photo_numbers():
    """Function: the numbers of the photos from which images [N, 3, H, W] in [0, 1] were cropped."""
    return lambda images: torch.floor(images[:, 2].mean((1, 2)).cpu() * 255 / 20).long()


@pytest.fixture(scope='session')
def train_once(photos, tmp_path_factory):
    """Function: the folder of a run of train.py with these flags on the photos, made once per session."""
    folders = {}

    def run(*argv):
        if argv not in folders:
            output = tmp_path_factory.mktemp('runs')
            handlers, level = list(logging.root.handlers), logging.root.level
            train_cli.main([
                str(photos), '--num-classes', '3', '-b', '4', '-j', '0', '--warmup-epochs', '0', '--lr', '0.05',
                '--output', str(output), '--experiment', 'run', *argv])
            for handler in set(logging.root.handlers) - set(handlers):  # a run leaves them to its process
                logging.root.removeHandler(handler)
                handler.close()
            logging.root.setLevel(level)
            folders[argv] = output / 'run'
        return folders[argv]
    return run


@pytest.fixture(scope='session')
def ema_run(train_once):
    """Folder of a run of four epochs with an EMA, in channels_last. The second epoch has the best top-1."""
    return train_once('--model', 'test_resnet', '--img-size', '32', '--agmax', '--smoothing', '0.1', '--epochs', '4',
                      '--sched', 'none', '--channels-last', '--model-ema', '--model-ema-decay', '0.5',
                      '--augment-backend', 'timm')


@pytest.fixture
def results_of(capsys):
    """Function: the results that validate.py prints for these arguments. It ends with this status."""
    def run(*words, status=0):
        capsys.readouterr()
        try:
            validate_cli.main([*SMALL_VALIDATION, *map(str, words)])
            ended = 0
        except SystemExit as end:
            ended = end.code
        captured = capsys.readouterr()
        assert ended == status, captured.err
        return json.loads(captured.out.split('--result\n')[1])
    return run


@pytest.fixture
def refusal(capsys):
    """Function: the one line of validate.py that refuses these arguments; `built`: after the model was built."""
    def run(*words, built=False):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            validate_cli.main([*map(str, words), *SMALL_VALIDATION])
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == '' and 'Traceback' not in captured.err
        assert built or 'param count' not in captured.err
        return captured.err.splitlines()[-1]
    return run


@pytest.fixture
def imagenet(photos, tmp_path):
    """Folder of photos with the names of ImageNet's validation set. Their order is not that of the folders."""
    numbers = np.random.default_rng(1).permutation(12) + 1
    for (folder, name), number in zip(((f'class{i % 3}', f'{i:03d}.jpg') for i in range(12)), numbers):
        path = tmp_path / 'imagenet' / 'val' / folder
        path.mkdir(parents=True, exist_ok=True)
        index = int(name[:3])
        source = sorted((photos / 'val').rglob('*.jpg'))[index]
        os.link(source, path / f'ILSVRC2012_val_{number:08d}.JPEG')
    return tmp_path / 'imagenet'


@pytest.fixture
def weights(tmp_path):
    """Function: the path of a file of random weights, and the model that has them."""
    def make(name='test_resnet', num_classes=3, seed=3, file='weights.pth', **kwargs):
        random_seed(seed)
        model = create_model(name, num_classes=num_classes, **kwargs).eval()
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # predictions that differ from image to image
        torch.save(model.state_dict(), tmp_path / file)
        return str(tmp_path / file), model
    return make


@pytest.fixture(scope='session')
def make_saved(tmp_path_factory):
    """Function: a SavedModel like that of a run on the photos, with random weights; arguments replace its fields."""
    run_dir = tmp_path_factory.mktemp('run')
    (run_dir / 'summary.csv').write_text('epoch,eval_top1\n0,66.6667\n')
    Image.new('RGB', (8, 8)).save(run_dir / 'curves.png')
    options = dict(
        model='test_resnet', agmax=True, agmax_weight=1.0, epochs=3, batch_size=4, lr=0.05, val_split='val', opt='sgd',
        num_classes=3, img_size=32, data='/home/secret/photos', data_dir='/home/secret/photos', output='/home/secret',
        device='cpu', rank=0, world_size=1, scale=[0.08, 1.0], clip_grad=None)

    def make(architecture='test_resnet', num_classes=3, size=32, **fields):
        random_seed(7)
        saved = SavedModel(
            architecture, {}, num_classes,
            data_config=dict(input_size=(fields.get('in_chans', 3), size, size), interpolation='bilinear',
                             mean=(0.4,) * fields.get('in_chans', 3), std=(0.3,) * fields.get('in_chans', 3),
                             crop_pct=0.9, crop_mode='center'),
            **{**dict(class_names=['ant', 'bee', 'cat'] if num_classes == 3 else None, options=options,
                      metrics=dict(top1=66.666667, top5=100., loss=1.25, epoch=2),
                      versions=dict(agmax_timm='0.1', timm='1.0.31'), source='best', run_dir=str(run_dir)), **fields})
        model = create_model(
            architecture, num_classes=num_classes, in_chans=saved.in_chans, global_pool=saved.global_pool,
            **saved.model_args)
        saved.state_dict = model.state_dict()
        return saved
    return make


@pytest.fixture(scope='session')
def saved(make_saved):
    return make_saved()


@pytest.fixture(scope='session')
def staged(saved, tmp_path_factory):
    """The folder into which `saved` was staged. For tests that only read it."""
    folder = tmp_path_factory.mktemp('staged') / 'hub'
    stage(saved, folder)
    return folder


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """Folder with the splits train and val of random images in class folders; no number of ranks divides val."""
    root = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for split, count in (('train', scale.TRAIN_IMAGES), ('val', scale.EVAL_IMAGES)):
        for number in range(count):
            folder = root / split / 'abcdefgh'[number % scale.CLASSES]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{number:03d}.png')
    return root


@pytest.fixture
def hangup():
    """Let SIGHUP have its default handler, also under nohup, and restore the one before."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
