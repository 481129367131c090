"""torch.library.opcheck for every op, and torch.compile over the Python face."""

import pytest
import torch
from op_cases import (
    DEVICES,
    RECURRENT,
    Loop,
    cache_case,
    joint_case,
    normal,
    random_transducer,
    recurrent_case,
)

from rnnt_fastdecode import ops

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(name, *arguments):
    op = getattr(torch.ops.rnnt_fastdecode, name).default
    torch.library.opcheck(op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("device", DEVICES)
def test_joint_argmax(device):
    opcheck("joint_argmax", *joint_case(3, 5, 8, 7, 2, device=device), 4, 2, "relu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_predictor_step(kind, device):
    weights, state, labels, output = recurrent_case(kind, 3, 5, 6, 2, 7, torch.float32, device=device)
    state = [torch.zeros_like(s) for s in state]
    opcheck("predictor_step_", kind, weights, labels, state, torch.zeros_like(output))


@pytest.mark.parametrize("device", DEVICES)
def test_kv_cache_update(device):
    opcheck("kv_cache_update_", *cache_case(2, 3, 2, 4, 3, 5, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["lstm", "gru", "stateless"])
def test_greedy_rounds(kind, device):
    loop = Loop(
        random_transducer(kind), normal(2, 4, 10, seed=0), torch.tensor([4, 2]), capacity=40, device=device
    )
    opcheck("greedy_rounds_", *loop.arguments(rounds=5))


@pytest.mark.parametrize("device", DEVICES)
def test_load_rows(device):
    lengths = torch.tensor([4, 2], device=device)
    row_lengths, times, symbols, counts = torch.zeros(4, 3, dtype=torch.int32, device=device).unbind()
    given = [normal(1, 2, 5, seed=0).to(device), normal(2, 3, seed=1).to(device)]
    state = [torch.zeros(1, 3, 5, device=device), torch.zeros(3, 3, device=device)]
    opcheck(
        "load_rows_", lengths, times[:2].clone(), given, [1, 0], 3, row_lengths, times, symbols, counts, state
    )


@pytest.mark.parametrize("device", DEVICES)
def test_save_rows(device):
    times, lengths = (torch.tensor([3, 5, 1], dtype=torch.int32, device=device) for _ in range(2))
    state = [normal(1, 3, 5, seed=0).to(device), normal(3, 3, seed=1).to(device)]
    opcheck("save_rows", state, [1, 0], times, lengths, torch.zeros(2, dtype=torch.int64, device=device), 2)


@pytest.mark.parametrize("device", DEVICES)
def test_pack_labels(device):
    table = torch.arange(12, dtype=torch.int32, device=device).view(3, 4)
    counts = torch.tensor([2, 4, 1], dtype=torch.int32, device=device)
    lengths, before = (torch.tensor([5, 6], device=device) for _ in range(2))
    opcheck("pack_labels", table, table, table, table.float(), counts, lengths, before, 6)


def test_compiles_into_one_graph():
    encoder, predictor, weight, bias, times, lengths = joint_case(3, 5, 8, 7, 0)

    def step(encoder, times):
        tokens, _, log_probs = ops.joint_argmax(encoder * 2, predictor, weight, bias, times, lengths, 2)
        return tokens + 1, log_probs

    want = step(encoder, times)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(encoder, times)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", RECURRENT)
def test_compiles_in_place(kind):
    weights, state, labels, output = recurrent_case(kind, 3, 5, 6, 2, 7, torch.float32)
    copies = [s.clone() for s in state], output.clone()

    def step(labels, state, output):
        ops.predictor_step_(kind, weights, labels, state, output)
        return output + 1

    want = step(labels, state, output)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(labels, *copies)
    torch.testing.assert_close(got, want, equal_nan=True)
    for ours, theirs in zip(copies[0][:-1], state[:-1], strict=True):
        assert torch.equal(ours, theirs)
