"""A result is made when it is asked for, from one packed tensor and one copy of it."""

import io
import pickle
import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnnt_fastdecode import ArgumentError, DecodeResult, DecodeState, GreedyDecoder
from rnnt_fastdecode.transducer.labels import PackedLabels

COLUMNS = ("tokens", "frames", "durations", "log_probs", "lengths", "scores")


def state_of(rows):
    counters = (torch.zeros(rows, dtype=dtype) for dtype in (torch.int32, torch.int64))
    return DecodeState((torch.zeros(rows, 2),), (0,), torch.zeros(rows, 3), *counters)


@pytest.fixture
def decoder(plant, device):
    network, predictor, joint = plant(durations=(0, 1, 2, 3, 4))
    return GreedyDecoder(predictor.to(device), joint.to(device), network.transducer.blank_id, (0, 1, 2, 3, 4))


@pytest.fixture
def call(plant, device):
    """call(rows, frames): encoder output and ragged lengths on the device."""

    def make(rows=7, frames=30, seed=0, chains=0.0):
        encoder = plant(durations=(0, 1, 2, 3, 4))[0].encoder(rows, frames, chains=chains, seed=seed)
        lengths = torch.arange(frames, frames - 3 * rows, -3).clamp(min=0)
        return encoder.to(device), lengths.to(device)

    return make


