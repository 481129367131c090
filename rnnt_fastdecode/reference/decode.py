"""Greedy RNN-T and TDT decoding of one utterance at a time: the rules, in one loop.

RNN-T: A. Graves, "Sequence Transduction with Recurrent Neural Networks", 2012. TDT: H. Xu et al., "Efficient
Sequence Transduction by Jointly Predicting Tokens and Durations", 2023. Where the papers leave a choice, this
follows NVIDIA NeMo's label-looping decoders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .ops import gru_step, joint, lstm_step, stateless_step


@dataclass(frozen=True)
class Transducer:
    """The weights of a predictor and a joint network.

    encoder_weight [J,D], encoder_bias [J]: projection of the encoder's output into the joint network.
    predictor_kind: "lstm", "gru", "stateless" or "stateless_relu"; predictor_weights: see `reference.ops`.
    weight [V+N,J], bias [V+N]: the joint network's output layer, tokens first, then durations.
    durations: numbers of frames, empty for RNN-T.
    """

    encoder_weight: Tensor
    encoder_bias: Tensor
    predictor_kind: str
    predictor_weights: list[Tensor]
    weight: Tensor
    bias: Tensor
    activation: str
    blank_id: int
    durations: tuple[int, ...] = ()

    @property
    def vocab_size(self) -> int:
        """V: the number of tokens, with blank."""
        return self.weight.shape[0] - len(self.durations)

    def to(self, target: torch.dtype | torch.device) -> Transducer:
        """The same network with all weights converted, or moved."""
        return replace(
            self,
            encoder_weight=self.encoder_weight.to(target),
            encoder_bias=self.encoder_bias.to(target),
            predictor_weights=[w.to(target) for w in self.predictor_weights],
            weight=self.weight.to(target),
            bias=self.bias.to(target),
        )


@dataclass(frozen=True)
class DecodeState:
    """What the next chunk of an utterance starts from.

    time: first frame to look at, counted from the start of the next chunk: more than 0 where a TDT duration
    jumped past the end. Labels per frame need no place here: a chunk never ends in the middle of a frame.
    """

    time: int
    predictor_state: Any
    predictor_output: Tensor


@dataclass(frozen=True)
class Decoded:
    """The emissions of one utterance or chunk.

    frames count from the start of this chunk; durations are numbers of frames (0 for RNN-T); log_probs are
    log-softmax values over the tokens. margins[u] belongs to the looks at frames between label u - 1 and
    label u: the smallest distance between a winner and its runner-up, among tokens or durations.
    """

    tokens: list[int]
    frames: list[int]
    durations: list[int]
    log_probs: list[float]
    margins: list[float]
    state: DecodeState


def predict(transducer: Transducer, label: int, state: Any) -> tuple[Tensor, Any]:
    """Feeds a label to the predictor: (projected output [J], new state)."""
    if transducer.predictor_kind == "lstm":
        return lstm_step(transducer.predictor_weights, label, state)
    if transducer.predictor_kind == "gru":
        return gru_step(transducer.predictor_weights, label, state)
    relu = transducer.predictor_kind == "stateless_relu"
    return stateless_step(transducer.predictor_weights, label, state, relu)


def initial_state(transducer: Transducer) -> DecodeState:
    """Start of sequence: blank is fed to a predictor with a zero state, or a context full of blanks."""
    first = transducer.predictor_weights[0]
    state: Any
    if transducer.predictor_kind in ("lstm", "gru"):
        hidden = first.new_zeros(transducer.predictor_weights[1].shape[0], first.shape[1])
        state = hidden if transducer.predictor_kind == "gru" else (hidden, torch.zeros_like(hidden))
    else:
        state = torch.full((first.shape[0] - 1,), transducer.blank_id)
    output, state = predict(transducer, transducer.blank_id, state)
    return DecodeState(0, state, output)


def _margin(scores: Tensor) -> float:
    if scores.numel() < 2:
        return float("inf")
    best = scores.topk(2).values
    return float(best[0] - best[1])


def greedy_decode(
    transducer: Transducer,
    encoder: Tensor,
    length: int | None = None,
    max_symbols: int = 10,
    state: DecodeState | None = None,
) -> Decoded:
    """Decodes one utterance, or one chunk of it: encoder [T,D], the first `length` frames of it valid."""
    state = state or initial_state(transducer)
    length = encoder.shape[0] if length is None else min(length, encoder.shape[0])
    projected = encoder @ transducer.encoder_weight.T + transducer.encoder_bias
    vocab = transducer.vocab_size
    time, predictor_state, output = state.time, state.predictor_state, state.predictor_output
    result = Decoded([], [], [], [], [float("inf")], state)
    symbols = 0
    while time < length:
        logits = joint(projected[time], output, transducer.weight, transducer.bias, transducer.activation)
        token = int(logits[:vocab].argmax())
        margin = _margin(logits[:vocab])
        duration = 0
        if transducer.durations:
            duration = transducer.durations[int(logits[vocab:].argmax())]
            margin = min(margin, _margin(logits[vocab:]))
        result.margins[-1] = min(result.margins[-1], margin)
        if token == transducer.blank_id:
            time += max(duration, 1)
            symbols = 0
            continue
        result.tokens.append(token)
        result.frames.append(time)
        result.durations.append(duration)
        result.log_probs.append(float(logits[:vocab].log_softmax(0)[token]))
        result.margins.append(float("inf"))
        output, predictor_state = predict(transducer, token, predictor_state)
        if duration > 0:
            time += duration
            symbols = 0
            continue
        symbols += 1
        if symbols == max_symbols:
            time += 1
            symbols = 0
    return replace(result, state=DecodeState(time - length, predictor_state, output))
