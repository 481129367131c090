"""pack_labels against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, integers, normal

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.ops import pack_labels


def tables(rows, capacity, batch, dtype=torch.int64, decoded=None, seed=0, device="cpu"):
    """Arguments of pack_labels without room; entries that no row counts are poison."""
    columns = [integers(0, 1000, (rows, capacity), seed + i) for i in range(3)]
    log_probs = -normal(rows, capacity, seed=seed + 3).abs()
    counts = integers(0, capacity + 1, (rows,), seed + 4)
    lengths = integers(0, 50, (batch,), seed + 5).to(dtype)
    before = integers(0, 100, (batch if decoded is None else decoded,), seed + 6).to(torch.int64)
    return [t.to(device) for t in (*columns, log_probs, counts, lengths, before)]


def used(arguments):
    """Labels of the first B rows."""
    return int(arguments[4][: len(arguments[5])].sum())


def check(arguments, spare=0):
    want = pack_labels(*(a.cpu() for a in arguments))
    got = ops.pack_labels(*arguments, used(arguments) + spare)
    assert got.dtype == torch.int32 and got.shape == (len(want) + spare, 4)
    assert torch.equal(got[: len(want)].cpu(), want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("decoded", [None, 1])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 70, 1), (9, 33, 8), (40, 100, 33), (5, 64, 0), (3, 0, 3)])
def test_equals_the_reference(sizes, decoded, dtype, device):
    check(tables(*sizes, dtype, decoded, device=device))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    capacity=st.integers(0, 40),
    share=st.floats(0, 1),
    spare=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_any_sizes(rows, capacity, share, spare, seed):
    check(tables(rows, capacity, round(share * rows), seed=seed), spare)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [8192, 8193, 20_011])
def test_rows_of_large_batches_stand_one_after_the_other(rows, device):
    arguments = tables(rows, 3, rows, device=device)
    packed = ops.pack_labels(*arguments, used(arguments))
    counts = arguments[4].to(torch.int64)
    assert torch.equal(packed[:rows, 0].to(torch.int64), counts.cumsum(0) - counts)
    inside = torch.arange(3, device=device) < counts.unsqueeze(1)
    for column in range(3):
        want = arguments[column] + (arguments[6].int().unsqueeze(1) if column == 1 else 0)
        assert torch.equal(packed[rows:, column], want[inside])


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_long_rows_are_rounded_once(device):
    arguments = tables(2, 5000, 2, device=device)
    arguments[4].fill_(5000)
    packed = ops.pack_labels(*arguments, 10_000)
    scores = packed[:2, 2].contiguous().view(torch.float32)
    assert torch.equal(scores, arguments[3].double().sum(1).float())


@pytest.mark.parametrize("device", DEVICES)
def test_lengths_that_int32_cannot_hold_stay_out_of_range(device):
    arguments = tables(2, 4, 2, device=device)
    arguments[5] = torch.tensor([2**40, -(2**40)], device=device)
    assert ops.pack_labels(*arguments, 8)[:2, 3].tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.gpu
def test_labels_beyond_the_room_are_counted_and_left_out():
    arguments = tables(12, 9, 12, device="cuda")
    whole = ops.pack_labels(*arguments, used(arguments))
    part = ops.pack_labels(*arguments, 10)
    assert torch.equal(part, whole[:22])
