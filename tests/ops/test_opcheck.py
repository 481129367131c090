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
