"""Random networks and loop buffers for the tests of the ops, and how far rounding can move a score."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.tally import near_tie
from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.decode import Transducer, greedy_decode
from rnnt_fastdecode.reference.ops import ACTIVATIONS
from rnnt_fastdecode.transducer.loop import loop_workspace
from rnnt_fastdecode.transducer.weights import PredictorWeights

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RECURRENT = ("lstm", "gru")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def integers(low: int, high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """int32 in [low, high)."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def recurrent_weights(
    kind: str, vocab: int, hidden: int, layers: int, joint_width: int, seed: int
) -> list[Tensor]:
    gates = (layers, 4 * hidden) if kind == "lstm" else (layers, 2, 3 * hidden)
    inputs = 2 * hidden if kind == "lstm" else hidden
    shapes = [(vocab, hidden), (*gates, inputs), gates, (joint_width, hidden)]
    scales = [1.0, hidden**-0.5, 0.5, 2 * hidden**-0.5]
    weights = [
        normal(*shape, seed=seed + i, scale=scale)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]
    return [*weights, normal(joint_width, seed=seed + 9)]


def stateless_weights(vocab: int, hidden: int, context: int, joint_width: int, seed: int) -> list[Tensor]:
    return [
        normal(context, vocab, hidden, seed=seed),
        normal(joint_width, hidden, seed=seed + 1, scale=2 * hidden**-0.5),
        normal(joint_width, seed=seed + 2),
    ]


def random_transducer(
    kind: str = "lstm",
    vocab: int = 7,
    joint_width: int = 10,
    hidden: int = 6,
    depth: int = 2,
    durations: tuple[int, ...] = (),
    activation: str = "relu",
    blank_id: int | None = None,
    blank_bias: float = 3.0,
    scale: float = 1.0,
    seed: int = 0,
) -> Transducer:
    """A network without any plan, except that blank is likely. Its encoder output is [B,T,J]."""
    make = partial(recurrent_weights, kind) if kind in RECURRENT else stateless_weights
    blank_id = vocab - 1 if blank_id is None else blank_id
    bias = normal(vocab + len(durations), seed=seed + 50, scale=0.1)
    bias[blank_id] += blank_bias
    return Transducer(
        encoder_weight=torch.eye(joint_width),
        encoder_bias=torch.zeros(joint_width),
        predictor_kind=kind,
        predictor_weights=make(vocab, hidden, depth, joint_width, seed + 60),
        weight=normal(vocab + len(durations), joint_width, seed=seed + 51, scale=scale),
        bias=bias,
        activation=activation,
        blank_id=blank_id,
        durations=durations,
    )


def op_weights(weights: list[Tensor], kind: str, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Predictor weights as the op takes them: the bias of the gates stays in float32."""
    converted = [w.to(device, dtype) for w in weights]
    if kind in RECURRENT:
        converted[2] = weights[2].to(device, torch.float32)
    return converted


def zero_state(
    weights: list[Tensor], kind: str, batch: int, blank_id: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    if kind in RECURRENT:
        shape = (weights[1].shape[0], batch, weights[0].shape[1])
        dtypes = (dtype, torch.float32, dtype) if kind == "lstm" else (dtype, dtype)
        return [torch.zeros(shape, dtype=d, device=device) for d in dtypes]
    return [torch.full((batch, weights[0].shape[0] - 1), blank_id, dtype=torch.int32, device=device)]


def scores_and_slack(
    encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Logits of frames [..., J] in float64 after the op's own roundings, and how far float32 may be off."""
    dtype = encoder.dtype
    a = ACTIVATIONS[activation]((encoder + predictor).float()).to(dtype).double()
    scores = a @ weight.double().T
    magnitude = a.abs() @ weight.double().abs().T
    if bias is not None:
        scores, magnitude = scores + bias.double(), magnitude + bias.double().abs()
    # Two libraries' tanh may differ in the last bit, and so may what it is rounded to.
    ulp = 2.0**-22 if activation == "relu" else max(torch.finfo(dtype).eps, 2.0**-21)
    return scores, ulp * magnitude * (4 if activation != "relu" else 1 + a.shape[-1] ** 0.5)


def joint_case(batch, frames, width, vocab, num_durations, dtype=torch.float32, seed=0, device="cpu"):
    """encoder, predictor, weight, bias, times, lengths; some rows start beyond their end."""
    rows = vocab + num_durations
    floating = [
        normal(batch, frames, width, seed=seed),
        normal(batch, width, seed=seed + 1),
        normal(rows, width, seed=seed + 2),
        normal(rows, seed=seed + 3),
    ]
    times = integers(0, max(1, frames), (batch,), seed + 4)
    lengths = integers(0, frames + 3, (batch,), seed + 5)
    return [*(t.to(device, dtype) for t in floating), times.to(device), lengths.to(device)]


def recurrent_case(kind, batch, vocab, hidden, layers, joint_width, dtype, seed=0, device="cpu"):
    """weights, state, labels (some -1) and output of predictor_step_; what is not read is NaN."""
    weights = recurrent_weights(kind, vocab, hidden, layers, joint_width, seed)
    weights = op_weights(weights, kind, dtype, device)
    shape = (layers, batch, hidden)
    state = [normal(*shape, seed=seed + 20).to(device, dtype)]
    if kind == "lstm":
        state.append(normal(*shape, seed=seed + 21).to(device))
    state.append(torch.full(shape, float("nan"), dtype=dtype, device=device))
    labels = integers(-1, vocab, (batch,), seed + 22).to(device)
    return weights, state, labels, torch.full((batch, joint_width), float("nan"), dtype=dtype, device=device)


def cache_case(batch, frames, heads, width, slots, capacity, dtype=torch.float32, seed=0, device="cpu"):
    """keys, values, lengths, slots, positions and two caches; frames that are not valid are NaN."""
    keys, values = (normal(batch, frames, heads, width, seed=seed + i).to(dtype) for i in range(2))
    lengths = integers(0, frames + 1, (batch,), seed + 2)
    for b in range(batch):
        keys[b, lengths[b] :], values[b, lengths[b] :] = float("nan"), float("nan")
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(seed + 3))
    rows = torch.full((batch,), -1, dtype=torch.int32)
    count = min(batch, slots)
    rows[:count] = order[:count].int()
    rows[integers(0, 4, (batch,), seed + 4) == 0] = -1
    positions = integers(0, 5 * capacity, (slots,), seed + 5)
    caches = [normal(slots, heads, capacity, width, seed=seed + 6 + i).to(dtype) for i in range(2)]
    return [t.to(device) for t in (keys, values, lengths, rows, positions, *caches)]


