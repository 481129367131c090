"""load_rows_ and save_rows against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, DTYPES, POISON, integers, normal

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.ops import load_rows, save_rows

BATCH_DIMS = (1, 1, 0, 0)


def state(rows, width, dtype, seed, device="cpu"):
    """Like that of an LSTM of two layers, an output of another width and a context."""
    return [
        normal(2, rows, width, seed=seed).to(device, dtype),
        normal(2, rows, width, seed=seed + 1).to(device),
        normal(rows, 2 * width + 1, seed=seed + 2).to(device, dtype),
        integers(0, 9, (rows, 1), seed + 3).to(device),
    ]


def poisoned(count, rows, device):
    return [torch.full((rows,), POISON, dtype=torch.int32, device=device) for _ in range(count)]


def check_load(batch, rows, width, dtype, given_rows=None, wide=torch.int64, seed=0, device="cpu"):
    lengths = integers(-3, 12, (batch,), seed).to(device, wide)
    given_rows = batch if given_rows is None else given_rows
    jumps = integers(0, 4, (given_rows,), seed + 1).to(device)
    given = state(given_rows, width, dtype, seed + 2, device)
    own = state(rows, width, dtype, seed + 20, device)
    row_lengths, times, symbols, counts = poisoned(4, rows, device)
    on_cpu = [t.cpu() for t in given], [t.cpu() for t in own]
    want = load_rows(lengths.cpu(), jumps.cpu(), on_cpu[0], BATCH_DIMS, 9, times.cpu(), on_cpu[1])
    ops.load_rows_(lengths, jumps, given, BATCH_DIMS, 9, row_lengths, times, symbols, counts, own)
    assert torch.equal(row_lengths.cpu(), want[0]) and torch.equal(times.cpu(), want[1])
    assert symbols.eq(0).all() and counts.eq(0).all()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(own, want[2], strict=True))


def check_save(batch, rows, width, dtype, decoded=None, seed=0, device="cpu"):
    own = state(rows, width, dtype, seed, device)
    times, lengths = (integers(0, 12, (rows,), seed + i).to(device) for i in (10, 11))
    before = integers(0, 99, (batch if decoded is None else decoded,), seed + 12).to(device, torch.int64)
    want = save_rows([t.cpu() for t in own], BATCH_DIMS, times.cpu(), lengths.cpu(), before.cpu(), batch)
    got = ops.save_rows(own, BATCH_DIMS, times, lengths, before, batch)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 8), (3, 5, 640), (5, 5, 7), (0, 2, 4), (130, 300, 3), (700, 700, 16)]
)
def test_rows_go_in_and_out_as_in_the_reference(sizes, dtype, device):
    check_load(*sizes, dtype, device=device)
    check_save(*sizes, dtype, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 2, 65])
def test_one_row_is_given_to_all(batch, device):
    check_load(batch, 70, 5, torch.float16, given_rows=1, device=device)
    check_save(batch, 70, 5, torch.float16, decoded=1, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_lengths_may_be_int32(device):
    check_load(4, 6, 8, torch.float32, wide=torch.int32, device=device)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    share=st.floats(0, 1),
    width=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_sizes(rows, share, width, dtype, seed):
    check_load(round(share * rows), rows, width, dtype, seed=seed)
    check_save(round(share * rows), rows, width, dtype, seed=seed)


@pytest.mark.parametrize("device", DEVICES)
def test_addresses_that_are_not_aligned_are_copied_too(device):
    """A view that starts between two words of 16, 4 or 2 bytes."""
    for offset in (1, 2, 3, 8):
        given = [normal(2 * 16 + offset, seed=1).to(device, torch.float16)[offset:].view(2, 16)]
        own = [torch.zeros(3, 16, dtype=torch.float16, device=device)]
        lengths = torch.ones(2, dtype=torch.int32, device=device)
        ops.load_rows_(lengths, lengths, given, [0], 1, *poisoned(4, 3, device), own)
        assert torch.equal(own[0][:2], given[0]) and own[0][2].eq(0).all()
        saved = ops.save_rows(
            given, [0], lengths, lengths, torch.zeros(2, dtype=torch.int64, device=device), 2
        )
        assert torch.equal(saved[0], given[0])
