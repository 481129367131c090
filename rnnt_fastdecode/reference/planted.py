"""Networks with a known behaviour planted in their weights, for tests and benchmarks.

Random networks decide close to a tie and babble. Here every label has a random code, the predictor passes on
the code of the last label, and the joint network subtracts it from the code that a frame carries: a frame
that carries a label emits it once, and is blank afterwards, with margins that no rounding bridges. Labels
also have successors: a frame with the chain flag emits the successor of the last label, that label's
successor, and so on, until a label without one, or max_symbols, ends the burst. What exactly comes out is for
`greedy_decode` to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decode import Transducer

# The value that an LSTM layer with open input and output gates gives for a saturated cell input. A GRU layer
# with a closed update gate gives 1.
_LSTM_OUTPUT = math.tanh(1.0)
_GATE = 6.0
_GAIN = 5.0
_WEIGHT_NOISE = 0.005


@dataclass(frozen=True)
class Planted:
    """A transducer and the codes that its frames understand: codes [V,J1], of J1 + J2 = J joint units."""

    transducer: Transducer
    codes: Tensor

    def to(self, device: torch.device) -> Planted:
        """The same network on a device, which then makes `encoder`'s random numbers: others than a CPU's."""
        return Planted(self.transducer.to(device), self.codes.to(device))

    def encoder(
        self,
        batch: int,
        frames: int,
        rate: float = 0.25,
        chains: float = 0.02,
        noise: float = 0.1,
        seed: int = 0,
    ) -> Tensor:
        """Encoder output [B,T,D]: a share `rate` of frames has a label, a share `chains` the chain flag."""
        generator = torch.Generator(self.codes.device).manual_seed(seed)
        random: dict[str, Any] = {"generator": generator, "device": self.codes.device}
        labels = torch.randint(0, self.transducer.vocab_size - 1, (batch, frames), **random)
        labels += labels >= self.transducer.blank_id
        kind = torch.rand(batch, frames, **random)
        wanted = self.codes.new_zeros(batch, frames, self.transducer.encoder_weight.shape[0])
        plain = self.codes.shape[1]
        wanted[..., :plain] = self.codes[labels] * (kind < rate)[..., None]
        wanted[..., plain:] = 2.0 * ((kind >= rate) & (kind < rate + chains))[..., None]
        # The projection's rows are orthonormal, so its transpose undoes it.
        output = wanted @ self.transducer.encoder_weight
        return output + noise * torch.randn(output.shape, **random)


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).float() * 2 - 1


def plant(
    vocab_size: int = 33,
    joint_width: int = 64,
    hidden: int | None = None,
    encoder_width: int | None = None,
    num_layers: int = 2,
    durations: tuple[int, ...] = (),
    blank_id: int | None = None,
    predictor_kind: str = "lstm",
    context: int = 2,
    seed: int = 0,
    ring: bool = False,
) -> Planted:
    """A float32 network of these sizes: vocab_size is V, with blank, the last id unless blank_id is given.

    hidden and encoder_width must be at least joint_width and are equal to it by default; num_layers is for an
    LSTM or a GRU, context for a stateless predictor. With `ring` the successors form one ring through all
    labels, so that only max_symbols ends a burst; TDT then needs a duration of 0.
    """
    hidden = hidden or joint_width
    encoder_width = encoder_width or joint_width
    if min(hidden, encoder_width) < joint_width:
        raise ValueError("hidden and encoder_width must be at least joint_width")
    blank_id = vocab_size - 1 if blank_id is None else blank_id
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    chained = joint_width // 4
    plain = joint_width - chained
    codes = _signs(vocab_size, plain, generator)
    codes[blank_id] = 0
    names = _signs(vocab_size, chained, generator)
    successor = torch.randint(0, vocab_size, (vocab_size,), generator=generator)
    has_successor = (torch.rand(vocab_size, generator=generator) < 0.75) & (successor != blank_id)
    if ring:
        labels = torch.arange(vocab_size)[torch.arange(vocab_size) != blank_id]
        # Start of sequence, a blank, has a successor too.
        successor[labels], successor[blank_id] = labels.roll(-1), labels[0]
        has_successor[:] = True

    entries = torch.zeros(vocab_size, hidden)
    entries[:, :plain] = codes
    entries[:, plain:joint_width] = torch.where(has_successor[:, None], names[successor], -1.0)
    projection = torch.zeros(joint_width, hidden)
    projection[:plain, :plain] = -torch.eye(plain)
    projection[plain:, plain:joint_width] = torch.eye(chained)
    projection_bias = torch.zeros(joint_width)
    if predictor_kind == "lstm":
        weight = normal(num_layers, 4 * hidden, 2 * hidden, scale=_WEIGHT_NOISE)
        weight[:, 2 * hidden : 3 * hidden, :hidden] += _GAIN * torch.eye(hidden)
        gate = torch.full((hidden,), _GATE)
        bias = torch.cat([gate, -gate, torch.zeros(hidden), gate]).repeat(num_layers, 1)
        projection = (projection + normal(joint_width, hidden, scale=_WEIGHT_NOISE)) / _LSTM_OUTPUT
        predictor_weights = [entries, weight, bias, projection, projection_bias]
    elif predictor_kind == "gru":
        weight = normal(num_layers, 2, 3 * hidden, hidden, scale=_WEIGHT_NOISE)
        weight[:, 0, 2 * hidden :] += _GAIN * torch.eye(hidden)
        bias = normal(num_layers, 2, 3 * hidden, scale=_WEIGHT_NOISE)
        bias[:, 0, hidden : 2 * hidden] -= _GATE
        projection = projection + normal(joint_width, hidden, scale=_WEIGHT_NOISE)
        predictor_weights = [entries, weight, bias, projection, projection_bias]
    else:
        tables = normal(context, vocab_size, hidden, scale=0.05)
        if predictor_kind == "stateless_relu":
            # Codes shifted into the positive range pass the activation, and the projection shifts them back.
            tables[0] += entries + 2
            projection_bias = -2 * projection.sum(1)
        else:
            tables[0] += entries
        predictor_weights = [tables, projection, projection_bias]

    orthonormal = torch.linalg.qr(normal(encoder_width, joint_width)).Q.T.contiguous()
    encoder_bias = torch.zeros(joint_width)
    encoder_bias[plain:] = -2.0
    scale = 30.0 / joint_width
    weight = torch.cat([codes, 4.0 * names], dim=1) * scale
    weight[blank_id] = 0
    weight += normal(vocab_size, joint_width, scale=0.1 * scale)
    bias = torch.zeros(vocab_size)
    bias[blank_id] = 0.45 * plain / 2 * scale
    if durations:
        duration_weight = normal(len(durations), joint_width, scale=3.0 / math.sqrt(plain))
        duration_bias = normal(len(durations))
        if 0 in durations:
            # Bursts stay on their frame: with a ring always, otherwise mostly.
            duration_weight[durations.index(0), plain:] += (64.0 if ring else 16.0) / chained
        weight, bias = torch.cat([weight, duration_weight]), torch.cat([bias, duration_bias])
    transducer = Transducer(
        encoder_weight=orthonormal,
        encoder_bias=encoder_bias,
        predictor_kind=predictor_kind,
        predictor_weights=predictor_weights,
        weight=weight,
        bias=bias,
        activation="relu",
        blank_id=blank_id,
        durations=tuple(durations),
    )
    return Planted(transducer, codes)