class Dispatched(TorchDispatchMode):
    """Counts the ops of a block."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **(kwargs or {}))


def test_columns_and_hypotheses_say_the_same(decoder, call):
    result = decoder(*call())
    hypotheses = result.hypotheses()
    assert sum(len(h.tokens) for h in hypotheses) > 10
    assert result.lengths.tolist() == [len(h.tokens) for h in hypotheses]
    assert result.scores.tolist() == pytest.approx([sum(h.log_probs) for h in hypotheses], abs=1e-5)
    for name in COLUMNS[:4]:
        column = getattr(result, name)
        assert column.shape == (7, max(result.lengths)) and column.device == decoder.device
        for row, hypothesis in enumerate(hypotheses):
            assert column[row, : len(hypothesis.tokens)].tolist() == getattr(hypothesis, name)
            padding = -1 if name == "tokens" else 0
            assert column[row, len(hypothesis.tokens) :].eq(padding).all()


@pytest.mark.parametrize("first", [*COLUMNS, "hypotheses"])
def test_the_order_of_asking_does_not_matter(first, decoder, call):
    arguments = call()
    want, got = decoder(*arguments), decoder(*arguments)
    if first == "hypotheses":
        got.hypotheses()
    else:
        getattr(got, first)
    for name in COLUMNS:
        assert torch.equal(getattr(got, name), getattr(want, name))
    assert got.hypotheses() == want.hypotheses()


def test_a_column_is_made_once(decoder, call):
    result = decoder(*call())
    for name in COLUMNS:
        assert getattr(result, name) is getattr(result, name)


def test_a_call_makes_no_columns(decoder, call):
    """With the resident kernel a call is one op of ours, else a projection and three beside the loop."""
    arguments = call()
    decoder(*arguments)
    with Dispatched() as counter:
        decoder(*arguments)
    ours = {name: count for name, count in counter.ops.items() if name.startswith("rnnt_fastdecode::")}
    ours.pop("rnnt_fastdecode::greedy_rounds_", None)
    resident = decoder.path == "cuda resident"
    expected = ["greedy_decode"] if resident else ["load_rows_", "save_rows", "pack_labels"]
    assert ours == {f"rnnt_fastdecode::{name}": 1 for name in expected}
    assert not {"aten::masked_fill_", "aten::index", "aten::clone", "aten::arange"} & set(counter.ops)


def test_lists_are_made_without_another_op(decoder, call):
    result = decoder(*call())
    with Dispatched() as counter:
        result.start_copy().hypotheses()
    assert set(counter.ops) <= {"aten::detach"}


def test_results_can_be_made_of_padded_tensors(decoder, call):
    result = decoder(*call())
    columns = [getattr(result, name).clone() for name in COLUMNS[:5]]
    beyond = columns[0] == -1
    for column in columns[:4]:
        column[beyond] = 77
    copy = DecodeResult.from_padded(*columns, result.state)
    assert copy.hypotheses() == result.hypotheses()
    for name in COLUMNS:
        assert torch.equal(getattr(copy, name), getattr(result, name))


def test_a_result_without_rows_has_empty_columns():
    empty = torch.zeros(0, 0, dtype=torch.int64)
    result = DecodeResult.from_padded(empty, empty, empty, empty.float(), empty[:, 0:0].sum(1), state_of(0))
    assert result.hypotheses() == [] and result.tokens.shape == (0, 0) and result.scores.shape == (0,)


@pytest.mark.parametrize("read_before", [False, True])
def test_results_can_be_pickled_and_saved(read_before, decoder, call):
    result = decoder(*call())
    if read_before:
        result.hypotheses()
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    for copy in (
        pickle.loads(pickle.dumps(result)),
        torch.load(file, map_location="cpu", weights_only=False),
    ):
        assert copy.hypotheses() == result.hypotheses()
        assert torch.equal(copy.tokens.cpu(), result.tokens.cpu())
        assert torch.equal(copy.state.output.cpu(), result.state.output.cpu())
    assert copy.tokens.device.type == "cpu"


def test_what_is_asked_for_in_inference_mode_can_be_used_outside(decoder, call):
    result = decoder(*call())
    with torch.inference_mode():
        scores, log_probs = result.scores, result.log_probs
    weight = torch.ones((), device=decoder.device, requires_grad=True)
    ((scores.sum() + log_probs.sum()) * weight).backward()
    assert weight.grad is not None


def test_threads_may_read_one_result(decoder, call):
    result, want = decoder(*call()), decoder(*call()).hypotheses()
    got = []
    threads = [threading.Thread(target=lambda: got.append(result.hypotheses())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 8


def test_lengths_that_were_not_looked_at_are_when_the_result_is_read():
    rows = torch.tensor([[0, 0, 0, 4], [0, 0, 0, 9], [0, 0, 0, -1]], dtype=torch.int32)
    assert DecodeResult(PackedLabels(rows, 3, frames=None), state_of(3)).hypotheses()[0].tokens == []
    for name in ("tokens", "log_probs"):
        result = DecodeResult(PackedLabels(rows, 3, frames=4), state_of(3))
        for _ in range(2):
            with pytest.raises(ArgumentError, match="between 0 and 4 frames, got 9 in row 1"):
                getattr(result, name)
            with pytest.raises(ArgumentError, match="between 0 and 4 frames, got 9 in row 1"):
                result.hypotheses()


@pytest.mark.gpu
class TestOnGpu:
    @pytest.fixture
    def device(self):
        return torch.device("cuda")

    @pytest.mark.parametrize("copy", [True, False])
    @pytest.mark.parametrize("where", ["cpu", "cuda"])
    def test_a_call_never_waits(self, copy, where, decoder, call):
        encoder, lengths = call()
        lengths = lengths.to(where)
        decoder(encoder, lengths)
        torch.cuda.synchronize()
        busy = torch.cuda.Event()
        torch.cuda._sleep(200_000_000)
        busy.record()
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = decoder(encoder, lengths, copy=copy)
            result = decoder(encoder, lengths, result.state, copy=copy)
            result.scores, result.lengths, result.start_copy()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not busy.query()
        assert sum(map(len, (h.tokens for h in result.hypotheses()))) == int(result.lengths.sum())

    def test_reading_does_not_wait_for_later_work(self, decoder, call):
        result = decoder(*call())
        torch.cuda._sleep(1_000_000_000)
        later = torch.cuda.Event()
        later.record()
        result.hypotheses()
        assert not later.query()
        later.synchronize()

    def test_later_calls_leave_an_unread_result_alone(self, decoder, call):
        want = [decoder(*call(seed=seed)).hypotheses() for seed in range(5)]
        results = [decoder(*call(seed=seed), copy=seed % 2 == 0) for seed in range(5)]
        assert [result.hypotheses() for result in reversed(results)] == want[::-1]

    @pytest.mark.parametrize("copy", [True, False])
    def test_more_labels_than_frames_are_read_in_a_second_copy(self, copy, plant, expected, same):
        parts = plant()
        encoder = parts[0].encoder(4, 30, chains=1.0, seed=2)
        lengths = torch.full((4,), 30)
        decoded = expected(parts[0], encoder, lengths)
        assert sum(len(row.tokens) for row in decoded) > 4 * 30
        decoder = GreedyDecoder(parts[1].cuda(), parts[2].cuda(), parts[0].transducer.blank_id)
        first = decoder(encoder.cuda(), lengths, copy=copy)
        decoder(encoder.cuda() * 0, lengths)
        same(first, decoded)
        assert first.tokens.tolist() == [
            row.tokens + [-1] * (first.tokens.shape[1] - len(row.tokens)) for row in decoded
        ]

    def test_reading_lets_the_device_memory_go(self, decoder, call):
        arguments = call(rows=64, frames=200)
        decoder(*arguments).hypotheses()
        result = decoder(*arguments)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        result.hypotheses()
        assert before - torch.cuda.memory_allocated() >= 16 * 64 * 200 * decoder.rules.max_symbols

    def test_columns_may_be_asked_for_on_another_stream(self, decoder, call):
        arguments = call()
        want = decoder(*arguments)
        want.hypotheses()
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        got = decoder(*arguments)
        with torch.cuda.stream(torch.cuda.Stream()):
            columns = {name: getattr(got, name) for name in COLUMNS}
            del got
        torch.full((1 << 22,), -5, device="cuda")
        torch.cuda.synchronize()
        for name, column in columns.items():
            assert torch.equal(column, getattr(want, name))

    @pytest.mark.parametrize(("wrong", "row"), [(31, 3), (-1, 0), (2**40, 6)])
    def test_wrong_lengths_on_the_gpu_are_named_when_read(self, wrong, row, decoder, call):
        encoder, lengths = call()
        good = decoder(encoder, lengths).hypotheses()
        bad = lengths.clone()
        bad[row] = wrong
        result = decoder(encoder, bad)
        for ask in (result.hypotheses, lambda: result.tokens, lambda: result.log_probs):
            with pytest.raises(ArgumentError, match=f"between 0 and 30 frames, got .* in row {row}"):
                ask()
        assert decoder(encoder, lengths).hypotheses() == good

    def test_wrong_lengths_without_frames_are_named_when_read(self, decoder, call):
        encoder, lengths = call()
        result = decoder(encoder[:, :0], lengths)
        with pytest.raises(ArgumentError, match="between 0 and 0 frames, got 30 in row 0"):
            result.hypotheses()
        assert decoder(encoder[:, :0], lengths * 0).tokens.shape == (7, 0)

    def test_wrong_lengths_never_reach_frames_of_an_earlier_call(self, decoder, call):
        """The buffers hold more frames than this call has."""
        encoder, lengths = call()
        decoder(encoder, torch.full_like(lengths, 30))
        short = encoder[:, :10].contiguous()
        beyond = decoder(short, torch.full_like(lengths, 25))
        within = decoder(short, torch.full_like(lengths, 10))
        assert torch.equal(beyond.scores, within.scores) and torch.equal(beyond.lengths, within.lengths)
        assert torch.equal(beyond.state.decoded_lengths, within.state.decoded_lengths)
