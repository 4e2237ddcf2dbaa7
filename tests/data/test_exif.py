"""--exif-orientation: rotated images are trained on, evaluated and predicted as upright."""
import csv
import json
import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from agmax_timm import export
from agmax_timm.base.errors import OptionError
from agmax_timm.commands import train as train_cli
from agmax_timm.data.sources.dataset_factory import create_dataset
from agmax_timm.evaluation.evaluated_model import open_split
from agmax_timm.evaluation.prediction import Predictor, options_of
from agmax_timm.options.parse import parse_train_args, parse_validate_args, validate_options
from tests.helpers.images import gradient_image
from tests.helpers.predictions import logits_of
from tests.helpers.shards import add_file


def stored(image, orientation):
    """The image as a camera stores it, and its EXIF data. PIL rotates it back."""
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE, **inverse}
    exif = Image.Exif()
    exif[274] = orientation
    return image.transpose(turns[orientation]) if orientation in turns else image, exif


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The same images upright and rotated, in train and val."""
    roots = [tmp_path_factory.mktemp(name) for name in ('upright', 'turned')]
    for split in ('train', 'val'):
        for number in range(16):
            image = gradient_image(40, 56, 10 * number + 5)
            turned, exif = stored(image, number % 8 + 1)
            assert np.array_equal(ImageOps.exif_transpose(with_exif(turned, exif)), image)
            for root, picture, words in zip(roots, (image, turned), ({}, {'exif': exif})):
                folder = root / split / ('ant', 'bee')[number % 2]
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f'{number:02d}.png', **words)
    return roots


def with_exif(image, exif):
    image = image.copy()
    image.info['exif'] = exif.tobytes()
    return image


def images_of(dataset):
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return [np.asarray(image) for image, _ in dataset]
    return [np.asarray(dataset[index][0]) for index in range(len(dataset))]


def as_kind(kind, folder, tmp_path):
    """The name and root of a data set of the training images in a folder."""
    if kind == 'folder':
        return '', folder
    files = sorted((folder / 'train').rglob('*.png'))
    if kind == 'tar':
        with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
            tar.add(folder / 'train', arcname='.')
        return '', tmp_path / 'x.tar'
    if kind == 'wds':
        with tarfile.open(tmp_path / 'train-0.tar', 'w') as tar:
            for number, file in enumerate(files):
                add_file(tar, f'{number:04d}.png', file.read_bytes())
                add_file(tar, f'{number:04d}.cls', b'0')
        split = dict(name='train', filenames=['train-0.tar'], shard_lengths=[len(files)], num_samples=len(files))
        (tmp_path / '_info.json').write_text(json.dumps({'splits': {'train': split}}))
        return 'wds/x', tmp_path
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['ant', 'bee'])})
    columns = {'image': list(map(str, files)), 'label': [0] * len(files)}
    (tmp_path / 'parquet').mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / 'parquet' / 'train.parquet')
    return f"hfds/{tmp_path / 'parquet'}", tmp_path / 'cache'


@pytest.mark.parametrize('kind', ['folder', 'tar', 'wds', 'hfds'])
def test_images_of_every_kind_of_data_are_rotated_back(folders, kind, tmp_path):
    upright, turned = folders
    expected = images_of(create_dataset('', str(upright), 'train'))
    name, root = as_kind(kind, turned, tmp_path)
    found = images_of(create_dataset(name, str(root), 'train', exif_orientation=True))
    assert len(found) == len(expected) and all(map(np.array_equal, found, expected))
    stored_images = images_of(create_dataset(name, str(root), 'train'))
    assert sum(map(np.array_equal, stored_images, expected)) == 2


@pytest.mark.parametrize('parse', [parse_train_args, parse_validate_args])
def test_data_decoded_by_torchvision_refuses_the_flag(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse(['x', '--dataset', 'torch/mnist', '--exif-orientation'])
    assert end.value.code == 2
    assert re.search('--exif-orientation .*--dataset .*torch/mnist.*: drop it', capsys.readouterr().err)


@pytest.fixture(scope='module')
def runs(folders, tmp_path_factory):
    """Runs on the upright images, and on the rotated ones with the flag, by backend."""
    output, found = tmp_path_factory.mktemp('runs'), {}
    for backend in ('timm', 'fast'):
        for root, words in zip(folders, ([], ['--exif-orientation'])):
            name = f'{backend}-{root.name}'
            train_cli.main([str(root), '--val-split', 'val', '--model', 'test_resnet', '--img-size', '32', '-j', '0',
                            '-b', '4', '--epochs', '1', '--warmup-epochs', '0', '--lr', '0.05', '--agmax',
                            '--augment-backend', backend, '--output', str(output), '--experiment', name, *words])
            found.setdefault(backend, []).append(output / name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['timm', 'fast'])
def test_a_run_equals_one_on_upright_images(runs, folders, results_of, backend):
    rows = [list(csv.DictReader((folder / 'summary.csv').open())) for folder in runs[backend]]
    for name in ('train_loss', 'eval_loss', 'eval_top1'):
        assert rows[0][0][name] == rows[1][0][name]
    checkpoints = [folder / 'last.pth.tar' for folder in runs[backend]]
    words = ['--split', 'val', '--checkpoint']
    results = [results_of(root, *words, file) for root, file in zip(folders, checkpoints)]  # from the checkpoint
    assert results[0]['loss'] == results[1]['loss'] == pytest.approx(float(rows[0][0]['eval_loss']), abs=1e-6)
    assert results_of(folders[1], *words, checkpoints[0])['loss'] != results[0]['loss']


def test_tf_preprocessing_refuses_the_flag(folders):
    options = validate_options(data_dir=str(folders[1]), split='val', exif_orientation=True, tf_preprocessing=True)
    with pytest.raises(OptionError, match='--tf-preprocessing decodes images itself, without --exif-orientation'):
        open_split(options, {'input_size': (3, 32, 32)})


@pytest.mark.slow
def test_predictions_equal_those_of_upright_images(runs, folders):
    logits = []
    for root, folder in zip(folders, runs['timm']):
        predictor = Predictor(options_of(str(folder / 'last.pth.tar'), device='cpu', workers=0))
        logits.append(logits_of(predictor, sorted(map(str, (root / 'val').rglob('*.png')))))
    assert logits[0].equal(logits[1])


@pytest.mark.slow
def test_a_published_model_states_the_orientation(runs, folders, tmp_path, caplog, capsys, results_of):
    with caplog.at_level('INFO'):
        export.main([str(runs['timm'][1]), str(tmp_path / 'staged'), '--license', 'mit'])
    assert 'timm does not turn images' in caplog.text
    assert 'logits of the run on 16 validation images' in caplog.text
    config = json.loads((tmp_path / 'staged' / 'config.json').read_text())
    assert config['pretrained_cfg']['notes'] == ['exif_orientation']
    card = (tmp_path / 'staged' / 'README.md').read_text()
    assert "ImageOps.exif_transpose(Image.open('image.jpg'))" in card and ' --exif-orientation' in card
    results = results_of(folders[1], '--split', 'val', '--model', f"local-dir:{tmp_path / 'staged'}", '--pretrained')
    expected = results_of(folders[1], '--split', 'val', '--checkpoint', runs['timm'][1] / 'model_best.pth.tar')
    assert results['loss'] == expected['loss']
