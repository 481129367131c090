"""fp32 on a GPU is fp32: the resident kernel's errors beside those of torch's own products, TF32 off."""

from dataclasses import replace

import pytest
import torch
from op_cases import Loop, normal, random_transducer
from resident_cases import resident_workspace, run_resident

from benchmarks.modules import as_modules
from rnnt_fastdecode import GreedyDecoder, ops
from rnnt_fastdecode.reference.decode import greedy_decode

pytestmark = pytest.mark.gpu

# Decoded by every variant of the kernel: products of numbers as they are, and of split ones in small and
# large passes.
BATCHES = [4, 8, 70, 128]
WIDTH = 640


def wide(*shape, seed, octaves):
    """Numbers of both signs whose magnitudes are spread evenly over as many powers of two below 1."""
    spread = torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 100)) * octaves
    return normal(*shape, seed=seed).sign() * torch.exp2(-spread)


def run_one_label(batch, octaves, scale, seed):
    """A loop in which every row emits one label, from a state and a frame that `seed` gives."""
    transducer = random_transducer(vocab=1024, joint_width=WIDTH, hidden=WIDTH, blank_bias=-1e4, seed=1)
    loop = Loop(
        transducer, torch.zeros(batch, 1, WIDTH), torch.ones(batch), capacity=1, max_symbols=1, device="cuda"
    )
    make = normal if octaves == 0 else (lambda *shape, seed: 4 * wide(*shape, seed=seed, octaves=octaves))
    loop.network.weight.copy_(make(1024, WIDTH, seed=2) * (0.2 / scale))
    loop.weights[1].mul_(make(*loop.weights[1].shape, seed=3).cuda())
    loop.projected = (make(batch, 1, WIDTH, seed=seed + 1) * scale).cuda()
    loop.output = (make(batch, WIDTH, seed=seed + 2) * scale).cuda()
    loop.state[0].copy_(make(2, batch, WIDTH, seed=seed + 3))
    loop.state[1].copy_(normal(2, batch, WIDTH, seed=seed + 4))
    given = [loop.projected, *(t.clone() for t in (loop.output, *loop.state[:2]))]
    workspace = resident_workspace(loop)
    ops.greedy_rounds_(*loop.arguments(-1)[:-1], workspace)
    assert loop.counts.eq(1).all()
    results = [loop.tokens, loop.log_probs, loop.output, *loop.state[:2]]
    return loop, workspace[0], given, results


def evaluate(loop, table, given, labels, dtype):
    """Scores of the emitted labels and what the predictor yields for them, by torch in `dtype`."""
    projected, output, hidden, cell = (t.to(dtype) for t in given)
    _, weight, bias, projection, projection_bias = (w.to(dtype) for w in loop.weights)
    a = (projected[:, 0] + output).relu()
    logits = a @ loop.network.weight.to(dtype).T + loop.network.bias.to(dtype)
    scores = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    gates = table[labels].to(dtype).transpose(1, 2).flatten(1)
    states = []
    for layer in range(2):
        if layer > 0:
            gates = states[-1][0] @ weight[layer, :, :WIDTH].T + bias[layer]
        i, f, g, o = (gates + hidden[layer] @ weight[layer, :, WIDTH:].T).chunk(4, dim=1)
        next_cell = f.sigmoid() * cell[layer] + i.sigmoid() * g.tanh()
        states.append((o.sigmoid() * next_cell.tanh(), next_cell))
    hidden, cell = (torch.stack(parts) for parts in zip(*states, strict=True))
    return scores, hidden[-1] @ projection.T + projection_bias, hidden, cell


