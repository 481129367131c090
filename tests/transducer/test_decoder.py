"""GreedyDecoder equals the reference, on the CPU and on the GPU."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnt_fastdecode import ArgumentError, DecodeState, GreedyDecoder, TransducerHead

FAMILIES = {
    "rnnt": {},
    "tdt": {"durations": (0, 1, 2, 3, 4)},
    "tdt with gaps": {"durations": (0, 2, 4, 8)},
    "tdt without zero": {"durations": (1, 2, 5)},
    "blank first": {"blank_id": 0},
    "blank inside": {"blank_id": 7, "durations": (0, 1, 2)},
    "one layer": {"num_layers": 1},
    "four layers": {"num_layers": 4},
    "gru": {"predictor_kind": "gru"},
    "gru of three layers": {"predictor_kind": "gru", "num_layers": 3, "durations": (0, 1, 2, 3, 4)},
    "stateless": {"predictor_kind": "stateless", "context": 1},
    "stateless of two": {"predictor_kind": "stateless_relu", "context": 2, "durations": (0, 1, 2)},
    "odd sizes": {"vocab_size": 45, "joint_width": 67, "hidden": 71, "encoder_width": 73},
}


def build(parts, device, **rules):
    network, predictor, joint = parts
    return GreedyDecoder(
        predictor.to(device),
        joint.to(device),
        network.transducer.blank_id,
        network.transducer.durations,
        **rules,
    )


def assert_same_labels(ours, theirs):
    """Log-probabilities may differ by rounding: a projection of another shape adds in another order."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.frames, a.durations) == (b.tokens, b.frames, b.durations)
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_frames_and_durations_equal_the_reference(family, device, plant, expected, same):
    parts = plant(**FAMILIES[family])
    encoder = parts[0].encoder(9, 40, seed=1)
    lengths = torch.tensor([40, 0, 1, 39, 25, 40, 7, 2, 33])
    decoded = expected(parts[0], encoder, lengths)
    assert sum(len(row.tokens) for row in decoded) > 20
    for window in (None, 1, 3, 16):
        result = build(parts, device, window=window)(encoder.to(device), lengths.to(device))
        same(result, decoded)


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
@pytest.mark.parametrize("family", ["rnnt", "tdt"])
def test_bursts_end_at_max_symbols(family, max_symbols, device, plant, expected, same):
    parts = plant(**FAMILIES[family])
    encoder = parts[0].encoder(6, 30, chains=0.3, seed=2)
    lengths = torch.full((6,), 30)
    decoded = expected(parts[0], encoder, lengths, max_symbols)
    most = max(max((row.frames.count(f) for f in row.frames), default=0) for row in decoded)
    assert most == max_symbols
    same(build(parts, device, max_symbols=max_symbols)(encoder.to(device), lengths), decoded)


@pytest.mark.parametrize("family", ["rnnt", "tdt", "tdt with gaps", "gru", "stateless of two"])
def test_chunks_give_what_one_call_gives(family, device, plant, expected, same):
    parts = plant(**FAMILIES[family])
    encoder = parts[0].encoder(5, 47, seed=3).to(device)
    lengths = torch.tensor([47, 0, 20, 13, 46])
    whole = build(parts, device)(encoder, lengths)
    decoder = build(parts, device)
    state, pieces = None, [[] for _ in range(5)]
    begin = 0
    for size in (1, 13, 0, 7, 26):
        chunk_lengths = (lengths - begin).clamp(0, size)
        result = decoder(encoder[:, begin : begin + size], chunk_lengths, state)
        for row, hypothesis in enumerate(result.hypotheses()):
            pieces[row] += zip(hypothesis.tokens, hypothesis.frames, hypothesis.durations, strict=True)
        state = result.state
        begin += size
    for row, hypothesis in enumerate(whole.hypotheses()):
        assert pieces[row] == list(
            zip(hypothesis.tokens, hypothesis.frames, hypothesis.durations, strict=True)
        )
    assert state.decoded_lengths.tolist() == lengths.tolist()


def test_a_row_does_not_depend_on_its_neighbours(device, plant):
    parts = plant(**FAMILIES["tdt"])
    encoder = parts[0].encoder(4, 30, seed=4).to(device)
    lengths = torch.tensor([30, 12, 0, 29])
    decoder = build(parts, device)
    together = decoder(encoder, lengths).hypotheses()
    for row in range(4):
        alone = decoder(encoder[row : row + 1], lengths[row : row + 1]).hypotheses()
        assert_same_labels(alone, [together[row]])