POISON = -77


@dataclass
class Loop:
    """The buffers of greedy_rounds_ for a transducer, a batch of encoder outputs [B,T,D] and a capacity C."""

    transducer: Transducer
    encoder: Tensor
    lengths: Tensor
    capacity: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    max_symbols: int = 10
    window: int = 4
    network: Transducer = field(init=False)

    def __post_init__(self) -> None:
        batch, device, dtype = self.encoder.shape[0], self.device, self.dtype
        net = self.transducer.to(dtype)
        self.projected = (self.encoder.to(dtype) @ net.encoder_weight.T + net.encoder_bias).to(device)
        kind = net.predictor_kind
        self.weights = op_weights(self.transducer.predictor_weights, kind, dtype, device)
        self.network = replace(net, weight=net.weight.to(device), bias=net.bias.to(device))
        self.lengths = self.lengths.to(device, torch.int32)
        self.state = zero_state(self.weights, kind, batch, net.blank_id, dtype, device)
        self.output = torch.full((batch, net.weight.shape[1]), float("nan"), dtype=dtype, device=device)
        first = torch.full((batch,), net.blank_id, dtype=torch.int32, device=device)
        ops.predictor_step_(kind, self.weights, first, self.state, self.output)
        self.times, self.symbols, self.counts = (
            torch.zeros(batch, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.active = torch.full((1,), POISON, dtype=torch.int32, device=device)
        self.clear()

    def clear(self) -> None:
        """Empty, poisoned result tables."""
        shape = (self.encoder.shape[0], self.capacity)
        self.tokens, self.frames, self.token_durations = (
            torch.full(shape, POISON, dtype=torch.int32, device=self.device) for _ in range(3)
        )
        self.log_probs = torch.full(shape, float(POISON), device=self.device)
        self.counts.zero_()

    def arguments(self, rounds: int = -1) -> tuple:
        net = self.network
        return (
            self.projected,
            self.lengths,
            net.weight,
            net.bias,
            net.activation,
            net.blank_id,
            list(net.durations),
            self.max_symbols,
            self.window,
            rounds,
            net.predictor_kind,
            self.weights,
            self.state,
            self.output,
            self.times,
            self.symbols,
            self.tokens,
            self.frames,
            self.token_durations,
            self.log_probs,
            self.counts,
            self.active,
            loop_workspace(
                PredictorWeights(net.predictor_kind, self.weights),
                net.weight.shape[0],
                self.encoder.shape[0],
                self.window,
            ),
        )

    def rounds(self, rounds: int = -1) -> int:
        """Runs the op; returns the number of active rows."""
        ops.greedy_rounds_(*self.arguments(rounds))
        return int(self.active)

    def run(self, rounds: int | None = None) -> Loop:
        """Runs until no row is active, `rounds` at a time."""
        while self.rounds(rounds or (-1 if self.device == "cpu" else 16)):
            pass
        return self

    def emitted(self, row: int) -> tuple[list[int], list[int], list[int]]:
        """Tokens, frames and durations of a row."""
        count = int(self.counts[row])
        return tuple(t[row, :count].tolist() for t in (self.tokens, self.frames, self.token_durations))


def rows_off_the_float64_path(loop: Loop, transducer: Transducer) -> int:
    """How many rows leave the path of the reference in float64 on the same rounded weights.

    A row may do so only at a margin that rounding explains: anything else fails.
    """
    rounded = transducer.to(loop.dtype).to(torch.float64)
    near_ties = 0
    for row in range(len(loop.lengths)):
        encoder = loop.encoder[row].to(loop.dtype).double()
        want = greedy_decode(rounded, encoder, int(loop.lengths[row]))
        expected = list(zip(want.tokens, want.frames, want.durations, strict=True))
        got = list(zip(*loop.emitted(row), strict=True))
        if got == expected:
            continue
        near_ties += 1
        common = next(
            (u for u, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), len(got)
        )
        assert want.margins[min(common, len(expected))] < near_tie(loop.dtype)
    return near_ties