def joined(parts):
    """Tensors of several loops, one after the other along the batch."""
    return [torch.cat(tensors, dim=1 if tensors[0].dim() == 3 else 0) for tensors in zip(*parts, strict=True)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("octaves", "scale", "most"), [(0, 1, 1.2), (12, 1, 1.2), (40, 1, 1.2), (0, 2.0**90, 1.2)]
)
def test_errors_are_those_of_torch_in_fp32(monkeypatch, batch, octaves, scale, most):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    runs = [run_one_label(batch, octaves, scale, seed=100 * i + batch) for i in range(-(-128 // batch))]
    loop, table = runs[0][:2]
    projected = torch.cat([given[0] for _, _, given, _ in runs])
    given = [projected, *joined([given[1:] for _, _, given, _ in runs])]
    tokens, scores, *values = joined([results for _, _, _, results in runs])
    exact, plain = (
        evaluate(loop, table, given, tokens[:, 0].long(), dtype) for dtype in (torch.float64, torch.float32)
    )
    names = "scores", "output", "hidden", "cell"
    for name, ours, usual, true in zip(names, (scores[:, 0], *values), plain, exact, strict=True):
        error, other = (ours.double() - true).abs(), (usual.double() - true).abs()
        rms, other_rms = error.square().mean().sqrt(), other.square().mean().sqrt()
        print(f"{name}: rms {rms:.2e}, max {error.max():.2e}; torch {other_rms:.2e}, {other.max():.2e}")
        assert rms <= most * other_rms, name
        assert error.max() <= 1.25 * most * other.max(), name


def with_frames(transducer, frames, device):
    """A loop over given projected frames [B, T, J], of which every one may emit two labels."""
    batch, count, _ = frames.shape
    lengths = torch.full((batch,), count)
    loop = Loop(transducer, torch.zeros_like(frames), lengths, 2 * count, device=device, max_symbols=2)
    loop.projected = frames.to(device)
    return loop


def check_against_the_cpu(transducer, frames):
    on_cpu = with_frames(transducer, frames, "cpu").run()
    on_gpu = run_resident(with_frames(transducer, frames, "cuda"))
    for name in ("counts", "times", "tokens", "frames"):
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(on_cpu, name)), name
    return on_gpu


@pytest.mark.parametrize("batch", [3, 8, 33])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3.4e38, 1e-39])
def test_frames_with_a_number_beyond_the_usual(batch, value):
    transducer = random_transducer(vocab=40, joint_width=64, hidden=24, seed=1)
    frames = normal(batch, 6, 64, seed=2)
    frames[:, ::2, 17] = value
    frames[:, 3] *= abs(value) if abs(value) < 1 else 1.0
    assert check_against_the_cpu(transducer, frames).counts.sum() > 0


@pytest.mark.parametrize("batch", [3, 8, 33])
@pytest.mark.parametrize("part", ["joint", "projection", "gates"])
def test_an_infinite_weight(batch, part):
    transducer = random_transducer(vocab=40, joint_width=64, hidden=24, seed=3)
    weights = transducer.predictor_weights
    {"joint": transducer.weight, "projection": weights[3], "gates": weights[1][1]}[part][5, 7] = float("inf")
    assert check_against_the_cpu(transducer, normal(batch, 6, 64, seed=4)).counts.sum() > 0


@pytest.mark.parametrize("octaves", [0, 12])
def test_the_errors_of_projected_frames_are_those_of_torch_in_fp32(monkeypatch, octaves):
    """Frames that are not aligned to 16 bytes go through torch's own product."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    batch, frames, width = 9, 100, 1000
    make = normal if octaves == 0 else (lambda *shape, seed: 4 * wide(*shape, seed=seed, octaves=octaves))
    transducer = replace(
        random_transducer(vocab=256, joint_width=300, hidden=64, blank_bias=-1e4, scale=0.02, seed=5),
        encoder_weight=make(300, width, seed=6),
        encoder_bias=normal(300, seed=7),
    )
    predictor, joint = (module.cuda() for module in as_modules(transducer))
    decoder = GreedyDecoder(predictor, joint, transducer.blank_id, max_symbols=1, engine="resident")
    encoder, lengths = make(batch, frames, width, seed=8), torch.full((batch,), frames)
    aligned = encoder.cuda()
    shifted = torch.empty(aligned.numel() + 1, device="cuda")[1:].view(aligned.shape).copy_(aligned)
    exact = [greedy_decode(transducer.to(torch.float64), row.double(), max_symbols=1) for row in encoder]
    errors = []
    for given in (aligned, shifted):
        hypotheses = decoder(given, lengths).hypotheses()
        assert [h.tokens for h in hypotheses] == [decoded.tokens for decoded in exact]
        ours = torch.tensor([h.log_probs for h in hypotheses], dtype=torch.float64)
        errors.append(ours - torch.tensor([decoded.log_probs for decoded in exact], dtype=torch.float64))
    rms, other_rms = (error.square().mean().sqrt() for error in errors)
    print(f"rms {rms:.2e}, torch {other_rms:.2e}")
    assert rms <= 1.2 * other_rms