@pytest.mark.parametrize("family", ["tdt", "gru", "stateless of two"])
def test_states_can_be_split_and_merged(family, device, plant):
    parts = plant(**FAMILIES[family])
    encoder = parts[0].encoder(3, 40, seed=5).to(device)
    half = torch.full((3,), 20)
    decoder = build(parts, device)
    first = decoder(encoder[:, :20], half)
    in_order = decoder(encoder[:, 20:], half, first.state).hypotheses()
    swapped = DecodeState.merge([first.state.select([2]), first.state.select([0, 1])])
    shuffled = decoder(encoder[[2, 0, 1], 20:], half, swapped).hypotheses()
    assert_same_labels(shuffled, [in_order[2], in_order[0], in_order[1]])


def test_frames_beyond_the_length_are_never_read(device, plant):
    parts = plant()
    encoder = parts[0].encoder(2, 20, seed=6).to(device)
    lengths = torch.tensor([20, 11])
    decoder = build(parts, device)
    before = decoder(encoder, lengths).hypotheses()
    encoder[1, 11:] = float("nan")
    assert decoder(encoder, lengths).hypotheses() == before


def test_empty_batches_and_empty_chunks_give_empty_results(device, plant):
    decoder = build(plant(), device)
    none = decoder(torch.zeros(0, 5, 64, device=device), torch.zeros(0, dtype=torch.int64))
    assert none.tokens.shape == (0, 0) and none.hypotheses() == []
    empty = decoder(torch.zeros(2, 0, 64, device=device), torch.zeros(2, dtype=torch.int32))
    assert empty.lengths.tolist() == [0, 0] and empty.hypotheses()[0].tokens == []
    silent = decoder(torch.zeros(2, 4, 64, device=device), torch.zeros(2, dtype=torch.int64))
    assert silent.tokens.shape == (2, 0)


def test_results_are_padded_and_scores_are_sums(device, plant, expected):
    parts = plant()
    encoder = parts[0].encoder(3, 30, seed=7)
    lengths = torch.tensor([30, 0, 10])
    result = build(parts, device)(encoder.to(device), lengths)
    assert result.tokens.dtype == torch.int64 and result.log_probs.dtype == torch.float32
    assert result.tokens.shape[1] == int(result.lengths.max())
    beyond = torch.arange(result.tokens.shape[1]) >= result.lengths.cpu().unsqueeze(1)
    assert (result.tokens.cpu()[beyond] == -1).all() and (result.log_probs.cpu()[beyond] == 0).all()
    decoded = expected(parts[0], encoder, lengths)
    assert result.scores.tolist() == pytest.approx([sum(row.log_probs) for row in decoded], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_half_precision_agrees_with_float64_on_the_rounded_weights(kind, dtype, device, plant):
    from rnnt_fastdecode.reference import decode

    network, predictor, joint = plant(predictor_kind=kind, durations=(0, 1, 2, 3, 4))
    encoder = network.encoder(8, 40, seed=8).to(dtype)
    lengths = torch.full((8,), 40)
    decoder = build((network, predictor.to(dtype), joint.to(dtype)), device)
    exact = network.transducer.to(dtype).to(torch.float64)
    for row, hypothesis in enumerate(decoder(encoder.to(device), lengths).hypotheses()):
        theirs = decode.greedy_decode(exact, encoder[row].double(), 40)
        # A decision closer than the rounding of the activations may fall either way, and all after it.
        near_ties = sum(margin < 0.05 for margin in theirs.margins)
        if near_ties == 0:
            assert hypothesis.tokens == theirs.tokens
            assert hypothesis.frames == theirs.frames
            assert hypothesis.durations == theirs.durations
    predictor.float(), joint.float()


def test_encoder_output_is_converted_to_the_dtype_of_the_weights(device, plant):
    network, predictor, joint = plant()
    decoder = build((network, predictor.to(torch.bfloat16), joint.to(torch.bfloat16)), device)
    encoder = network.encoder(2, 20, seed=9).to(device)
    lengths = torch.full((2,), 20)
    assert decoder.dtype == torch.bfloat16
    assert decoder(encoder, lengths).hypotheses() == decoder(encoder.to(torch.bfloat16), lengths).hypotheses()
    predictor.float(), joint.float()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=6),
    durations=st.sampled_from([(), (0, 1, 2, 3, 4), (0, 2, 4, 8), (1, 3)]),
    max_symbols=st.integers(1, 4),
    window=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_any_batch_equals_the_reference(
    lengths, durations, max_symbols, window, seed, device, plant, expected, same
):
    parts = plant(vocab_size=20, joint_width=32, durations=durations, num_layers=1)
    encoder = parts[0].encoder(len(lengths), 24, chains=0.1, seed=seed)
    decoder = build(parts, device, max_symbols=max_symbols, window=window)
    same(
        decoder(encoder.to(device), torch.tensor(lengths)),
        expected(parts[0], encoder, lengths, max_symbols),
    )


