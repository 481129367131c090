"""Faults that decoders with CUDA graphs are known for: none of them is ours."""

import io
import threading

import pytest
import torch

from rnnt_fastdecode import CaptureError, GreedyDecoder

DURATIONS = (0, 1, 2, 3, 4)


# A GPU chooses the resident kernel for these networks; what holds for it holds for the graph.
@pytest.fixture(
    params=["cpu", *(pytest.param(engine, marks=pytest.mark.gpu) for engine in ("auto", "graph"))]
)
def engine(request):
    return request.param


@pytest.fixture
def device(engine):
    return torch.device("cpu" if engine == "cpu" else "cuda")


@pytest.fixture
def parts(plant, engine):
    return *plant(durations=DURATIONS), "graph" if engine == "graph" else None


def make(parts, device):
    network, predictor, joint, engine = parts
    rules = network.transducer.blank_id, DURATIONS
    return GreedyDecoder(predictor.to(device), joint.to(device), *rules, engine=engine)


def batch(parts, device, rows, frames, seed=0):
    return parts[0].encoder(rows, frames, seed=seed).to(device), torch.full((rows,), frames)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 31, 32, 33, 64, 65, 130])
def test_durations_are_right_at_any_batch_size(rows, device, parts, expected, same):
    encoder, lengths = batch(parts, device, rows, 12, seed=rows)
    lengths -= torch.arange(rows) % 5
    decoded = expected(parts[0], encoder.cpu(), lengths)
    assert rows < 8 or len({d for row in decoded for d in row.durations}) > 2
    same(make(parts, device)(encoder, lengths), decoded)


def test_a_decoder_serves_alternating_shapes(device, parts, expected, same):
    decoder = make(parts, device)
    for rows, frames in ((4, 9), (1, 30), (7, 3), (4, 30), (1, 1), (7, 30), (2, 9)) * 2:
        encoder, lengths = batch(parts, device, rows, frames, seed=rows + frames)
        same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_a_bit(kind, device, parts):
    decoder = make(parts, device)
    encoder, lengths = batch(parts, device, 5, 30)
    for frames in (30, 20):
        piece, valid = encoder[:, :frames], lengths.clamp(max=frames)
        outside = decoder(piece, valid)
        with torch.autocast(device.type, kind):
            inside = decoder(piece, valid)
        assert inside.hypotheses() == outside.hypotheses()
        assert inside.state.output.dtype == torch.float32
        assert torch.equal(inside.state.output, outside.state.output)


def test_inference_mode_changes_nothing(device, parts):
    encoder, lengths = batch(parts, device, 5, 30)
    outside = make(parts, device)(encoder, lengths)
    with torch.inference_mode():
        decoder = make(parts, device)
        inside = decoder(encoder.clone(), lengths.clone())
        assert inside.hypotheses() == outside.hypotheses()
        assert torch.equal(inside.tokens, outside.tokens)
    assert decoder(encoder, lengths, inside.state).state.batch == 5


def test_encoder_output_that_asks_for_gradients_is_decoded_without(device, parts):
    encoder, lengths = batch(parts, device, 3, 20)
    decoder = make(parts, device)
    result = decoder(encoder.requires_grad_(), lengths)
    assert not result.scores.requires_grad and not result.state.output.requires_grad
    assert result.hypotheses() == decoder(encoder.detach(), lengths).hypotheses()


def test_files_can_be_loaded_after_decoding(device, parts):
    file = io.BytesIO()
    tensors = {"a": torch.randn(3, 4), "names": ["b", "c"]}
    torch.save(tensors, file)
    decoder = make(parts, device)
    state = decoder(*batch(parts, device, 3, 20)).state
    for _ in range(3):
        state = decoder(*batch(parts, device, 3, 20), state).state
        file.seek(0)
        loaded = torch.load(file, map_location=device)
        assert torch.equal(loaded["a"].cpu(), tensors["a"]) and loaded["names"] == ["b", "c"]


def decode_in_threads(decoder, parts, device, threads, stream):
    """Each thread decodes utterances of its own in chunks, ten times, inside stream(): the hypotheses."""
    found: list[list] = [[] for _ in range(threads)]
    faults: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def work(index):
        try:
            with stream():
                encoder, _ = batch(parts, device, 1 + index, 24, seed=index)
                barrier.wait()
                for _ in range(10):
                    state, pieces = None, []
                    for begin in range(0, 24, 8):
                        chunk = encoder[:, begin : begin + 8].contiguous()
                        result = decoder(chunk, torch.full((1 + index,), 8, device=device), state)
                        state = result.state
                        pieces.append(result)
                    found[index].append([result.hypotheses() for result in pieces])
        except BaseException as error:
            faults.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert faults == []
    return found


