"""timm's readers, and datasets and webdataset beneath them: data that is read through `wds/`, `hfds/` and tar files."""
import io
import json
import random
import tarfile

import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.class_map import remap_target
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

COUNT = 3


def add_file(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def png():
    file = io.BytesIO()
    Image.new('RGB', (4, 4)).save(file, 'PNG')
    return file.getvalue()


@pytest.fixture
def wds_reader(tmp_path):
    """timm's reader of two equal shards for training, by its keyword arguments."""
    pytest.importorskip('webdataset')
    names = ['a.tar', 'b.tar']
    for name in names:
        with tarfile.open(tmp_path / name, 'w') as tar:
            for number in range(COUNT):
                add_file(tar, f'{name[0]}{number}.png', png())
                add_file(tar, f'{name[0]}{number}.cls', b'%d' % number)
    split = dict(name='train', filenames=names, shard_lengths=[COUNT, COUNT], num_samples=2 * COUNT)
    (tmp_path / '_info.json').write_text(json.dumps({'splits': {'train': split}}))

    def create(**kwargs):
        kwargs = dict(split='train', is_training=True, batch_size=2, **kwargs)
        return create_dataset('wds/x', root=str(tmp_path), **kwargs).reader
    return create


def test_fields_of_the_shard_reader(wds_reader):
    """wds/: data/sources/shards.py checks shards, and shares an evaluation among ranks, by these fields."""
    reader = wds_reader()
    assert reader.split_info.filenames == ('a.tar', 'b.tar') and reader.split_info.shard_lengths == (COUNT, COUNT)
    assert reader.split_info.alt_label == ''
    assert (reader.dist_rank, reader.dist_num_replicas, reader.num_samples) == (0, 1, 2 * COUNT)
    assert (reader.target_key, reader.target_keys, reader.remap_class) == (None, None, False)
    assert reader.input_img_mode == 'RGB' and reader.is_training and reader.batch_size == 2
    assert reader.class_to_idx == {} and reader._source_names == {}
    reader.set_loader_cfg(num_workers=2)
    assert len(reader) == 2 * 4  # whole batches of each worker
    reader.set_epoch(3)


def test_the_pipeline_of_shards_is_made_on_first_use(wds_reader):
    """wds/: data/sources/labels.py puts a check of labels before timm's decoding, second to last in the pipeline, when
    ReaderWds._lazy_init() has made it."""
    import webdataset
    reader = wds_reader()
    assert reader.ds is None
    seen = []

    def lazy_init():
        type(reader)._lazy_init(reader)
        reader.ds.pipeline.insert(-2, webdataset.map(lambda sample: seen.append(sample) or sample))

    reader._lazy_init = lazy_init
    image, label = next(iter(reader))
    assert isinstance(image, Image.Image) and label in range(COUNT)
    assert seen and {'__key__', '__url__', 'png', 'cls'} <= seen[0].keys() and isinstance(seen[0]['cls'], bytes)


def test_the_generator_that_shuffles_samples(wds_reader):
    """--resume within an epoch of wds/: shuffle_generator() in data/sources/shards.py finds the generator of the
    samples' order by the name `rng`."""
    reader = wds_reader()
    reader._lazy_init()
    generators = [stage.kw['rng'] for stage in reader.ds.pipeline if 'rng' in getattr(stage, 'kw', ())]
    assert len(generators) == 1 and isinstance(generators[0], random.Random)
    before = generators[0].getstate()
    assert len(list(reader)) == 2 * COUNT
    assert generators[0].getstate() != before


@pytest.fixture
def parquet(tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['ant', 'bee'])})
    columns = {'image': [Image.new('RGB', (4, 4))] * 2, 'label': [0, 1]}
    folder = tmp_path / 'data'
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / 'train-00000.parquet')
    return folder


def test_fields_of_the_readers_of_hugging_face_data(parquet, tmp_path):
    """hfds/ and hfids/: data/sources/labels.py checks a column of labels, shards.py counts shards, classes.py names
    classes, and decoding.py finds missing images, by these fields of timm's readers and of datasets."""
    kwargs = dict(root=str(tmp_path / 'cache'), split='train', input_key='image', target_key='label')
    reader = create_dataset(f'hfds/{parquet}', **kwargs).reader
    assert (reader.label_key, reader.split, reader.remap_class) == ('label', 'train', False)
    assert reader.class_to_idx == {'ant': 0, 'bee': 1} and reader._source_names == {0: 'ant', 1: 'bee'}
    assert remap_target(1, {'bee': 5}, reader._source_names) == 5
    assert reader.dataset[0][reader.image_key].keys() == {'bytes', 'path'}
    column = reader.dataset.with_format('arrow')['label']
    assert column.null_count == 0 and str(column.type) == 'int64'
    assert list(reader.dataset.select_columns(['label'])) == [{'label': 0}, {'label': 1}]
    reader = create_dataset(f'hfids/{parquet}', **kwargs).reader
    assert (reader.num_samples, reader.download, reader.dist_num_replicas) == (2, False, 1)
    assert reader.builder.as_streaming_dataset(split='train').num_shards == 1
    assert reader.input_img_mode == 'RGB'


def test_fields_of_the_tar_reader(tmp_path):
    """Tar files with hidden files: data/sources/dataset_factory.py leaves these out of ReaderImageInTar's index."""
    with tarfile.open(tmp_path / 'images.tar', 'w') as tar:
        for name in 'b/1.png', 'a/1.png', 'a/2.png':
            add_file(tar, name, png())
    reader = ReaderImageInTar(str(tmp_path / 'images.tar'))
    assert [member.path for member, *_ in reader.samples] == ['a/1.png', 'a/2.png', 'b/1.png']
    assert reader.targets.tolist() == [0, 0, 1]
    assert reader.class_name_to_idx == {'a': 0, 'b': 1} and reader.class_idx_to_name == {0: 'a', 1: 'b'}
    reader.samples, reader.targets = reader.samples[1:], reader.targets[1:]
    assert len(reader) == 2 and reader[1][1] == 1 and reader.filename(0) == 'a/2.png'


def test_data_sets_have_their_reader_as_an_attribute():
    """All data of timm's factory: data/sources/decoding.py makes its own data sets from these attributes."""
    from timm.data import ImageDataset, IterableImageDataset
    dataset = ImageDataset('', reader=[(io.BytesIO(png()), 7)])
    assert (dataset.load_bytes, dataset.input_img_mode, dataset.transform, dataset.target_transform,
            dataset.additional_features) == (False, 'RGB', None, None, None)
    assert dataset[0][1] == 7
    dataset = IterableImageDataset('', reader=[(1, 2)], transform=str, target_transform=torch.tensor)
    assert dataset.reader == [(1, 2)] and dataset.transform is str and dataset.target_transform is torch.tensor
