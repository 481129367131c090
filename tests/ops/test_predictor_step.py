"""predictor_step_ against the reference and against torch.nn.LSTM and torch.nn.GRU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    DEVICES,
    DTYPES,
    RECURRENT,
    integers,
    op_weights,
    recurrent_case,
    stateless_weights,
    zero_state,
)

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.ops import gru_step, lstm_step, stateless_step

NAN = float("nan")


def check_recurrent(kind, weights, state, labels, output):
    """Rows with a label equal the float64 reference to the dtype's precision, all others are untouched."""
    before = [s.clone() for s in state]
    ops.predictor_step_(kind, weights, labels, state, output)
    wide = [w.double().cpu() for w in weights]
    tolerance = 4 * torch.finfo(output.dtype).eps + 1e-6
    for b, label in enumerate(labels.tolist()):
        if label < 0:
            assert output[b].isnan().all()
            assert all(torch.equal(s[:, b], o[:, b]) for s, o in zip(state[:-1], before[:-1], strict=True))
            continue
        own = [s[:, b].double().cpu() for s in before[:-1]]
        if kind == "lstm":
            want, (want_hidden, want_cell) = lstm_step(wide, label, tuple(own))
            torch.testing.assert_close(state[1][:, b].cpu().double(), want_cell, rtol=0, atol=2 * tolerance)
        else:
            want, want_hidden = gru_step(wide, label, own[0])
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(state[0][:, b].cpu().double(), want_hidden, rtol=0, atol=tolerance)
        torch.testing.assert_close(output[b].cpu().double(), want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 2, 1, 1, 1), (3, 5, 7, 2, 9), (6, 11, 33, 3, 20), (5, 33, 64, 2, 64), (4, 30, 40, 4, 24)]
)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_networks_equal_the_reference(kind, sizes, dtype, device):
    check_recurrent(kind, *recurrent_case(kind, *sizes, dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 30, 640, 2, 640), (40, 30, 320, 2, 640), (70, 9, 72, 3, 100), (300, 9, 64, 1, 40)]
)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_networks_equal_the_reference_at_the_sizes_of_real_models(kind, sizes, dtype, device):
    check_recurrent(kind, *recurrent_case(kind, *sizes, dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_wide_recurrent_networks_equal_the_reference(kind, dtype, device):
    check_recurrent(kind, *recurrent_case(kind, 2, 16384, 640, 2, 1024, dtype, device=device))
    check_recurrent(kind, *recurrent_case(kind, 2, 30, 2048, 1, 2048, dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_tensors_of_recurrent_networks_may_begin_anywhere(kind, dtype, device):
    for moved in range(7):
        weights, state, labels, output = recurrent_case(kind, 9, 5, 64, 2, 40, dtype, device=device)
        tensors = [*weights, *state]
        tensor = tensors[moved]
        tensors[moved] = torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
        check_recurrent(kind, tensors[:5], tensors[5:], labels, output)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(RECURRENT),
    sizes=st.tuples(
        st.integers(0, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 4), st.integers(1, 40)
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_recurrent_networks_of_any_sizes(kind, sizes, dtype, seed):
    check_recurrent(kind, *recurrent_case(kind, *sizes, dtype, seed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_networks_equal_torch_over_a_sequence(kind, layers, device):
    torch.manual_seed(0)
    vocab, hidden, batch, steps = 11, 24, 3, 6
    embedding, projection = torch.nn.Embedding(vocab, hidden), torch.nn.Linear(hidden, 16)
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](hidden, hidden, layers)
    labels = torch.randint(0, vocab, (steps, batch))
    with torch.no_grad():
        want = projection(rnn(embedding(labels))[0])
    matrices, biases = zip(*((parts[:2], parts[2:]) for parts in rnn.all_weights), strict=True)
    if kind == "lstm":
        packed = torch.stack([torch.cat(m, dim=1) for m in matrices]), torch.stack([sum(b) for b in biases])
    else:
        packed = (
            torch.stack([torch.stack(m) for m in matrices]),
            torch.stack([torch.stack(b) for b in biases]),
        )
    weights = [embedding.weight, *packed, projection.weight, projection.bias]
    weights = [w.detach().to(device) for w in weights]
    state = zero_state(weights, kind, batch, 0, torch.float32, device)
    output = torch.zeros(batch, 16, device=device)
    for step in range(steps):
        ops.predictor_step_(kind, weights, labels[step].int().to(device), state, output)
        torch.testing.assert_close(output.cpu(), want[step], rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_row_does_not_depend_on_its_batch(kind):
    weights, state, labels, together = recurrent_case(kind, 7, 5, 40, 2, 30, torch.float32)
    labels.clamp_(min=0)
    before = [s.clone() for s in state]
    ops.predictor_step_(kind, weights, labels, state, together)
    for b in range(7):
        alone, own = torch.zeros(1, 30), [s[:, b : b + 1].clone() for s in before]
        ops.predictor_step_(kind, weights, labels[b : b + 1], own, alone)
        assert torch.equal(alone[0], together[b]) and torch.equal(own[0][:, 0], state[0][:, b])


# Whole vectors, and a width that has none.
@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [64, 33])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_label_outside_the_vocabulary_gives_nan_in_its_row_alone(kind, dtype, hidden):
    weights, state, labels, output = recurrent_case(kind, 9, 5, hidden, 2, 32, dtype, device="cuda")
    labels[:] = torch.tensor([1, 5, -1, 2, 77, 0, 3, 4, -1])
    ops.predictor_step_(kind, weights, labels, state, output)
    unknown = labels >= 5
    assert output[unknown].isnan().all() and not output[(labels >= 0) & ~unknown].isnan().any()
    for lasting in state[:-1]:
        assert lasting[:, unknown].isnan().all() and not lasting[:, ~unknown].isnan().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("kind", ["stateless", "stateless_relu"])
def test_stateless_equals_the_reference(kind, context, dtype, device):
    batch, vocab, hidden, joint_width = 5, 6, 19, 13
    weights = op_weights(stateless_weights(vocab, hidden, context, joint_width, 0), kind, dtype, device)
    state = [integers(0, vocab, (batch, context - 1), 1).to(device)]
    labels = torch.tensor([0, -1, 5, 3, -1], dtype=torch.int32, device=device)
    output = torch.full((batch, joint_width), NAN, dtype=dtype, device=device)
    before = state[0].clone()
    ops.predictor_step_(kind, weights, labels, state, output)
    for b, label in enumerate(labels.tolist()):
        if label < 0:
            assert output[b].isnan().all() and torch.equal(state[0][b], before[b])
            continue
        wide = [w.double().cpu() for w in weights]
        want, context_after = stateless_step(wide, label, before[b].cpu(), kind == "stateless_relu")
        tolerance = 4 * torch.finfo(dtype).eps * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(output[b].cpu().double(), want, rtol=0, atol=tolerance)
        assert state[0][b].tolist() == context_after.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["stateless", "stateless_relu"])
def test_stateless_of_many_rows_equals_the_reference(kind, dtype, device):
    batch, vocab, hidden, joint_width, context = 100, 11, 640, 130, 2
    weights = op_weights(stateless_weights(vocab, hidden, context, joint_width, 0), kind, dtype, device)
    state = [integers(0, vocab, (batch, context - 1), 1).to(device)]
    before = state[0].cpu().clone()
    labels = integers(-1, vocab, (batch,), 2).to(device)
    output = torch.full((batch, joint_width), NAN, dtype=dtype, device=device)
    ops.predictor_step_(kind, weights, labels, state, output)
    wide = [w.double().cpu() for w in weights]
    for b, label in enumerate(labels.tolist()):
        if label < 0:
            assert output[b].isnan().all() and torch.equal(state[0][b].cpu(), before[b])
            continue
        want, context_after = stateless_step(wide, label, before[b], kind == "stateless_relu")
        tolerance = 4 * torch.finfo(dtype).eps * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(output[b].cpu().double(), want, rtol=0, atol=tolerance)
        assert state[0][b].tolist() == context_after.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_half_goes_in_and_out_unchanged(dtype, device):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    tables = torch.where(numbers.isfinite(), numbers, 0).reshape(1, -1, 32).to(device)
    weights = [tables, torch.eye(32, dtype=dtype, device=device), torch.zeros(32, dtype=dtype, device=device)]
    labels = torch.arange(tables.shape[1], dtype=torch.int32, device=device)
    output = torch.full(tables.shape[1:], NAN, dtype=dtype, device=device)
    state = [torch.zeros(tables.shape[1], 0, dtype=torch.int32, device=device)]
    ops.predictor_step_("stateless", weights, labels, state, output)
    assert torch.equal(output, tables[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_no_rows(kind, device):
    weights, state, labels, output = recurrent_case(kind, 0, 4, 8, 2, 8, torch.float32, device=device)
    ops.predictor_step_(kind, weights, labels, state, output)
    assert output.shape == (0, 8)
