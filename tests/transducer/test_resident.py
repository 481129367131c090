"""The resident kernel, greedy_rounds_ with rounds = -1 on a GPU, decodes in fp32 what the CPU decodes."""

import pytest
import torch
from op_cases import POISON, Loop, integers, normal, random_transducer
from resident_cases import TDT, ragged, run_resident

from rnnt_fastdecode.reference.planted import plant

pytestmark = pytest.mark.gpu


def both(transducer, encoder, lengths, **options):
    """The same loop, finished by the resident kernel and by the CPU."""
    options.setdefault("capacity", encoder.shape[1] * options.get("max_symbols", 10))
    on_gpu = run_resident(Loop(transducer, encoder, lengths, device="cuda", **options))
    return on_gpu, Loop(transducer, encoder, lengths, **options).run()


def check(on_gpu, on_cpu):
    for name in ("counts", "times", "tokens", "frames", "token_durations"):
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(on_cpu, name)), name
    torch.testing.assert_close(on_gpu.log_probs.cpu(), on_cpu.log_probs, rtol=0, atol=1e-4)
    torch.testing.assert_close(on_gpu.output.cpu(), on_cpu.output, rtol=1e-4, atol=1e-4)
    states = on_gpu.state[:2], on_cpu.state[:2]
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "vocab"), [(64, 33), (200, 77), (640, 1025)])
@pytest.mark.parametrize("batch", [1, 3, 8, 33, 70, 129])
@pytest.mark.parametrize("durations", [(), TDT])
@pytest.mark.parametrize("window", [1, 3, 6])
def test_shapes(hidden, vocab, batch, durations, window):
    planted = plant(vocab_size=vocab, joint_width=hidden, durations=durations, seed=batch)
    encoder, lengths = ragged(planted, batch, frames=24, seed=window)
    on_gpu, on_cpu = both(planted.transducer, encoder, lengths, window=window)
    check(on_gpu, on_cpu)
    assert batch == 1 or on_gpu.counts.sum() > 0


@pytest.mark.parametrize("durations", [(), TDT])
@pytest.mark.parametrize("batch", [1, 32])
def test_the_benchmark_shape(batch, durations):
    planted = plant(vocab_size=1025, joint_width=640, durations=durations, seed=5)
    encoder, lengths = ragged(planted, batch, frames=150, seed=6)
    check(*both(planted.transducer, encoder, lengths, window=8))


@pytest.mark.parametrize("window", [2, 8, 13])
@pytest.mark.parametrize("batch", [2, 5, 12, 20, 128])
def test_windows_and_batches(batch, window):
    planted = plant(joint_width=96, durations=(0, 2, 4, 8), seed=20)
    encoder, lengths = ragged(planted, batch, frames=30, seed=21)
    check(*both(planted.transducer, encoder, lengths, window=window))


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("hidden", "joint_width"), [(320, 64), (64, 48), (636, 636)])
def test_layers_and_widths(hidden, joint_width, layers, batch):
    planted = plant(joint_width=joint_width, hidden=hidden, num_layers=layers, seed=1)
    encoder, lengths = ragged(planted, batch, frames=20, seed=2)
    check(*both(planted.transducer, encoder, lengths, window=5))


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("kind", ["stateless", "stateless_relu"])
def test_stateless_predictors(kind, context, batch):
    planted = plant(joint_width=64, predictor_kind=kind, context=context, seed=3)
    encoder, lengths = ragged(planted, batch, frames=20, seed=4)
    check(*both(planted.transducer, encoder, lengths))


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations(activation, batch):
    transducer = random_transducer(
        vocab=40, joint_width=32, hidden=24, activation=activation, durations=(0, 1, 2), seed=3
    )
    lengths = integers(0, 13, (batch,), 4)
    check(*both(transducer, normal(batch, 12, 32, seed=4), lengths))


@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize(("vocab", "blank_id"), [(5000, 0), (5000, 4999), (9000, 8999)])
def test_many_columns_for_a_block(vocab, blank_id, batch):
    planted = plant(vocab_size=vocab, joint_width=128, durations=TDT, blank_id=blank_id, seed=7)
    encoder, lengths = ragged(planted, batch, frames=16, seed=8)
    check(*both(planted.transducer, encoder, lengths, window=3))


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
def test_max_symbols(max_symbols):
    transducer = random_transducer(
        vocab=9, joint_width=16, hidden=16, blank_bias=-5.0, durations=(0, 1), seed=5
    )
    encoder, lengths = normal(5, 8, 16, seed=6), torch.tensor([8, 3, 0, 8, 1])
    check(*both(transducer, encoder, lengths, max_symbols=max_symbols))


