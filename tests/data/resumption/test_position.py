"""The position of a loader in a checkpoint is read back unchanged with weights_only=True."""
import io

import torch
from hypothesis import given
from hypothesis import strategies as st

from agmax_timm.data.resumption.position import to_bytes, to_tensors

RANDOM = st.none() | st.fixed_dictionaries({'process': st.binary(), 'numbers': st.lists(st.integers())})


@given(st.fixed_dictionaries({
    'random': RANDOM, 'before': RANDOM, 'shuffle': st.binary(), 'batch': st.integers(0),
    'worker_states': st.dictionaries(st.integers(0, 15), st.binary())}))
def test_a_position_is_read_back_unchanged(state):
    file = io.BytesIO()
    torch.save(to_tensors(state), file)
    file.seek(0)
    assert to_bytes(torch.load(file, weights_only=True)) == state
