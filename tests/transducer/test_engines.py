"""Which engine decodes a batch, and that every engine decodes the same."""

import os
import pickle

import pytest
import torch

from rnnt_fastdecode import ArgumentError, GreedyDecoder
from rnnt_fastdecode.reference.ops import gru_step, lstm_step
from rnnt_fastdecode.transducer.resident import MOST_ROWS, ResidentRunner, best_window, ops
from rnnt_fastdecode.transducer.rules import GreedyRules
from rnnt_fastdecode.transducer.weights import pack_joint, pack_predictor

TDT = (0, 1, 2, 3, 4)
HALVES = [torch.bfloat16, torch.float16]
# Networks that the resident kernel takes, wide enough for margins that half precision does not bridge: kind,
# layers, V, H. Narrow ones are compared at their near ties in test_resident.py.
NETWORKS = [
    ("lstm", 1, 129, 320),
    ("lstm", 2, 1025, 640),
    ("stateless", 1, 77, 200),
    ("stateless_relu", 1, 129, 256),
]


def make(parts, dtype, durations=(), **options):
    network, predictor, joint = parts
    device = options.pop("device", "cuda")
    return GreedyDecoder(
        predictor.to(device, dtype),
        joint.to(device, dtype),
        network.transducer.blank_id,
        durations,
        **options,
    )


def lists(result):
    return [(h.tokens, h.frames, h.durations) for h in result.hypotheses()]


