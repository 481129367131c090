"""The rules of greedy decoding, one at a time, on networks whose scores are written down frame by frame.

The joint network's output layer is the identity and the encoder's output is the scores; the predictor
adds to them what the last label calls for.
"""

import pytest
import torch

from rnnt_fastdecode.reference.decode import Transducer, greedy_decode
from rnnt_fastdecode.reference.planted import plant

A, B, BLANK = 0, 1, 2


def network(durations=(), after=None, blank_id=BLANK):
    """Scores of 3 tokens and the durations; after = {label: {index: bonus}} follows the last label."""
    width = 3 + len(durations)
    table = torch.zeros(1, 3, width)
    for label, bonuses in (after or {}).items():
        for index, bonus in bonuses.items():
            table[0, label, index] = bonus
    return Transducer(
        encoder_weight=torch.eye(width),
        encoder_bias=torch.zeros(width),
        predictor_kind="stateless",
        predictor_weights=[table, torch.eye(width), torch.zeros(width)],
        weight=torch.eye(width),
        bias=torch.zeros(width),
        activation="relu",
        blank_id=blank_id,
        durations=tuple(durations),
    )


def scores(winners, durations=()):
    """One frame for each entry: a token, or (token, index of its duration)."""
    frames = torch.zeros(len(winners), 3 + len(durations))
    for frame, winner in enumerate(winners):
        token, duration = winner if isinstance(winner, tuple) else (winner, None)
        frames[frame, token] = 1
        if duration is not None:
            frames[frame, 3 + duration] = 1
    return frames


def emissions(result):
    return list(zip(result.tokens, result.frames, result.durations, strict=True))


#: After a label blank wins on the same frame, and the next frame's label wins over it.
BLANK_AFTER_LABEL = {A: {BLANK: 1.5, B: 1}, B: {BLANK: 1.5, A: 1}}


def test_a_label_stays_on_its_frame_and_blank_moves_one_frame():
    result = greedy_decode(network(after=BLANK_AFTER_LABEL), scores([A, BLANK, B]))
    assert emissions(result) == [(A, 0, 0), (B, 2, 0)]
    assert result.state.time == 0


def test_several_labels_on_one_frame():
    after = {A: {B: 2}, B: {BLANK: 2}}
    result = greedy_decode(network(after=after), scores([A, BLANK]))
    assert emissions(result) == [(A, 0, 0), (B, 0, 0)]


def test_max_symbols_forces_the_next_frame_without_a_blank():
    result = greedy_decode(network(), scores([A, B]), max_symbols=3)
    assert emissions(result) == [(A, 0, 0)] * 3 + [(B, 1, 0)] * 3


def test_a_label_on_the_last_frame_counts():
    assert emissions(greedy_decode(network(after=BLANK_AFTER_LABEL), scores([BLANK, A]))) == [(A, 1, 0)]


def test_blank_may_be_any_label():
    result = greedy_decode(network(blank_id=A), scores([A, B, A]), max_symbols=1)
    assert emissions(result) == [(B, 1, 0)]


def test_frames_beyond_the_length_are_not_decoded():
    assert emissions(greedy_decode(network(), scores([A, B, B]), length=1, max_symbols=1)) == [(A, 0, 0)]
    assert emissions(greedy_decode(network(), scores([A, B]), length=9, max_symbols=1)) == [
        (A, 0, 0),
        (B, 1, 0),
    ]


@pytest.mark.parametrize("length", [0, None])
def test_no_frames_give_nothing(length):
    frames = scores([A, B])[: None if length == 0 else 0]
    result = greedy_decode(network(), frames, length)
    assert emissions(result) == [] and result.state.time == 0


def test_equal_scores_give_the_first_token():
    assert greedy_decode(network(blank_id=B), torch.zeros(1, 3), max_symbols=1).tokens == [A]


