"""The reference ops against torch's own modules and against what they promise."""

import torch

from rnnt_fastdecode.reference.ops import gru_step, joint_argmax, kv_cache_update, lstm_step, stateless_step


def test_lstm_step_equals_torch():
    torch.manual_seed(0)
    vocab, hidden, layers, joint_width = 9, 7, 3, 5
    embedding = torch.nn.Embedding(vocab, hidden).double()
    lstm = torch.nn.LSTM(hidden, hidden, layers).double()
    projection = torch.nn.Linear(hidden, joint_width).double()
    labels = torch.randint(0, vocab, (8,))
    with torch.no_grad():
        want, (want_hidden, want_cell) = lstm(embedding(labels))
        want = projection(want)
        weights = [
            embedding.weight,
            torch.stack([torch.cat([w[0], w[1]], dim=1) for w in lstm.all_weights]),
            torch.stack([w[2] + w[3] for w in lstm.all_weights]),
            projection.weight,
            projection.bias,
        ]
        state = (torch.zeros(layers, hidden).double(), torch.zeros(layers, hidden).double())
        for step, label in enumerate(labels.tolist()):
            output, state = lstm_step(weights, label, state)
            torch.testing.assert_close(output, want[step])
    torch.testing.assert_close(state, (want_hidden, want_cell))


def test_gru_step_equals_torch():
    torch.manual_seed(0)
    vocab, hidden, layers, joint_width = 9, 7, 3, 5
    embedding = torch.nn.Embedding(vocab, hidden).double()
    gru = torch.nn.GRU(hidden, hidden, layers).double()
    projection = torch.nn.Linear(hidden, joint_width).double()
    labels = torch.randint(0, vocab, (8,))
    with torch.no_grad():
        want, want_hidden = gru(embedding(labels))
        want = projection(want)
        weights = [
            embedding.weight,
            torch.stack([torch.stack(w[:2]) for w in gru.all_weights]),
            torch.stack([torch.stack(w[2:]) for w in gru.all_weights]),
            projection.weight,
            projection.bias,
        ]
        state = torch.zeros(layers, hidden).double()
        for step, label in enumerate(labels.tolist()):
            output, state = gru_step(weights, label, state)
            torch.testing.assert_close(output, want[step])
    torch.testing.assert_close(state, want_hidden)


def test_stateless_step_adds_one_entry_for_each_label_of_the_context():
    tables = torch.randn(3, 5, 4)
    projection, bias = torch.randn(2, 4), torch.randn(2)
    output, context = stateless_step([tables, projection, bias], 4, torch.tensor([1, 0]), relu=False)
    torch.testing.assert_close(output, projection @ (tables[0, 4] + tables[1, 1] + tables[2, 0]) + bias)
    assert context.tolist() == [4, 1]


def test_joint_argmax_marks_frames_that_a_row_does_not_have():
    encoder, predictor = torch.randn(2, 4, 3), torch.randn(2, 3)
    weight = torch.randn(7, 3)
    tokens, durations, log_probs = joint_argmax(
        encoder, predictor, weight, None, torch.tensor([2, 0]), torch.tensor([3, 0]), 2, 2, "tanh"
    )
    logits = weight @ torch.tanh(encoder[0, 2] + predictor[0])
    assert tokens.tolist() == [[int(logits[:5].argmax()), -1], [-1, -1]]
    assert durations.tolist() == [[int(logits[5:].argmax()), 0], [0, 0]]
    torch.testing.assert_close(log_probs[0, 0], logits[:5].log_softmax(0).max())
    assert log_probs[0, 1] == 0 and log_probs[1].eq(0).all()


def test_kv_cache_holds_the_last_valid_frames():
    keys = torch.arange(1.0, 8).reshape(1, 7, 1, 1)
    cache = torch.zeros(2, 1, 3, 1)
    none = torch.tensor([0, 0])
    for start, size in ((0, 2), (2, 4)):
        chunk = torch.full((1, 5, 1, 1), float("nan"))
        chunk[0, :size] = keys[0, start : start + size]
        lengths = torch.tensor([size])
        positions = none + torch.tensor([0, start])
        cache, values = kv_cache_update(chunk, -chunk, lengths, torch.tensor([1]), positions, cache, -cache)
        torch.testing.assert_close(values, -cache)
    assert cache[1].flatten().tolist() == [4, 5, 6] and cache[0].eq(0).all()


def test_kv_cache_skips_rows_without_a_slot():
    cache = torch.zeros(1, 1, 2, 1)
    after, _ = kv_cache_update(
        torch.ones(1, 2, 1, 1),
        torch.ones(1, 2, 1, 1),
        torch.tensor([2]),
        torch.tensor([-1]),
        torch.tensor([0]),
        cache,
        cache,
    )
    assert torch.equal(after, cache)
