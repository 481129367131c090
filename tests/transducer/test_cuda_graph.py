"""The loop on the GPU: one recording serves many shapes, allocates nothing, minds other streams."""

import os
import warnings

import pytest
import torch

from rnnt_fastdecode import GreedyDecoder
from rnnt_fastdecode.reference import decode
from rnnt_fastdecode.transducer import graph_loop, runners

pytestmark = pytest.mark.gpu


@pytest.fixture
def parts(plant):
    return plant(durations=(0, 1, 2, 3, 4))


def make(parts):
    network, predictor, joint = parts
    return GreedyDecoder(
        predictor.cuda(), joint.cuda(), network.transducer.blank_id, (0, 1, 2, 3, 4), engine="graph"
    )


def batch(parts, rows, frames, seed=0):
    return parts[0].encoder(rows, frames, seed=seed).cuda(), torch.full((rows,), frames)


def test_the_loop_is_a_graph(parts):
    decoder = make(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder(*batch(parts, 2, 10))
    assert decoder.path == "cuda graph" and decoder.captures == 1


def test_smaller_batches_and_shorter_chunks_do_not_record_again(parts, expected, same):
    decoder = make(parts)
    decoder(*batch(parts, 8, 40))
    for rows, frames in ((8, 40), (1, 40), (8, 3), (5, 17), (1, 1), (8, 40)):
        encoder, lengths = batch(parts, rows, frames, seed=rows)
        same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))
    assert decoder.captures == 1


def test_growing_records_once_and_alternating_shapes_never_again(parts, expected, same):
    decoder = make(parts)
    for rows, frames in ((2, 50), (9, 10), (2, 50), (9, 10), (9, 50)):
        encoder, lengths = batch(parts, rows, frames, seed=rows)
        same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))
    assert decoder.captures == 2


def test_the_graph_survives_emptying_the_allocator_cache(parts, expected, same):
    decoder = make(parts)
    encoder, lengths = batch(parts, 6, 40)
    decoder(encoder, lengths)
    torch.cuda.empty_cache()
    noise = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    same(decoder(encoder, lengths), expected(parts[0], encoder.cpu(), lengths))
    assert len(noise) == 64


def test_a_replay_allocates_only_its_result(parts):
    decoder = make(parts)
    encoder, lengths = batch(parts, 6, 40)
    decoder(encoder, lengths)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    result = decoder(encoder, lengths)
    growth = torch.cuda.memory_allocated() - before
    state = result.state
    tensors = (state.output, state.time_jumps, state.decoded_lengths, *state.predictor)
    labels = 16 * 6 * (40 * decoder.rules.max_symbols + 1)
    sizes = [labels, *(t.untyped_storage().nbytes() for t in tensors)]
    assert growth <= sum(-(-size // 512) * 512 for size in sizes)


def test_calls_on_different_streams_wait_for_each_other(parts, expected, same):
    decoder = make(parts)
    encoders = [batch(parts, 6, 40, seed=seed) for seed in range(4)]
    decoder(*encoders[0])
    torch.cuda.synchronize()
    results = []
    for encoder, lengths in encoders:
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(decoder(encoder, lengths))
    torch.cuda.synchronize()
    for (encoder, lengths), result in zip(encoders, results, strict=True):
        same(result, expected(parts[0], encoder.cpu(), lengths))


def test_without_conditional_nodes_the_host_drives_the_loop(parts, expected, same, monkeypatch):
    def refuse(*_):
        raise graph_loop.GraphLoopError("no conditional nodes here")

    monkeypatch.setattr(runners, "GraphLoop", refuse)
    decoder = make(parts)
    encoder, lengths = batch(parts, 6, 40)
    with pytest.warns(UserWarning, match="no conditional nodes here") as caught:
        result = decoder(encoder, lengths)
        decoder(encoder, lengths)
        decoder(*batch(parts, 7, 41))
    assert len(caught) == 1
    assert decoder.path == "cuda host loop"
    same(result, expected(parts[0], encoder.cpu(), lengths))


def test_recording_leaves_other_work_of_the_process_alone(parts):
    decoder = make(parts)
    decoder(*batch(parts, 2, 10))
    assert bytes([32]) == b" "
    assert torch.randn(4, device="cuda").sum().isfinite()


NETWORKS = [
    ("lstm", ()),
    ("lstm", (0, 1, 2, 3, 4)),
    ("lstm", (0, 2, 4, 8)),
    ("gru", (0, 1, 2, 3, 4)),
]


@pytest.mark.parametrize("engine", ["graph", "resident"])
@pytest.mark.parametrize(("kind", "durations"), NETWORKS)
def test_the_gpu_decodes_what_the_cpu_decodes(plant, engine, kind, durations, capsys):
    """2,000 utterances over the four networks; RNNT_FASTDECODE_UTTERANCES asks for more."""
    if engine == "resident" and kind == "gru":
        pytest.skip("the resident kernel has no GRU")
    wanted = int(os.environ.get("RNNT_FASTDECODE_UTTERANCES", "2000"))
    network, predictor, joint = plant(
        vocab_size=65, joint_width=96, durations=durations, predictor_kind=kind, seed=11
    )
    on_cpu = GreedyDecoder(predictor, joint, 64, durations)
    on_gpu = GreedyDecoder(predictor.cuda(), joint.cuda(), 64, durations, engine=engine)
    rows, labels, near_ties = 250, 0, 0
    for seed in range(-(-wanted // (len(NETWORKS) * rows))):
        encoder = network.encoder(rows, 40, chains=0.05, seed=seed)
        lengths = torch.randint(0, 41, (rows,), generator=torch.Generator().manual_seed(seed))
        expected = on_cpu(encoder, lengths).hypotheses()
        for row, got in enumerate(on_gpu(encoder.cuda(), lengths).hypotheses()):
            want = expected[row]
            labels += len(want.tokens)
            if (got.tokens, got.frames, got.durations) != (want.tokens, want.frames, want.durations):
                # Sums in another order may decide otherwise where float32 cannot tell the candidates apart.
                exact = decode.greedy_decode(network.transducer, encoder[row], int(lengths[row]))
                assert min(exact.margins) < 1e-5
                near_ties += 1
    assert labels > wanted // len(NETWORKS)
    with capsys.disabled():
        print(f"\n{engine} {kind} {durations}: {near_ties} near ties decided otherwise by the GPU")
    assert near_ties <= 1 + wanted // 10_000