class Nowhere:
    """A context that changes nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("own_streams", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_every_thread_gets_its_own_results(own_streams, device, parts, expected):
    if own_streams and device.type == "cpu":
        pytest.skip("a CPU has no streams")
    decoder = make(parts, device)
    stream = (lambda: torch.cuda.stream(torch.cuda.Stream())) if own_streams else Nowhere
    for index, runs in enumerate(decode_in_threads(decoder, parts, device, 6, stream)):
        encoder, lengths = batch(parts, "cpu", 1 + index, 24, seed=index)
        decoded = expected(parts[0], encoder, lengths)
        for chunks in runs:
            for row, want in enumerate(decoded):
                for name in ("tokens", "frames", "durations"):
                    got = [label for chunk in chunks for label in getattr(chunk[row], name)]
                    assert got == getattr(want, name)


@pytest.mark.gpu
class TestOnGpu:
    @pytest.fixture(params=["auto", "graph"])
    def engine(self, request):
        return request.param

    def test_replays_survive_an_emptied_cache_and_foreign_writes(self, device, parts, expected, same):
        decoder = make(parts, device)
        for rows, frames in ((6, 40), (2, 13), (6, 40), (3, 40), (8, 44), (2, 13)):
            encoder, lengths = batch(parts, device, rows, frames, seed=rows)
            result = decoder(encoder, lengths)
            torch.cuda.empty_cache()
            noise = [torch.full((1 << 20,), float("nan"), device=device) for _ in range(64)]
            same(result, expected(parts[0], encoder.cpu(), lengths))
            del noise
            torch.cuda.empty_cache()

    def test_decoding_goes_on_when_memory_is_short(self, device, parts, expected, same):
        decoder = make(parts, device)
        encoder, lengths = batch(parts, device, 6, 40)
        decoder(encoder, lengths).hypotheses()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(max(free - (256 << 20), 1), dtype=torch.uint8, device=device)
        for _ in range(3):
            same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))
        assert decoder.captures <= 1 and held.numel() > 0

    def test_a_call_that_finds_no_memory_leaves_the_decoder_usable(self, device, parts, expected, same):
        decoder = make(parts, device)
        encoder, lengths = batch(parts, device, 2, 20)
        decoder(encoder, lengths).hypotheses()
        wide = torch.zeros(1, 1, 64, device=device).expand(1 << 16, 1 << 15, 64)
        with pytest.raises(torch.OutOfMemoryError):
            decoder(wide, torch.zeros(1 << 16, dtype=torch.int64))
        same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))

    def test_an_outer_capture_is_refused_and_goes_on(self, device, parts, expected, same):
        decoder = make(parts, device)
        encoder, lengths = batch(parts, device, 3, 20)
        for lengths_given in (lengths, lengths.to(device)):
            x, graph = torch.ones(4, device=device), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = x * 2
                with pytest.raises(CaptureError, match="outside of the capture"):
                    decoder(encoder, lengths_given)
                y += 1
            y.zero_()
            graph.replay()
            assert y.tolist() == [3.0] * 4
            same(decoder(encoder, lengths_given), expected(parts[0], encoder.cpu(), lengths))

    def test_weights_are_there_before_another_stream_decodes(self, device, parts, expected, same):
        encoder, lengths = batch(parts, device, 3, 20)
        other = torch.cuda.Stream()
        make(parts, device)
        other.wait_stream(torch.cuda.current_stream())
        # The modules are on the device; a decoder's copies of them now come late.
        torch.cuda._sleep(100_000_000)
        decoder = make(parts, device)
        with torch.cuda.stream(other):
            result = decoder(encoder, lengths)
            same(result, expected(parts[0], encoder.cpu(), lengths))

    def test_decoders_on_two_gpus_do_not_disturb_each_other(self, parts, expected, same):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs a second CUDA device")
        decoders = [make(parts, torch.device("cuda", index)) for index in range(2)]
        calls = [batch(parts, decoder.device, 4, 30, seed=5) for decoder in decoders]
        for current in (0, 1):
            with torch.cuda.device(current):
                for _ in range(3):
                    results = [decoder(*call) for decoder, call in zip(decoders, calls, strict=True)]
                    for decoder, call, result in zip(decoders, calls, results, strict=True):
                        assert result.tokens.device == decoder.device == result.state.output.device
                        same(result, expected(parts[0], call[0].cpu(), call[1]))
                assert torch.cuda.current_device() == current