@pytest.mark.parametrize("durations", [(), (0, 2, 4, 8)])
@pytest.mark.parametrize("batch", [1, 33])
def test_chunks_with_carried_state_give_what_one_pass_gives(batch, durations):
    planted = plant(joint_width=64, durations=durations, seed=9)
    encoder = planted.encoder(batch, 30, seed=10)
    lengths = integers(20, 31, (batch,), 11)
    whole = Loop(planted.transducer, encoder, lengths, capacity=300).run()
    loop = Loop(planted.transducer, encoder[:, :7], lengths, capacity=300, device="cuda")
    projected = loop.projected.new_zeros(batch, 30, loop.projected.shape[2])
    projected.copy_(
        encoder.cuda() @ planted.transducer.encoder_weight.T.cuda() + planted.transducer.encoder_bias.cuda()
    )
    emitted = [([], [], []) for _ in range(batch)]
    for first, end in ((0, 7), (7, 8), (8, 21), (21, 30)):
        loop.projected = projected[:, first:end]
        loop.lengths = (lengths.cuda() - first).clamp(0, end - first).int()
        loop.clear()
        loop.symbols.zero_()
        run_resident(loop)
        loop.times -= loop.lengths
        for row in range(batch):
            tokens, frames, token_durations = loop.emitted(row)
            emitted[row][0].extend(tokens)
            emitted[row][1].extend(first + frame for frame in frames)
            emitted[row][2].extend(token_durations)
    assert emitted == [whole.emitted(row) for row in range(batch)]


def test_a_row_without_room_stops_and_goes_on_in_the_next_call():
    transducer = random_transducer(vocab=9, joint_width=16, hidden=16, blank_bias=0.0, seed=7)
    encoder, lengths = normal(3, 10, 16, seed=8), torch.tensor([10, 0, 7])
    want = Loop(transducer, encoder, lengths, capacity=100).run()
    loop = Loop(transducer, encoder, lengths, capacity=3, device="cuda")
    tokens = [[], [], []]
    while loop.times.cpu().lt(lengths).any():
        run_resident(loop)
        for row in range(3):
            tokens[row] += loop.emitted(row)[0]
        loop.clear()
    assert tokens == [want.emitted(row)[0] for row in range(3)]


def test_nothing_beyond_the_emissions_is_written():
    planted = plant(joint_width=64, seed=12)
    encoder, lengths = ragged(planted, 9, frames=20, seed=13)
    loop = run_resident(Loop(planted.transducer, encoder, lengths, capacity=200, device="cuda"))
    for row in range(9):
        assert loop.tokens[row, loop.counts[row] :].eq(POISON).all()
        assert loop.log_probs[row, loop.counts[row] :].eq(POISON).all()


def test_many_runs_give_the_same_bits():
    planted = plant(vocab_size=77, joint_width=200, seed=14)
    encoder, lengths = ragged(planted, 33, frames=24, seed=15)
    first = run_resident(Loop(planted.transducer, encoder, lengths, capacity=240, device="cuda"))
    for _ in range(50):
        again = run_resident(Loop(planted.transducer, encoder, lengths, capacity=240, device="cuda"))
        assert torch.equal(again.tokens, first.tokens) and torch.equal(again.counts, first.counts)
        assert torch.equal(again.output, first.output) and torch.equal(again.state[1], first.state[1])


@pytest.mark.parametrize("batch", [3, 8, 33])
def test_a_row_gets_the_same_bits_wherever_it_stands(batch):
    planted = plant(vocab_size=77, joint_width=200, seed=22)
    encoder, lengths = planted.encoder(batch, 24, seed=23), torch.full((batch,), 24)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(24))
    one, other = (
        run_resident(Loop(planted.transducer, rows, lengths, capacity=240, window=8, device="cuda"))
        for rows in (encoder, encoder[order])
    )
    assert torch.equal(one.counts.cpu()[order], other.counts.cpu())
    assert torch.equal(one.output.cpu()[order], other.output.cpu())
    for row, source in enumerate(order.tolist()):
        count = int(other.counts[row])
        assert torch.equal(one.log_probs[source, :count], other.log_probs[row, :count])