def test_threads_may_share_a_decoder(device, plant):
    parts = plant(durations=(0, 1, 2))
    decoder = build(parts, device)
    batches = [parts[0].encoder(3, 10 + 5 * i, seed=20 + i).to(device) for i in range(6)]
    lengths = [torch.full((3,), batch.shape[1]) for batch in batches]
    alone = [decoder(batch, n).hypotheses() for batch, n in zip(batches, lengths, strict=True)]
    failures = []

    def work(index):
        for _ in range(5):
            if decoder(batches[index], lengths[index]).hypotheses() != alone[index]:
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_decoder_can_be_used_inside_and_outside_of_inference_mode(device, plant):
    parts = plant()
    encoder, lengths = parts[0].encoder(2, 20, seed=10).to(device), torch.tensor([20, 20])
    with torch.inference_mode():
        decoder = build(parts, device)
        inside = decoder(encoder[:, :10].clone(), lengths // 2)
    outside = decoder(encoder[:, 10:], lengths // 2, inside.state)
    whole = build(parts, device)(encoder, lengths).hypotheses()
    for row, (first, second) in enumerate(zip(inside.hypotheses(), outside.hypotheses(), strict=True)):
        assert first.tokens + second.tokens == whole[row].tokens


@pytest.mark.parametrize("kind", ["lstm", "gru", "stateless"])
def test_from_head_uses_the_rules_of_the_head(kind, device, plant, expected, same):
    network, predictor, joint = plant(predictor_kind=kind, durations=(0, 2, 4, 8))
    head = TransducerHead(predictor, joint, network.transducer.blank_id, (0, 2, 4, 8), max_symbols=2).to(
        device
    )
    decoder = GreedyDecoder.from_head(head)
    assert decoder.rules.durations == (0, 2, 4, 8) and decoder.rules.max_symbols == 2
    encoder, lengths = network.encoder(2, 20, chains=0.2, seed=11), torch.tensor([20, 13])
    same(decoder(encoder.to(device), lengths), expected(network, encoder, lengths, max_symbols=2))


def bad_calls():
    encoder, lengths = torch.zeros(2, 5, 64), torch.tensor([5, 5])
    return {
        "encoder_output must be [B, T, 64]": (torch.zeros(2, 5, 63), lengths),
        "encoder_output must be floating point": (encoder.long(), lengths),
        "lengths must be [2] int32 or int64": (encoder, torch.tensor([5])),
        "got [2] torch.float32": (encoder, torch.tensor([5.0, 5.0])),
        "lengths must lie between 0 and 5 frames, got 6": (encoder, torch.tensor([5, 6])),
        "lengths must lie between 0 and 5 frames, got -1": (encoder, torch.tensor([-1, 5])),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_arguments_are_named(message, device, plant):
    encoder, lengths = bad_calls()[message]
    with pytest.raises(ArgumentError) as error:
        build(plant(), device)(encoder.to(device), lengths)
    assert message in str(error.value)


def test_a_state_of_another_batch_is_refused(device, plant):
    decoder = build(plant(), device)
    with pytest.raises(ArgumentError, match="state must hold 2 rows"):
        decoder(torch.zeros(2, 5, 64, device=device), torch.tensor([5, 5]), decoder.initial_state(3))


@pytest.mark.parametrize(
    "rules",
    [{"blank_id": 33}, {"blank_id": -1}, {"max_symbols": 0}, {"window": 0}, {"durations": (0, -1)}],
)
def test_impossible_rules_are_refused(rules, plant):
    _, predictor, joint = plant(durations=(0, 1))
    arguments = {"blank_id": 32, "durations": (0, 1), **rules}
    with pytest.raises(ArgumentError, match=next(iter(rules))):
        GreedyDecoder(predictor, joint, **arguments)


def test_modules_that_do_not_fit_are_refused(plant):
    _, predictor, joint = plant(durations=(0, 1))
    with pytest.raises(ArgumentError, match="joint must have 33 token and 0 duration outputs"):
        GreedyDecoder(predictor, joint, 32)
    with pytest.raises(ArgumentError, match="predictor and joint must agree"):
        GreedyDecoder(predictor, joint.to(torch.bfloat16), 32, (0, 1))
    joint.float()
