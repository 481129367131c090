"""What a decoder gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .labels import RECORD, PackedLabels
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


class DecodeResult:
    """The labels of B utterances: packed on the decoder's device, made into tensors or lists when asked for.

    `scores`, `lengths` and `state` do not wait for the device. The first use of the others waits until the
    work of this call is done, and no later work. `hypotheses` then reads host memory alone: the copy that
    the decoder has started, or else one that starts now.

    Tensors are on the decoder's device, for the stream that is current, and are kept once made. Until the
    host has read the labels, a result on a GPU holds 16 * B * (T * max_symbols + 1) bytes there; after that
    only the tensors that were asked for. Results can be pickled and given to `torch.save`.

    Lengths that are on a GPU are looked at here: where one lies outside 0 .. T, what waits raises
    ArgumentError. Such a row has been decoded as if its length had been limited to 0 .. T.

    Attributes
    ----------
    tokens: [B, U] int64 label ids, padded to the longest row; -1 beyond a row's length.
    frames: [B, U] int64 encoder frame of each label, counted from the start of the utterance.
    durations: [B, U] int64 frames each label advanced by (TDT; 0 for RNN-T).
    log_probs: [B, U] float32 log-probability of each label among the tokens, durations left out.
    lengths: [B] int64 number of labels of each row.
    scores: [B] float32, the sum of each row's log-probabilities.
    state: give it to the next call to go on.
    path: what decoded it, as in `GreedyDecoder.path`; "" where nothing did.
    """

    state: DecodeState
    path: str

    def __init__(self, labels: PackedLabels, state: DecodeState, path: str = "") -> None:
        self._labels, self.state, self.path = labels, state, path

    @classmethod
    def from_padded(
        cls,
        tokens: Tensor,
        frames: Tensor,
        durations: Tensor,
        log_probs: Tensor,
        lengths: Tensor,
        state: DecodeState,
    ) -> DecodeResult:
        """A result out of tensors as the attributes describe them; what is beyond `lengths` is ignored."""
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        columns = (tokens, frames, durations, log_probs.float().view(torch.int32))
        labels = torch.stack([column.to(torch.int32) for column in columns], dim=-1)[inside]
        scores = log_probs.masked_fill(~inside, 0).sum(dim=1, dtype=torch.float64).float()
        words = (lengths.cumsum(0) - lengths, lengths, scores.view(torch.int32), torch.zeros_like(lengths))
        rows = torch.stack([word.to(torch.int32) for word in words], dim=-1)
        return cls(PackedLabels(torch.cat((rows, labels)), tokens.shape[0]), state)

    @classmethod
    def without_frames(cls, lengths: Tensor, state: DecodeState) -> DecodeResult:
        """The result of a call with T = 0; lengths [B] as they were given."""
        device = state.output.device
        rows = torch.zeros(state.batch, RECORD, dtype=torch.int32, device=device)
        if device.type != "cuda":
            return cls(PackedLabels(rows, state.batch), state)
        int32 = torch.iinfo(torch.int32)
        rows[:, 3] = lengths.clamp(int32.min, int32.max)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        return cls(PackedLabels(rows, state.batch, frames=0, ready=ready), state)

    def start_copy(self) -> DecodeResult:
        """Start the one asynchronous copy that host results need, where the decoder has not; returns self."""
        self._labels.start_copy()
        return self

    def hypotheses(self) -> list[Hypothesis]:
        """The rows as Python lists; waits for the device once, if it must.

        Raises
        ------
        ArgumentError: a length that was on the GPU lies outside 0 .. T.
        """
        rows, labels = self._host()
        columns = [labels[:, column].tolist() for column in range(RECORD - 1)]
        columns.append(labels[:, RECORD - 1].view(np.float32).tolist())
        return [
            Hypothesis(*(column[begin : begin + count] for column in columns))
            for begin, count in rows[:, :2].tolist()
        ]

    def _host(self) -> tuple[np.ndarray, np.ndarray]:
        records = self._labels.host()
        return records[: self._labels.batch], records[self._labels.batch :]

    def _rows(self, column: int) -> Tensor:
        return self._labels.on_device()[: self._labels.batch, column]

    # Tensors outlive the call that asks for them first: made in its inference mode, they could not be used
    # outside of it.
    @cached_property
    @torch.inference_mode(False)
    def _padded(self) -> tuple[Tensor, Tensor]:
        """Records [B, U, 4] of all rows, any of them beyond a row's length, and a mask [B, U] of those."""
        records = self._labels.on_device()
        rows, _ = self._host()
        longest = int(rows[:, 1].max(initial=0))
        batch = self._labels.batch
        begin, count = records[:batch, :2].unsqueeze(1).unbind(-1)
        place = torch.arange(longest, dtype=torch.int32, device=records.device)
        beyond = place >= count
        # Record 0 is there whenever a row is.
        return records[(begin + place + batch).masked_fill_(beyond, 0)], beyond

    def _column(self, column: int, padding: int) -> Tensor:
        records, beyond = self._padded
        return records[..., column].to(torch.int64).masked_fill_(beyond, padding)

    @cached_property
    @torch.inference_mode(False)
    def tokens(self) -> Tensor:
        return self._column(0, -1)

    @cached_property
    @torch.inference_mode(False)
    def frames(self) -> Tensor:
        return self._column(1, 0)

    @cached_property
    @torch.inference_mode(False)
    def durations(self) -> Tensor:
        return self._column(2, 0)

    @cached_property
    @torch.inference_mode(False)
    def log_probs(self) -> Tensor:
        records, beyond = self._padded
        bits = records[..., 3].clone(memory_format=torch.contiguous_format)
        return bits.view(torch.float32).masked_fill_(beyond, 0.0)

    @cached_property
    @torch.inference_mode(False)
    def lengths(self) -> Tensor:
        return self._rows(1).to(torch.int64)

    @cached_property
    @torch.inference_mode(False)
    def scores(self) -> Tensor:
        return self._rows(2).clone().view(torch.float32)

    def __getstate__(self) -> dict[str, object]:
        return {"labels": self._labels, "state": self.state, "path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["labels"], state["state"], state["path"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._labels.batch} rows on {self._labels.device})"
