"""joint_argmax against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, DTYPES, joint_case, scores_and_slack

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference import ops as reference

SHAPES = [  # B, T, J, V, N, W
    (1, 1, 1, 1, 0, 1),
    (2, 5, 8, 9, 0, 3),
    (3, 7, 17, 33, 5, 4),
    (5, 4, 31, 25, 1, 6),
    (4, 40, 64, 130, 5, 16),
    (9, 3, 640, 49, 4, 1),
    (2, 3, 2048, 30, 5, 2),
    (3, 4, 64, 16384, 0, 4),
    (1, 1, 2048, 16384, 5, 1),
]


def check_against_scores(arguments, window, num_durations, activation):
    """Every decision has the best float64 score, or one that float32 cannot tell apart: how many of these."""
    encoder, predictor, weight, bias, times, lengths = arguments
    got = [t.cpu() for t in ops.joint_argmax(*arguments, window, num_durations, activation)]
    encoder, predictor, weight, times, lengths = (
        t.cpu() for t in (encoder, predictor, weight, times, lengths)
    )
    bias = None if bias is None else bias.cpu()
    vocab = weight.shape[0] - num_durations
    near_ties = 0
    for b in range(encoder.shape[0]):
        for w in range(window):
            t = int(times[b]) + w
            token, duration, log_prob = (out[b, w] for out in got)
            if t >= min(int(lengths[b]), encoder.shape[1]):
                assert (int(token), int(duration), float(log_prob)) == (-1, 0, 0.0)
                continue
            scores, slack = scores_and_slack(encoder[b, t], predictor[b], weight, bias, activation)
            for chosen, values, allowed in (
                (int(token), scores[:vocab], slack[:vocab]),
                (int(duration), scores[vocab:], slack[vocab:]),
            ):
                if values.numel() == 0:
                    assert chosen == 0
                    continue
                best = int(values.argmax())
                near_ties += chosen != best
                assert values[best] - values[chosen] <= allowed[best] + allowed[chosen]
            expected = float(scores[:vocab].log_softmax(0)[int(token)])
            assert float(log_prob) == pytest.approx(expected, abs=float(2 * slack[:vocab].max()) + 1e-5)
    return near_ties


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decisions_are_the_best_scores(shape, dtype, device):
    *sizes, window = shape
    near_ties = check_against_scores(joint_case(*sizes, dtype, device=device), window, sizes[-1], "relu")
    assert near_ties == 0


LARGE_SHAPES = [  # B, T, J, V, N, W
    (1, 9, 640, 1025, 0, 6),
    (8, 20, 640, 1025, 5, 6),
    (70, 6, 64, 1025, 5, 7),
    (300, 4, 40, 270, 0, 3),
    (2, 5, 2048, 300, 3, 4),
    (3, 5, 640, 8193, 5, 6),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_decisions_are_the_best_scores_at_the_sizes_of_real_models(shape, dtype, device):
    *sizes, window = shape
    near_ties = check_against_scores(joint_case(*sizes, dtype, device=device), window, sizes[-1], "relu")
    assert near_ties <= 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [300, 1025])
def test_equal_scores_of_a_large_vocabulary_give_the_first_index(vocab, dtype, device):
    encoder, predictor, weight, bias, times, lengths = joint_case(9, 4, 64, vocab, 3, dtype, device=device)
    weight[:], bias[:] = weight[0], bias[0]
    lengths.fill_(4)
    tokens, durations, log_probs = ops.joint_argmax(
        encoder, predictor, weight, bias, times * 0, lengths, 4, 3, "relu"
    )
    assert tokens.eq(0).all() and durations.eq(0).all()
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, 1 / vocab).log())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_and_missing_scores_in_a_large_vocabulary(dtype, device):
    encoder, predictor, weight, bias, times, lengths = joint_case(5, 3, 32, 700, 40, dtype, device=device)
    arguments = (encoder, predictor, weight, bias, times * 0, lengths.fill_(3), 3, 40)
    infinity = float("inf")
    bias[:] = -infinity
    tokens, durations, log_probs = ops.joint_argmax(*arguments)
    assert tokens.eq(0).all() and durations.eq(0).all() and not log_probs.isfinite().any()
    bias[[400, 733]] = 0
    tokens, durations, log_probs = ops.joint_argmax(*arguments)
    assert tokens.eq(400).all() and durations.eq(33).all() and log_probs.eq(0).all()
    bias[[511, 699, 720]] = float("nan")
    tokens, durations, log_probs = ops.joint_argmax(*arguments)
    assert tokens.eq(511).all() and durations.eq(20).all() and log_probs.isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_may_begin_anywhere(dtype, device):
    arguments = joint_case(3, 6, 64, 50, 2, dtype, device=device)
    want = [t.cpu() for t in ops.joint_argmax(*arguments, 4, 2)]
    for moved in range(4):
        elsewhere = list(arguments)
        tensor = arguments[moved]
        elsewhere[moved] = torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
        got = [t.cpu() for t in ops.joint_argmax(*elsewhere, 4, 2)]
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        torch.testing.assert_close(got[2], want[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations_equal_the_reference(activation, device):
    arguments = joint_case(3, 6, 12, 10, 4, device=device)
    got = ops.joint_argmax(*arguments, 5, 4, activation)
    want = reference.joint_argmax(*(a.cpu() for a in arguments), 5, 4, activation)
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        assert torch.equal(ours.cpu(), theirs)
    torch.testing.assert_close(got[2].cpu(), want[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("shape", [(3, 7, 17, 33, 5, 4), (4, 9, 640, 130, 0, 6)])
def test_activations_in_every_dtype(shape, activation, dtype, device):
    *sizes, window = shape
    check_against_scores(joint_case(*sizes, dtype, device=device), window, sizes[-1], activation)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(0, 5), st.integers(0, 9), st.integers(1, 70), st.integers(1, 60), st.integers(0, 5)
    ),
    window=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(["relu", "tanh", "sigmoid"]),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_sizes(sizes, window, dtype, activation, with_bias, seed):
    arguments = joint_case(*sizes, dtype, seed)
    if not with_bias:
        arguments[3] = None
    check_against_scores(arguments, window, sizes[-1], activation)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_scores_give_the_first_index(device):
    encoder, predictor, weight, bias, times, lengths = joint_case(2, 3, 16, 12, 3, device=device)
    weight[:], bias[:] = weight[0], bias[0]
    lengths.fill_(3)
    tokens, durations, log_probs = ops.joint_argmax(
        encoder, predictor, weight, bias, times * 0, lengths, 3, 3, "relu"
    )
    assert tokens.eq(0).all() and durations.eq(0).all()
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, 1 / 12).log())


@pytest.mark.parametrize("device", DEVICES)
def test_nan_counts_as_the_highest_score(device):
    encoder, predictor, weight, bias, times, lengths = joint_case(1, 1, 4, 6, 3, device=device)
    bias[[2, 4]], bias[7] = float("nan"), float("nan")
    tokens, durations, log_probs = ops.joint_argmax(
        encoder, predictor, weight, bias, times, lengths.fill_(1), 1, 3, "relu"
    )
    assert (tokens.item(), durations.item()) == (2, 1)
    assert log_probs.isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "frames"), [(0, 4), (3, 0), (0, 0)])
def test_no_rows_or_no_frames(batch, frames, device):
    arguments = joint_case(batch, frames, 5, 4, 2, device=device)
    tokens, durations, log_probs = ops.joint_argmax(*arguments, 3, 2, "relu")
    assert tokens.shape == durations.shape == log_probs.shape == (batch, 3)
    assert tokens.eq(-1).all() and durations.eq(0).all() and log_probs.eq(0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_frames_beyond_the_length_are_never_read(device):
    encoder, predictor, weight, bias, times, lengths = joint_case(3, 6, 8, 5, 0, device=device)
    lengths = torch.tensor([0, 2, 6], dtype=torch.int32, device=device)
    want = ops.joint_argmax(encoder, predictor, weight, bias, times * 0, lengths, 6)
    encoder[0], encoder[1, 2:] = float("nan"), float("nan")
    got = ops.joint_argmax(encoder, predictor, weight, bias, times * 0, lengths, 6)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_encoder_may_be_a_slice_of_a_larger_batch_buffer(device):
    encoder, *rest = joint_case(3, 4, 8, 5, 2, device=device)
    buffer = torch.full((3, 9, 8), float("nan"), device=device)
    buffer[:, :4] = encoder
    got = ops.joint_argmax(buffer[:, :4], *rest, 4, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, ops.joint_argmax(encoder, *rest, 4, 2), strict=True))


def test_a_row_does_not_depend_on_its_batch():
    encoder, predictor, weight, bias, times, lengths = joint_case(7, 5, 50, 40, 3)
    whole = ops.joint_argmax(encoder, predictor, weight, bias, times, lengths, 5, 3)
    for b in range(7):
        alone = ops.joint_argmax(
            encoder[b : b + 1], predictor[b : b + 1], weight, bias, times[b : b + 1], lengths[b : b + 1], 5, 3
        )
        assert all(torch.equal(a[0], c[b]) for a, c in zip(alone, whole, strict=True))
