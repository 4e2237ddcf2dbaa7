"""Data sets of a few images in shards: tar files for webdataset, parquet files for datasets."""
import io
import itertools
import json
import tarfile

import datasets
from PIL import Image

from tests.helpers.images import CLASSES

# Uneven, and the last reader of four has the least.
LENGTHS = {'train': (6, 5, 4, 3), 'val': (7, 3, 2, 1)}


def photo(number):
    """Return an image whose gray level is its number."""
    return Image.new('RGB', (18, 16), (8 * number + 4,) * 3)


def parts(lengths):
    """The sample numbers of each shard."""
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths)]


def add_file(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(folder):
    """Write both splits to one folder, with timm's _info.json. A sample has a .cls and a .json file with classes."""
    splits = {}
    for split, lengths in LENGTHS.items():
        names = [f'{split}-{shard}.tar' for shard in range(len(lengths))]
        for name, part in zip(names, parts(lengths)):
            with tarfile.open(folder / name, 'w') as tar:
                for number in part:
                    data = io.BytesIO()
                    photo(number).save(data, 'PNG')
                    add_file(tar, f'{number:04d}.png', data.getvalue())
                    add_file(tar, f'{number:04d}.cls', b'%d' % (number % 3))
                    add_file(tar, f'{number:04d}.json', json.dumps({'other': (number + 1) % 3}).encode())
        splits[split] = dict(name=split, filenames=names, shard_lengths=lengths, num_samples=sum(lengths))
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))
    return folder


def write_parquet(folder, image='image', label='label'):
    """Write both splits as parquet files, one file per shard."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))})
    folder.mkdir()
    for split, lengths in LENGTHS.items():
        for shard, part in enumerate(parts(lengths)):
            columns = {image: [photo(n) for n in part], label: [n % 3 for n in part]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f'{split}-{shard:05d}.parquet')
    return folder
