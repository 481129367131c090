"""predictor_step_ against the reference and against torch.nn.LSTM."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, DTYPES, integers, lstm_case, op_weights, stateless_weights

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.ops import lstm_step, stateless_step

NAN = float("nan")


def check_lstm(weights, state, labels, output):
    """Rows with a label equal the float64 reference to the dtype's precision, all others are untouched."""
    before = [s.clone() for s in state]
    ops.predictor_step_("lstm", weights, labels, state, output)
    wide = [w.double().cpu() for w in weights]
    tolerance = 4 * torch.finfo(output.dtype).eps + 1e-6
    for b, label in enumerate(labels.tolist()):
        if label < 0:
            assert output[b].isnan().all()
            assert all(torch.equal(s[:, b], o[:, b]) for s, o in zip(state[:2], before[:2], strict=True))
            continue
        hidden, cell = (s[:, b].double().cpu() for s in before[:2])
        want, (want_hidden, want_cell) = lstm_step(wide, label, (hidden, cell))
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(state[0][:, b].cpu().double(), want_hidden, rtol=0, atol=tolerance)
        torch.testing.assert_close(state[1][:, b].cpu().double(), want_cell, rtol=0, atol=2 * tolerance)
        torch.testing.assert_close(output[b].cpu().double(), want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 2, 1, 1, 1), (3, 5, 7, 2, 9), (6, 11, 33, 3, 20), (5, 33, 64, 2, 64)])
def test_lstm_equals_the_reference(sizes, dtype, device):
    check_lstm(*lstm_case(*sizes, dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 30, 640, 2, 640), (40, 30, 320, 2, 640), (70, 9, 72, 3, 100), (300, 9, 64, 1, 40)]
)
def test_lstm_equals_the_reference_at_the_sizes_of_real_models(sizes, dtype, device):
    check_lstm(*lstm_case(*sizes, dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.gpu
def test_lstm_makes_a_row_with_an_unknown_label_nan_on_the_gpu(dtype):
    weights, state, labels, output = lstm_case(9, 5, 64, 2, 32, dtype, device="cuda")
    labels[:] = torch.tensor([1, 5, -1, 2, 77, 0, 3, 4, -1])
    ops.predictor_step_("lstm", weights, labels, state, output)
    unknown = labels >= 5
    assert output[unknown].isnan().all() and not output[(labels >= 0) & ~unknown].isnan().any()
    assert state[1][:, unknown].isnan().all() and not state[1][:, ~unknown].isnan().any()


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


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(0, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 3), st.integers(1, 40)
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_lstm_of_any_sizes(sizes, dtype, seed):
    check_lstm(*lstm_case(*sizes, dtype, seed))


@pytest.mark.parametrize("device", DEVICES)
def test_lstm_equals_torch_over_a_sequence(device):
    torch.manual_seed(0)
    vocab, hidden, layers, batch, steps = 11, 24, 2, 3, 6
    embedding, lstm = torch.nn.Embedding(vocab, hidden), torch.nn.LSTM(hidden, hidden, layers)
    projection = torch.nn.Linear(hidden, 16)
    labels = torch.randint(0, vocab, (steps, batch))
    with torch.no_grad():
        want = projection(lstm(embedding(labels))[0])
        parts = [lstm.all_weights[layer] for layer in range(layers)]
        weights = [
            embedding.weight,
            torch.stack([torch.cat([p[0], p[1]], dim=1) for p in parts]),
            torch.stack([p[2] + p[3] for p in parts]),
            projection.weight,
            projection.bias,
        ]
        weights = [w.detach().to(device) for w in weights]
        state = [torch.zeros(layers, batch, hidden, device=device) for _ in range(3)]
        output = torch.zeros(batch, 16, device=device)
        for step in range(steps):
            ops.predictor_step_("lstm", weights, labels[step].int().to(device), state, output)
            torch.testing.assert_close(output.cpu(), want[step], rtol=0, atol=1e-5)


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
def test_no_rows(device):
    weights, state, labels, output = lstm_case(0, 4, 8, 2, 8, torch.float32, device=device)
    ops.predictor_step_("lstm", weights, labels, state, output)
    assert output.shape == (0, 8)
