"""A position of a loader as a checkpoint holds it: there and back through a file that is read without trust."""
import io

import torch
from hypothesis import given
from hypothesis import strategies as st

from agmax_timm.data.resumption.position import to_bytes, to_tensors

RANDOM = st.none() | st.fixed_dictionaries({'process': st.binary(), 'numbers': st.lists(st.integers())})


@given(st.fixed_dictionaries({
    'random': RANDOM, 'before': RANDOM, 'shuffle': st.binary(), 'batch': st.integers(0),
    'worker_states': st.dictionaries(st.integers(0, 15), st.binary())}))
def test_there_and_back(state):
    file = io.BytesIO()
    torch.save(to_tensors(state), file)
    file.seek(0)
    assert to_bytes(torch.load(file, weights_only=True)) == state
