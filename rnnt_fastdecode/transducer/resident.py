"""The whole loop as one cooperative kernel: every block keeps its share of the weights in shared memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .loop import LoopBuffers
from .weights import JointWeights, PredictorWeights

# Labels whose input gates are computed at once, in float64.
TABLE_PART = 2048
# The largest batch for which this kernel is measured to be faster than a graph of masked rounds.
MOST_ROWS = {torch.float32: 256, torch.bfloat16: 192, torch.float16: 192}


def best_window(batch: int, dtype: torch.dtype) -> int:
    """Frames to judge at once, as measured: many while tiles have room, few where float32 products bind."""
    if dtype == torch.float32:
        return 8 if batch <= 24 else 4
    return 8 if batch < 8 else 6


def gate_table(predictor: PredictorWeights) -> Tensor:
    """[V, H, 4] float32: what every label adds to the gates i, f, g, o of layer 0, with the biases.

    Empty for a stateless predictor. Computed in float64, which no setting of TF32 touches.
    """
    first = predictor.weights[0]
    if predictor.kind != "lstm":
        return first.new_zeros(0, first.shape[2], 4, dtype=torch.float32)
    _, weight, bias, *_ = predictor.weights
    vocab_size, width = first.shape
    input_weight = weight[0, :, :width].double().t()
    table = first.new_empty(vocab_size, width, 4, dtype=torch.float32)
    for part, labels in zip(table.split(TABLE_PART), first.split(TABLE_PART), strict=True):
        gates = labels.double() @ input_weight + bias[0].double()
        part.copy_(gates.view(len(labels), 4, width).transpose(1, 2))
    return table


class ResidentLoop:
    """Decodes with the resident kernel, where the weights fit the device.

    Memory: 16 * V * H bytes for the table of input gates (LSTM), and scratch: about 3 MB, in fp32 6 MB.
    """

    def __init__(self, predictor: PredictorWeights, joint: JointWeights, num_durations: int) -> None:
        self._predictor, self._joint, self._num_durations = predictor, joint, num_durations
        self._table: Tensor | None = None
        self._scratch: Tensor | None = None
        self._bytes: dict[tuple[int, int], int] = {}

    def scratch_bytes(self, batch: int, window: int) -> int:
        """Bytes of scratch for a batch; 0 where the kernel cannot run."""
        shape = (batch, window)
        if shape not in self._bytes:
            predictor = self._predictor
            self._bytes[shape] = ops.greedy_resident_bytes(
                self._joint.weight, predictor.kind, predictor.weights, batch, self._num_durations, window
            )
        return self._bytes[shape]

    def reserve(self, batch: int, window: int, finished: torch.cuda.Event) -> bool:
        """Make ready for a batch; False where the kernel cannot run. finished: the end of the last call."""
        needed = self.scratch_bytes(batch, window)
        if needed == 0:
            return False
        if self._table is None:
            self._table = gate_table(self._predictor)
        if self._scratch is None or self._scratch.numel() < needed:
            # An earlier call may still use what is about to be freed.
            finished.synchronize()
            self._scratch = self._table.new_empty(needed, dtype=torch.uint8)
        return True

    def run(self, buffers: LoopBuffers, rows: int, window: int) -> None:
        """Decode the first rows of the buffers, for which `reserve` has said True."""
        assert self._table is not None and self._scratch is not None
        buffers.run_resident(rows, window, [self._table, self._scratch])