def ragged(network, rows, frames, seed=0):
    """Encoder output without bursts and lengths, the first row full and the second empty."""
    lengths = torch.randint(0, frames + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    lengths[:2] = torch.tensor([frames, 0])[:rows]
    return network.encoder(rows, frames, chains=0.0, seed=seed), lengths


def test_a_result_says_what_decoded_it(plant):
    parts = plant()
    encoder, lengths = ragged(parts[0], 2, 9)
    result = make(parts, torch.float32, device="cpu")(encoder, lengths)
    assert result.path == "cpu" and pickle.loads(pickle.dumps(result)).path == "cpu"


def test_a_decoder_knows_the_window_of_a_batch(plant):
    assert make(plant(), torch.float32, device="cpu").window(5) == 1
    assert make(plant(), torch.float32, device="cpu", window=3).window(5) == 3


def test_a_cpu_has_no_engines(plant):
    with pytest.raises(ArgumentError, match="engine must be None"):
        make(plant(), torch.float32, device="cpu", engine="graph")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_many_rows_get_no_wider_window_than_few(dtype):
    windows = [best_window(batch, dtype) for batch in (1, 7, 8, 9, 16, 17, 500)]
    assert windows == sorted(windows, reverse=True) and windows[0] > windows[-1] >= 1


@pytest.mark.parametrize(
    ("asked", "room", "got"), [(None, 48, 8), (None, 5, 5), (None, 0, 0), (3, 5, 3), (6, 5, 0)]
)
def test_the_widest_window_that_finds_room_is_taken(plant, monkeypatch, asked, room, got):
    network, predictor, joint = plant(vocab_size=129, joint_width=64)
    monkeypatch.setattr(ops, "greedy_resident_bytes", lambda *arguments: int(arguments[-1] <= room))
    rules = GreedyRules(network.transducer.blank_id, (), 10, 1)
    runner = ResidentRunner(pack_predictor(predictor), pack_joint(joint), rules, asked)
    assert runner.window(1) == got
    assert runner.fits(1) == (got > 0)


def first_step_of_an_lstm(network, label, sums):
    """Hidden value and cell of layer 0 after one label, by the reference and out of the unit's sums."""
    zero = torch.zeros(2, 32)
    _, (hidden, cell) = lstm_step(network.transducer.predictor_weights, label, (zero, zero))
    gate_i, _, gate_g, gate_o = sums
    new_cell = gate_i.sigmoid() * gate_g.tanh()
    return (hidden[0], cell[0]), (gate_o.sigmoid() * new_cell.tanh(), new_cell)


def first_step_of_a_gru(network, label, sums):
    _, hidden = gru_step(network.transducer.predictor_weights, label, torch.zeros(2, 32))
    gate_r, gate_z, from_input, from_hidden = sums
    new = (from_input + gate_r.sigmoid() * from_hidden).tanh()
    return (hidden[0],), ((1 - gate_z.sigmoid()) * new,)


@pytest.mark.parametrize(
    ("kind", "first_step"), [("lstm", first_step_of_an_lstm), ("gru", first_step_of_a_gru)]
)
def test_the_gate_table_is_the_first_layer_of_a_step_without_history(plant, kind, first_step):
    """With a zero state, the sums are the table's alone: the reference's new state follows from them."""
    network, predictor, _ = plant(vocab_size=33, joint_width=32, num_layers=2, predictor_kind=kind)
    table = pack_predictor(predictor).gate_table
    assert table.shape == (33, 32, 4) and table.dtype == torch.float32
    for label in (0, 5, 32):
        want, got = first_step(network, label, table[label].T)
        torch.testing.assert_close(got, want)


def test_a_stateless_predictor_needs_no_gate_table(plant):
    predictor = plant(predictor_kind="stateless")[1]
    assert pack_predictor(predictor).gate_table.numel() == 0


@pytest.mark.gpu
class TestOnGpu:
    def test_an_unknown_engine_is_named(self, plant):
        with pytest.raises(ArgumentError, match="'fast'"):
            make(plant(), torch.bfloat16, engine="fast")

    def test_a_network_that_does_not_fit_is_refused_or_decoded_by_a_graph(self, plant):
        parts = plant(joint_width=1024)
        with pytest.raises(ArgumentError, match="resident"):
            make(parts, torch.bfloat16, engine="resident")
        assert make(parts, torch.bfloat16).path == "cuda graph"

    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
    @pytest.mark.parametrize("kind, layers", [("gru", 1), ("gru", 4), ("lstm", 3), ("lstm", 4)])
    def test_what_the_resident_kernel_does_not_know_is_decoded_by_a_graph(self, plant, kind, layers, dtype):
        parts = plant(num_layers=layers, predictor_kind=kind)
        with pytest.raises(ArgumentError, match="resident"):
            make(parts, dtype, engine="resident")
        decoder = make(parts, dtype)
        assert decoder.path == "cuda graph"
        encoder, lengths = ragged(parts[0], 2, 9)
        assert decoder(encoder.cuda(), lengths).path == "cuda graph"

    def test_a_window_that_does_not_fit_is_decoded_by_a_graph(self, plant):
        parts = plant()
        decoder = make(parts, torch.bfloat16, window=50)
        encoder, lengths = ragged(parts[0], 20, 60)
        result = decoder(encoder.cuda(), lengths)
        assert decoder.path == "cuda graph"
        assert lists(result) == lists(make(parts, torch.bfloat16, engine="resident")(encoder.cuda(), lengths))

    def test_the_batch_decides(self, plant):
        parts = plant(joint_width=32)
        decoder, most = make(parts, torch.bfloat16), MOST_ROWS[torch.bfloat16]
        for rows, path in (
            (2, "resident"),
            (most + 1, "graph"),
            (most, "resident"),
        ):
            encoder, lengths = ragged(parts[0], rows, 9)
            assert decoder(encoder.cuda(), lengths).path == decoder.path == f"cuda {path}"
        assert decoder.captures == 1
        assert decoder.window(most) == best_window(most, torch.bfloat16)
        assert make(parts, torch.bfloat16, window=3).window(most + 1) == 3

    @pytest.mark.parametrize("durations", [(), TDT])
    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("kind, layers, vocab_size, width", NETWORKS)
    def test_every_engine_decodes_what_the_cpu_decodes(
        self, plant, kind, layers, vocab_size, width, dtype, durations
    ):
        """Planted labels have margins that rounding does not bridge; durations have none: RNN-T is exact."""
        parts = plant(
            vocab_size=vocab_size,
            joint_width=width,
            num_layers=layers,
            predictor_kind=kind,
            durations=durations,
        )
        on_cpu = make(parts, torch.float32, durations, device="cpu")
        for rows, window in ((1, None), (3, 1), (8, None), (9, 5), (33, None), (70, 3)):
            encoder, lengths = ragged(parts[0], rows, 37, seed=rows)
            encoder = encoder.to(dtype)
            results = {
                engine: make(parts, dtype, durations, engine=engine, window=window)(encoder.cuda(), lengths)
                for engine in ("resident", "graph")
            }
            if not durations:
                want = lists(on_cpu(encoder.float(), lengths))
                assert lists(results["resident"]) == lists(results["graph"]) == want
            pairs = list(zip(*(result.hypotheses() for result in results.values()), strict=True))
            alike = [(a, b) for a, b in pairs if (a.tokens, a.frames) == (b.tokens, b.frames)]
            assert len(alike) >= 0.9 * rows
            for ours, theirs in alike:
                assert ours.log_probs == pytest.approx(theirs.log_probs, abs=0.02)

    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
    @pytest.mark.parametrize("width", [320, 328])
    def test_the_encoder_projection_is_that_of_torch(self, plant, width, dtype):
        """Frames that are not aligned to 16 bytes go through torch's own product."""
        parts = plant(vocab_size=129, joint_width=width)
        decoder = make(parts, dtype, engine="resident")
        for rows, frames in ((1, 3), (2, 70), (9, 100), (40, 90)):
            encoder, lengths = ragged(parts[0], rows, frames, seed=rows)
            encoder = encoder.to("cuda", dtype)
            shifted = torch.empty(encoder.numel() + 1, dtype=dtype, device="cuda")[1:].view(encoder.shape)
            ours, theirs = decoder(encoder, lengths), decoder(shifted.copy_(encoder), lengths)
            assert lists(ours) == lists(theirs)
            tolerance = 1e-4 if dtype == torch.float32 else 0.03
            torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize(
        "kind, layers, vocab_size, width",
        [
            ("lstm", 1, 129, 320),
            ("lstm", 3, 77, 200),
            ("lstm", 2, 1025, 640),
            ("gru", 1, 129, 320),
            ("gru", 3, 77, 264),
            ("gru", 2, 1025, 640),
            ("gru", 4, 33, 320),
        ],
    )
    def test_a_graph_decodes_any_number_of_rows_as_the_cpu_does(
        self, plant, kind, layers, vocab_size, width, dtype
    ):
        parts = plant(vocab_size=vocab_size, joint_width=width, num_layers=layers, predictor_kind=kind)
        encoder, lengths = ragged(parts[0], 700, 30)
        encoder = encoder.to(dtype)
        want = lists(make(parts, torch.float32, device="cpu")(encoder.float(), lengths))
        for rows in (31, 100, 190, 300, 700):
            decoder = make(parts, dtype, engine="graph")
            assert lists(decoder(encoder[:rows].cuda(), lengths[:rows])) == want[:rows]

    @pytest.mark.parametrize("engine", ["resident", "graph"])
    @pytest.mark.parametrize("window", range(1, 17))
    def test_every_window_decodes_what_the_cpu_decodes(self, plant, window, engine):
        parts = plant(vocab_size=65, joint_width=96, durations=TDT)
        network = parts[0]
        lengths = torch.tensor([40, 0, 1, 23, 39, 40])
        for rows in (6, 1):
            encoder = network.encoder(rows, 40, chains=0.1, seed=window)
            want = make(parts, torch.float32, TDT, device="cpu")(encoder, lengths[:rows])
            decoder = make(parts, torch.float32, TDT, engine=engine, window=window)
            assert lists(decoder(encoder.cuda(), lengths[:rows])) == lists(want)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_chunks_may_change_engines_and_carry_the_state(self, plant, dtype):
        parts = plant(vocab_size=129, joint_width=64)
        network = parts[0]
        encoder, lengths = ragged(network, 12, 60, seed=3)
        whole = make(parts, dtype)(encoder.cuda(), lengths)
        decoders = [make(parts, dtype, engine=engine) for engine in ("resident", "graph")]
        tokens, frames, state = [[] for _ in range(12)], [[] for _ in range(12)], None
        for i, begin in enumerate(range(0, 60, 7)):
            part = encoder[:, begin : begin + 7].cuda()
            result = decoders[i % 2](part, (lengths - begin).clamp(0, part.shape[1]), state)
            state = result.state
            for row, hypothesis in enumerate(result.hypotheses()):
                tokens[row] += hypothesis.tokens
                frames[row] += hypothesis.frames
        assert tokens == [h.tokens for h in whole.hypotheses()]
        assert frames == [h.frames for h in whole.hypotheses()]

    def test_buffers_of_a_large_batch_serve_smaller_ones(self, plant):
        parts = plant(vocab_size=129, joint_width=64)
        decoder, fresh = make(parts, torch.bfloat16), make(parts, torch.bfloat16, engine="graph")
        for rows, frames in ((90, 30), (1, 30), (33, 7), (8, 29), (90, 30)):
            encoder, lengths = ragged(parts[0], rows, frames, seed=rows)
            encoder = encoder.cuda()
            assert lists(decoder(encoder, lengths)) == lists(fresh(encoder, lengths))
            assert decoder.path == "cuda resident"

    def test_max_symbols_ends_bursts(self, plant):
        parts = plant(vocab_size=129, joint_width=64)
        encoder = parts[0].encoder(40, 30, chains=0.4, seed=5).cuda()
        lengths = torch.full((40,), 30)
        results = [
            lists(make(parts, torch.bfloat16, max_symbols=3, engine=engine)(encoder, lengths))
            for engine in ("resident", "graph")
        ]
        assert results[0] == results[1]
        assert max(frames.count(frame) for _, frames, _ in results[0] for frame in frames) == 3

    def test_blank_may_be_anywhere(self, plant):
        for blank_id in (0, 17):
            parts = plant(vocab_size=129, joint_width=64, blank_id=blank_id)
            encoder, lengths = ragged(parts[0], 10, 40)
            results = [
                lists(make(parts, torch.bfloat16, engine=e)(encoder.cuda(), lengths))
                for e in ("resident", "graph")
            ]
            assert results[0] == results[1] and any(tokens for tokens, _, _ in results[0])

    def test_many_utterances_are_decoded_alike(self, plant):
        """RNNT_FASTDECODE_UTTERANCES of them, 2,000 without it."""
        wanted = int(os.environ.get("RNNT_FASTDECODE_UTTERANCES", 2000))
        parts = plant(vocab_size=257, joint_width=128)
        resident = make(parts, torch.bfloat16, engine="resident")
        graph = make(parts, torch.bfloat16, engine="graph")
        compared = labels = 0
        for seed, rows in enumerate([1, 5, 13, 32, 77, 128] * (wanted // 256 + 1)):
            encoder, lengths = ragged(parts[0], rows, 40, seed=seed)
            encoder = encoder.cuda()
            ours, theirs = lists(resident(encoder, lengths)), lists(graph(encoder, lengths))
            assert ours == theirs
            compared += rows
            labels += sum(len(tokens) for tokens, _, _ in ours)
            if compared >= wanted:
                break
        print(f"\n{compared} utterances, {labels} labels, none differs")
        assert compared >= wanted and labels > compared

    def test_a_resident_call_keeps_no_memory_but_its_result(self, plant):
        parts = plant(vocab_size=129, joint_width=64)
        decoder = make(parts, torch.bfloat16, engine="resident")
        encoder, lengths = ragged(parts[0], 6, 40)
        encoder, lengths = encoder.cuda(), lengths.cuda()
        decoder(encoder, lengths).hypotheses()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        result = decoder(encoder, lengths)
        growth = torch.cuda.memory_allocated() - before
        labels = 16 * 6 * (40 * decoder.rules.max_symbols + 1)
        sizes = [labels, *(t.untyped_storage().nbytes() for t in result.state.tensors)]
        assert growth == sum(-(-size // 512) * 512 for size in sizes)

    def test_memory_that_is_short_is_said_to_be(self, plant):
        parts = plant(vocab_size=129, joint_width=64)
        decoder = make(parts, torch.float32, engine="resident")
        encoder, lengths = ragged(parts[0], 3, 20)
        want = lists(decoder(encoder.cuda(), lengths))
        wide = torch.zeros(8, 1 << 17, encoder.shape[2], device="cuda")
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 24)) / total)
        try:
            with pytest.raises(torch.OutOfMemoryError):
                decoder(wide, torch.zeros(8, dtype=torch.int64))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert lists(decoder(encoder.cuda(), lengths)) == want

    def test_a_resident_call_does_not_wait_for_one_on_another_stream(self, plant):
        parts = plant(vocab_size=129, joint_width=64)
        decoder = make(parts, torch.bfloat16, engine="resident")
        encoder, lengths = ragged(parts[0], 3, 20)
        encoder, lengths = encoder.cuda(), lengths.cuda()
        want = lists(decoder(encoder, lengths))
        driver = pytest.importorskip("cuda.bindings.driver")
        slow, fast, gate = torch.cuda.Stream(), torch.cuda.Stream(), torch.zeros(1, device="cuda").int()
        torch.cuda.synchronize()
        # Not by a kernel: what needs all of the device could have to wait for that too.
        equal = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_EQ
        (status,) = driver.cuStreamWaitValue32(slow.cuda_stream, gate.data_ptr(), 1, equal)
        assert status == driver.CUresult.CUDA_SUCCESS
        with torch.cuda.stream(slow):
            late = decoder(encoder, lengths)
            done = torch.cuda.Event()
            done.record()
        with torch.cuda.stream(fast):
            assert lists(decoder(encoder, lengths)) == want
            assert not done.query()
            gate.fill_(1)
        assert lists(late) == want
