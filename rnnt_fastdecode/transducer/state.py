"""What a decoder carries from one chunk of an utterance to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodeState:
    """The state of B utterances after a call of `GreedyDecoder`.

    Attributes
    ----------
    predictor: tensors of the prediction network, without scratch (see `ops.predictor_step_`).
    batch_dims: the batch dimension of each of them.
    output: [B, J] projected predictor output after the last label.
    time_jumps: [B] int32, frames by which a TDT duration pointed beyond the end of the last chunk; the next
        chunk starts there.
    decoded_lengths: [B] int64, encoder frames given so far; frames of the next chunk are counted from here.
    """

    predictor: tuple[Tensor, ...]
    batch_dims: tuple[int, ...]
    output: Tensor
    time_jumps: Tensor
    decoded_lengths: Tensor

    @property
    def batch(self) -> int:
        return self.output.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, in the order of `ops.greedy_decode`."""
        return [*self.predictor, self.output, self.time_jumps, self.decoded_lengths]

    @staticmethod
    def of(tensors: Sequence[Tensor], batch_dims: tuple[int, ...]) -> DecodeState:
        """The state that `tensors` gives."""
        *predictor, output, time_jumps, decoded_lengths = tensors
        return DecodeState(tuple(predictor), batch_dims, output, time_jumps, decoded_lengths)

    def select(self, rows: Sequence[int] | Tensor) -> DecodeState:
        """The state of some of the utterances, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.output.device)
        return DecodeState(
            tuple(t.index_select(d, index) for t, d in zip(self.predictor, self.batch_dims, strict=True)),
            self.batch_dims,
            self.output.index_select(0, index),
            self.time_jumps.index_select(0, index),
            self.decoded_lengths.index_select(0, index),
        )

    @staticmethod
    def merge(states: Sequence[DecodeState]) -> DecodeState:
        """One state for the utterances of several, in the given order. `states` must not be empty."""
        dims = states[0].batch_dims
        return DecodeState(
            tuple(torch.cat([s.predictor[i] for s in states], dim=dim) for i, dim in enumerate(dims)),
            dims,
            torch.cat([s.output for s in states]),
            torch.cat([s.time_jumps for s in states]),
            torch.cat([s.decoded_lengths for s in states]),
        )