def test_a_duration_moves_a_label_and_a_blank():
    durations = (0, 1, 2, 3)
    frames = scores([(A, 2), (B, 1), (BLANK, 3), (A, 1), (A, 1), (B, 1)], durations)
    result = greedy_decode(network(durations), frames)
    assert emissions(result) == [(A, 0, 2), (B, 5, 1)]


def test_durations_are_numbers_of_frames_and_not_indices():
    durations = (0, 2, 4, 8)
    frames = scores([(A, 2), (A, 0), (A, 0), (A, 0), (B, 1), (A, 0)], durations)
    assert emissions(greedy_decode(network(durations), frames)) == [(A, 0, 4), (B, 4, 2)]


def test_blank_with_duration_zero_advances_one_frame():
    durations = (0, 1)
    frames = scores([(BLANK, 0), (A, 1)], durations)
    assert emissions(greedy_decode(network(durations), frames)) == [(A, 1, 1)]


def test_a_label_with_duration_zero_stays_until_max_symbols():
    durations = (0, 1)
    frames = scores([(A, 0), (B, 1)], durations)
    result = greedy_decode(network(durations), frames, max_symbols=2)
    assert emissions(result) == [(A, 0, 0), (A, 0, 0), (B, 1, 1)]


def test_a_jump_past_the_end_is_carried_into_the_next_chunk():
    durations = (0, 1, 4)
    frames = scores([(BLANK, 1), (A, 2), (B, 1), (B, 1), (B, 1), (B, 1)], durations)
    first = greedy_decode(network(durations), frames[:3])
    assert emissions(first) == [(A, 1, 4)] and first.state.time == 2
    second = greedy_decode(network(durations), frames[3:], state=first.state)
    assert emissions(second) == [(B, 2, 1)] and second.state.time == 0


def test_a_jump_over_a_whole_chunk_is_carried_on():
    durations = (1, 8)
    first = greedy_decode(network(durations), scores([(A, 1)], durations))
    second = greedy_decode(network(durations), scores([(B, 0)] * 3, durations), state=first.state)
    assert first.state.time == 7 and second.tokens == [] and second.state.time == 4


def test_log_probabilities_are_over_tokens_alone():
    durations = (0, 1)
    result = greedy_decode(network(durations), scores([(A, 1)], durations))
    assert result.log_probs == pytest.approx([float(torch.tensor([1.0, 0, 0]).log_softmax(0)[0])])


def test_margins_tell_how_close_a_decision_was():
    frames = torch.tensor([[0.0, 0.2, 1.0], [1.0, 0.75, 0.0], [0.0, 0.0, 1.0]])
    result = greedy_decode(network(), frames, max_symbols=1)
    assert result.tokens == [A] and result.margins == pytest.approx([0.25, 1.0])


@pytest.mark.parametrize("kind", ["lstm", "gru", "stateless", "stateless_relu"])
@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4), (0, 2, 4, 8)])
def test_chunks_equal_one_shot(kind, durations):
    planted = plant(joint_width=32, durations=durations, predictor_kind=kind, seed=3)
    encoder = planted.encoder(1, 30, rate=0.4, chains=0.1, seed=4)[0]
    whole = greedy_decode(planted.transducer, encoder)
    state, parts, start = None, [], 0
    for size in (1, 0, 6, 13, 10):
        part = greedy_decode(planted.transducer, encoder[start : start + size], state=state)
        parts += [(token, start + frame, duration) for token, frame, duration in emissions(part)]
        state, start = part.state, start + size
    assert parts == emissions(whole)
    torch.testing.assert_close(state.predictor_output, whole.state.predictor_output)


def test_decoding_in_float64():
    planted = plant(joint_width=32, seed=5)
    encoder = planted.encoder(1, 20, seed=6)[0]
    wide = greedy_decode(planted.transducer.to(torch.float64), encoder.double())
    assert wide.tokens == greedy_decode(planted.transducer, encoder).tokens
    assert wide.state.predictor_output.dtype == torch.float64
