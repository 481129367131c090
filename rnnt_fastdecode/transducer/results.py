"""What a decoder gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .state import DecodeState


@dataclass(frozen=True)
class Hypothesis:
    """The labels of one utterance, without blanks.

    tokens: label ids. frames: the encoder frame that emitted each. durations: the frames that each label
    advanced by (TDT; 0 for RNN-T). log_probs: log-probability of each label among the tokens of its frame.
    """

    tokens: list[int]
    frames: list[int]
    durations: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class DecodeResult:
    """The labels of B utterances, padded to the longest, on the decoder's device.

    Attributes
    ----------
    tokens: [B, U] int64 label ids; -1 beyond a row's length.
    frames: [B, U] int64 encoder frame of each label, counted from the start of the utterance.
    durations: [B, U] int64 frames each label advanced by (TDT; 0 for RNN-T).
    log_probs: [B, U] float32 log-probability of each label among the tokens, durations left out.
    lengths: [B] int64 number of labels of each row.
    state: give it to the next call to go on.
    """

    tokens: Tensor
    frames: Tensor
    durations: Tensor
    log_probs: Tensor
    lengths: Tensor
    state: DecodeState

    @property
    def scores(self) -> Tensor:
        """[B] float32, the sum of each row's log-probabilities."""
        return self.log_probs.sum(dim=1)

    def hypotheses(self) -> list[Hypothesis]:
        """The rows as Python lists; waits for the device once."""
        lengths = self.lengths.tolist()
        columns = [t.tolist() for t in (self.tokens, self.frames, self.durations, self.log_probs)]
        return [
            Hypothesis(*(column[row][:length] for column in columns)) for row, length in enumerate(lengths)
        ]
