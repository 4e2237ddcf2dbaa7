"""Damaged checkpoints are detected."""
import random
import re
from argparse import Namespace

import pytest
import torch

from agmax_timm.base.errors import CheckpointError
from agmax_timm.base.safe_load import read_file
from tests.helpers.exact import equal


@pytest.fixture
def small():
    return {'epoch': 3, 'metric': 0.1, 'args': Namespace(model='test_resnet', lr=0.05), 'names': ['a', ('b', None)],
            'state_dict': {'w': torch.arange(200.), 'b': torch.arange(3), 'half': torch.ones(5, dtype=torch.bfloat16)}}


def test_every_flipped_bit_is_detected_or_harmless(small, memory_path):
    path = memory_path / 'last.pth.tar'
    torch.save(small, path)
    whole = path.read_bytes()
    generator = random.Random(0)
    at_random = generator.sample(range(8 * len(whole)), 600)
    directory = generator.sample(range(8 * whole.index(b'PK\x01\x02'), 8 * len(whole)), 500)
    folders = [8 * (entry.start() + 38) + 4 for entry in re.finditer(b'PK\x01\x02', whole)]  # see checkpoint.py
    found = 0
    for bit in [*at_random, *directory, *folders]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            loaded = read_file(str(path))
        except CheckpointError:
            found += 1
        else:
            assert equal(small, loaded), f'bit {bit} of {8 * len(whole)}'
    assert found > 400


def test_a_flipped_bit_of_a_weight_that_torch_loads_is_detected(small, tmp_path):
    path = tmp_path / 'last.pth.tar'
    torch.save(small, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(small['state_dict']['w'].numpy().tobytes()) + 400] ^= 1
    path.write_bytes(whole)
    assert not equal(small, read_file(str(path), mmap=True))
    with pytest.raises(CheckpointError, match='last.pth.tar.* damaged: .*/data/0'):
        read_file(str(path))


def test_truncated_empty_and_random_files_are_refused(small, tmp_path):
    path = tmp_path / 'last.pth.tar'
    torch.save(small, path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 37), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="last.pth.tar' is"):
            read_file(str(path))
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(CheckpointError, match='damaged or not a checkpoint'):
        read_file(str(path))


def test_a_text_file_is_refused_without_a_number_as_the_reason(tmp_path):
    """torch's unpickler raises KeyError with an index as its text."""
    path = tmp_path / 'notes.pth.tar'
    path.write_text('junk\n')
    with pytest.raises(CheckpointError) as error:
        read_file(str(path))
    assert str(error.value) == f"'{path}' is damaged or not a checkpoint"
