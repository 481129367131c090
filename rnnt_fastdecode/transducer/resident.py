"""The whole loop as one cooperative kernel: every block keeps its share of the weights in shared memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .labels import PackedLabels
from .results import DecodeResult
from .rules import GreedyRules
from .state import DecodeState
from .weights import JointWeights, PredictorWeights

# The largest batch for which this kernel is measured to be faster than a graph of masked rounds.
MOST_ROWS = {torch.float32: 512, torch.bfloat16: 128, torch.float16: 128}


def best_window(batch: int, dtype: torch.dtype) -> int:
    """Frames to judge at once at most, as measured: many while tiles have room, few where products bind."""
    if dtype == torch.float32:
        return 8 if batch <= 48 else 4
    return 8 if batch <= 16 else 6


class ResidentRunner:
    """Decodes with the resident kernel, where the weights fit the device: `ops.greedy_decode`.

    A call has memory of its own, in the order of its stream: calls of several threads and on several streams
    do not wait for one another. Memory of the decoder itself: 16 * V * H bytes for the table of input gates
    (LSTM), and a copy of it and of all weights in one block. Of a call, with C = T * max_symbols: B * T * J
    elements of the weights' dtype for the encoder, 16 * B * C bytes for the labels as they come, as many for
    the packed ones, and scratch: about 3 MB, from 33 rows on and in fp32 8 MB. On the host: 16 * B * (T + 1)
    bytes of page-locked memory.

    window: frames judged at once; None chooses for every batch: as many as are fast and find room.
    """

    path = "cuda resident"

    _network: ops.Network
    _start: DecodeState

    def __init__(
        self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules, window: int | None
    ) -> None:
        self._predictor, self._joint, self._rules = predictor, joint, rules
        self._device, self._dtype = joint.weight.device, joint.weight.dtype
        self._window = window
        self._windows: dict[int, int] = {}

    def window(self, batch: int) -> int:
        """Frames judged at once in a batch of this size; 0 where the kernel cannot decode it."""
        if batch not in self._windows:
            most = best_window(batch, self._dtype)
            wanted = range(most, 0, -1) if self._window is None else (self._window,)
            self._windows[batch] = next((w for w in wanted if self._scratch_bytes(batch, w) > 0), 0)
        return self._windows[batch]

    def fits(self, batch: int) -> bool:
        """Whether the kernel can decode a batch of this size."""
        return self.window(batch) > 0

    def _scratch_bytes(self, batch: int, window: int) -> int:
        predictor, durations = self._predictor, self._rules.durations
        return ops.greedy_resident_bytes(
            self._joint.weight, predictor.kind, predictor.weights, batch, len(durations), window
        )

    def prepare(self, start: DecodeState) -> None:
        """Make ready what every call reads, and wait for it: calls may come on any stream.

        start: the state of one utterance that has not begun; what most calls start from costs them nothing.
        """
        joint, rules, predictor = self._joint, self._rules, self._predictor
        self._start = start
        self._network = ops.pack_network(
            joint.encoder_weight,
            joint.encoder_bias,
            joint.weight,
            joint.bias,
            joint.activation,
            rules.blank_id,
            rules.durations,
            rules.max_symbols,
            predictor.kind,
            predictor.weights,
            predictor.gate_table if predictor.kind == "lstm" else None,
            start.tensors,
        )
        torch.cuda.current_stream(self._device).synchronize()

    def __call__(
        self, encoder_output: Tensor, lengths: Tensor, state: DecodeState, copy: bool
    ) -> DecodeResult:
        """Decode a batch that fits, on the current device's current stream."""
        batch, frames, _ = encoder_output.shape
        if encoder_output.dtype != self._dtype or not encoder_output.is_contiguous():
            encoder_output = encoder_output.to(self._dtype).contiguous()
        carried = () if state is self._start else state.tensors
        likely = batch * frames
        try:
            labels, host_labels, tensors = ops.greedy_decode(
                encoder_output,
                lengths,
                carried,
                self.window(batch),
                self._network,
                batch + likely if copy else 0,
            )
        except RuntimeError:
            self._raise_if_memory_is_short(batch, frames)
            raise
        ready = torch.cuda.Event()
        ready.record()
        packed = PackedLabels(labels, batch, likely, frames, ready, host_labels if copy else None)
        return DecodeResult(packed, DecodeState.of(tensors, state.batch_dims), self.path)

    def _raise_if_memory_is_short(self, batch: int, frames: int) -> None:
        """An op cannot raise torch.OutOfMemoryError: ask for all of a call's memory in a way that can."""
        projected = batch * frames * self._joint.weight.shape[1] * self._dtype.itemsize
        labels = 32 * batch * frames * self._rules.max_symbols
        needed = projected + labels + self._scratch_bytes(batch, self.window(batch))
        torch.empty(needed, dtype=torch.uint8, device=self._device)
