"""kv_cache_update_ against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, DTYPES, cache_case, normal

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.ops import kv_cache_update


def check(arguments):
    want = kv_cache_update(*(a.cpu() for a in arguments))
    positions = arguments[4].clone()
    ops.kv_cache_update_(*arguments)
    assert torch.equal(arguments[5].cpu(), want[0]) and torch.equal(arguments[6].cpu(), want[1])
    assert torch.equal(arguments[4], positions)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1, 1), (3, 4, 2, 8, 5, 7), (4, 14, 3, 5, 4, 6), (6, 3, 8, 64, 9, 70), (2, 9, 1, 3, 2, 1)],
)
def test_equals_the_reference(sizes, dtype, device):
    check(cache_case(*sizes, dtype, device=device))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(0, 4),
        st.integers(0, 12),
        st.integers(1, 3),
        st.integers(1, 9),
        st.integers(1, 5),
        st.integers(1, 8),
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_sizes(sizes, dtype, seed):
    check(cache_case(*sizes, dtype, seed))


@pytest.mark.parametrize("device", DEVICES)
def test_a_stream_in_chunks_leaves_its_last_frames_in_the_ring(device):
    capacity, total = 5, 23
    stream = normal(total, 2, 3, seed=0).to(device)
    caches = [torch.zeros(2, 2, capacity, 3, device=device) for _ in range(2)]
    slots = torch.tensor([1], dtype=torch.int32, device=device)
    positions = torch.tensor([100, 0], dtype=torch.int32, device=device)
    start = 0
    for size in (1, 7, 0, 5, 10):
        chunk = torch.full((1, 12, 2, 3), float("nan"), device=device)
        chunk[0, :size] = stream[start : start + size]
        lengths = torch.tensor([size], dtype=torch.int32, device=device)
        ops.kv_cache_update_(chunk, -chunk, lengths, slots, positions, *caches)
        positions[1] += size
        start += size
    for frame in range(total - capacity, total):
        assert torch.equal(caches[0][1, :, frame % capacity], stream[frame])
        assert torch.equal(caches[1][1, :, frame % capacity], -stream[frame])
    assert caches[0][0].eq(0).all() and caches[1][0].eq(0).all()
