"""The decoding rules for a whole batch in float64: what tells a near tie from a mistake.

`rnnt_fastdecode.reference` has the rules for one utterance at a time, too slow for 100,000 of them. Here they
stand again in plain PyTorch, on any device, one look at a frame of every row at a time; the tests hold both
together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnt_fastdecode.reference.decode import Transducer
from rnnt_fastdecode.reference.ops import ACTIVATIONS

from .report import Row


@dataclass(frozen=True)
class Paths:
    """What is decoded without rounding, and how clear it was: margins as in `reference.decode.Decoded`."""

    rows: list[Row]
    margins: list[list[float]]


@dataclass(frozen=True)
class _Look:
    """One look at a frame of every row, [B] each: margin is the smallest since the label before."""

    emits: Tensor
    token: Tensor
    frame: Tensor
    duration: Tensor
    margin: Tensor


class Float64Decoder:
    """An LSTM transducer in float64 with weights, and encoder output, that have been rounded to `dtype`."""

    def __init__(
        self, transducer: Transducer, device: torch.device, dtype: torch.dtype, max_symbols: int = 10
    ) -> None:
        if transducer.predictor_kind != "lstm":
            raise ValueError(f"predictor_kind must be lstm, got {transducer.predictor_kind}")
        self._network = transducer.to(device).to(dtype).to(torch.float64)
        self._dtype, self._max_symbols = dtype, max_symbols
        self._durations = torch.tensor(transducer.durations, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def __call__(self, encoder_output: Tensor, lengths: Tensor) -> Paths:
        """encoder_output [B, T, D] and lengths [B] on the device."""
        network = self._network
        encoder = encoder_output.to(self._dtype).double()
        projected = encoder @ network.encoder_weight.T + network.encoder_bias
        batch, frames, _ = projected.shape
        layers, _, width = network.predictor_weights[1].shape
        everyone = torch.arange(batch, device=projected.device)
        hidden, cell = projected.new_zeros(2, layers, batch, width // 2)
        output = torch.empty_like(projected[:, 0])
        self._predict(everyone, torch.full_like(everyone, network.blank_id), hidden, cell, output)
        time, symbols = torch.zeros_like(everyone), torch.zeros_like(everyone)
        margin = projected.new_full((batch,), float("inf"))
        looks: list[_Look] = []
        while bool((active := time < lengths).any()):
            frame = projected[everyone, time.clamp(max=frames - 1)]
            token, duration, clear = self._judge(frame + output)
            margin = torch.where(active, torch.minimum(margin, clear), margin)
            blank = token == network.blank_id
            emits = active & ~blank
            looks.append(_Look(emits, token, time, duration, margin))
            margin = margin.masked_fill(emits, float("inf"))
            advance = torch.where(blank, duration.clamp(min=1), duration)
            symbols = torch.where(advance > 0, 0, symbols + 1)
            full = symbols == self._max_symbols
            symbols = symbols.masked_fill(full, 0)
            time = torch.where(active, time + advance + full, time)
            rows = emits.nonzero().squeeze(1)
            self._predict(rows, token[rows], hidden, cell, output)
        return _collect(looks, margin, bool(network.durations))

    def _judge(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best token, its duration (0 for RNN-T) and the margin of both, of joint activations [B, J]."""
        network = self._network
        logits = ACTIVATIONS[network.activation](joined) @ network.weight.T + network.bias
        token, margin = _best(logits[:, : network.vocab_size])
        if not network.durations:
            return token, torch.zeros_like(token), margin
        index, clear = _best(logits[:, network.vocab_size :])
        return token, self._durations[index], torch.minimum(margin, clear)

    def _predict(self, rows: Tensor, labels: Tensor, hidden: Tensor, cell: Tensor, output: Tensor) -> None:
        """Feed a label to the predictor of each of these rows: state [L, B, H] and output [B, J] change."""
        embedding, weight, bias, projection, projection_bias = self._network.predictor_weights
        x = embedding[labels]
        for layer in range(weight.shape[0]):
            gates = torch.cat([x, hidden[layer, rows]], dim=1) @ weight[layer].T + bias[layer]
            i, f, g, o = gates.chunk(4, dim=1)
            cell[layer, rows] = torch.sigmoid(f) * cell[layer, rows] + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(cell[layer, rows])
            hidden[layer, rows] = x
        output[rows] = x @ projection.T + projection_bias


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the best of each row, and how far it is above the second."""
    if scores.shape[1] == 1:
        return scores.argmax(dim=1), torch.full_like(scores[:, 0], float("inf"))
    best = scores.topk(2, dim=1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


def _collect(looks: list[_Look], last_margin: Tensor, has_durations: bool) -> Paths:
    """The rows out of all looks; last_margin [B] is what has been seen since a row's last label."""

    def table(name: str) -> Tensor:
        columns = [getattr(look, name) for look in looks]
        return torch.stack(columns, dim=1).cpu() if looks else torch.zeros(len(last_margin), 0).bool()

    emits = table("emits")
    columns = [table(name)[emits].tolist() for name in ("token", "frame", "duration", "margin")]
    rows: list[Row] = []
    margins = []
    begin = 0
    for count, margin in zip(emits.sum(1).tolist(), last_margin.tolist(), strict=True):
        tokens, frames, durations, clear = (column[begin : begin + count] for column in columns)
        rows.append((tokens, frames, durations if has_durations else None))
        margins.append([*clear, margin])
        begin += count
    return Paths(rows, margins)
