"""The buffers of the greedy loop for a capacity of B rows and T frames, and the op that works on them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .rules import GreedyRules
from .state import DecodeState
from .weights import JointWeights, PredictorWeights

# Words of one partial result of the joint, how many results the CUDA kernel likes to have for each
# multiprocessor, and of how many columns one is where there are many rows.
PARTIAL_WORDS = 5
PARTIALS_PER_MULTIPROCESSOR = 192
PARTIAL_COLUMNS = 128


def loop_workspace(predictor: PredictorWeights, columns: int, batch: int, window: int) -> list[Tensor]:
    """Scratch tensors of `ops.greedy_rounds_` for a joint of so many columns: none on the CPU."""
    first = predictor.weights[0]
    if first.device.type == "cpu":
        return []
    multiprocessors = torch.cuda.get_device_properties(first.device).multi_processor_count
    splits = -(-columns // PARTIAL_COLUMNS)
    partials = batch * window * (1 + splits) + PARTIALS_PER_MULTIPROCESSOR * multiprocessors
    sizes = (batch, PARTIAL_WORDS * partials)
    workspace = [first.new_zeros(size, dtype=torch.int32) for size in sizes]
    if predictor.kind in ("lstm", "gru") and first.dtype != torch.float32:
        gates = first.new_zeros(len(predictor.weights[1]), batch, first.shape[1], 4, dtype=torch.float32)
        workspace += [predictor.gate_table, gates]
    return workspace


class LoopBuffers:
    """Everything the greedy loop reads and writes, allocated once.

    Memory, with C = T * max_symbols: B * T * J elements of the weights' dtype for the encoder, 16 * B * C
    bytes for the results, 2 * L * B * H elements for the state of an LSTM or a GRU, 4 * L * B * H bytes for
    an LSTM's cells, B * J elements for the predictor's output, and on a GPU 20 * (B * W * (1 + (V + N) / 128)
    + 192 * multiprocessors) bytes of scratch; for an LSTM or a GRU of 16-bit elements 16 * L * B * H more.
    """

    def __init__(
        self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules, batch: int, frames: int
    ) -> None:
        self.predictor, self.joint, self.rules = predictor, joint, rules
        self.batch, self.frames = batch, frames
        weight = joint.weight
        device = weight.device
        capacity = frames * rules.max_symbols
        self.encoder = weight.new_empty(batch, frames, weight.shape[1])
        self._encoder_rows = self.encoder.view(-1, weight.shape[1])
        self._encoder_weight = joint.encoder_weight.t()
        self.predictor_state = predictor.zero_state(batch, rules.blank_id)
        self.predictor_output = weight.new_zeros(batch, weight.shape[1])
        # What lasts from call to call, and the dimension of its rows.
        self._batch_dims = (*predictor.batch_dims, 0)
        self._lasting = [*self.predictor_state[: len(predictor.batch_dims)], self.predictor_output]
        self.lengths, self.times, self.symbols, self.counts = (
            torch.zeros(batch, dtype=torch.int32, device=device) for _ in range(4)
        )
        self.tokens, self.token_frames, self.token_durations = (
            torch.empty(batch, capacity, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.log_probs = torch.empty(batch, capacity, dtype=torch.float32, device=device)
        self.active = torch.zeros(1, dtype=torch.int32, device=device)
        self.workspace = loop_workspace(predictor, weight.shape[0], batch, rules.window)

    def load(self, encoder_output: Tensor, lengths: Tensor, state: DecodeState) -> None:
        """Put a batch into the first rows; the other rows have no frames.

        encoder_output: [B, T, D] floating point. lengths: [B], limited to 0 .. T. state: of B rows, or of one
        that all rows start from.
        """
        self._project(encoder_output)
        ops.load_rows_(
            lengths,
            state.time_jumps,
            (*state.predictor, state.output),
            self._batch_dims,
            encoder_output.shape[1],
            self.lengths,
            self.times,
            self.symbols,
            self.counts,
            self._lasting,
        )

    def _project(self, encoder_output: Tensor) -> None:
        """The joint's encoder projection, into the buffer. Autocast leaves ops with `out` alone."""
        batch, frames, width = encoder_output.shape
        rows = encoder_output.to(self.encoder.dtype).reshape(-1, width)
        in_place = frames == self.frames
        out = (
            self._encoder_rows[: batch * frames]
            if in_place
            else rows.new_empty(len(rows), self.encoder.shape[2])
        )
        if self.joint.encoder_bias is None:
            torch.mm(rows, self._encoder_weight, out=out)
        else:
            torch.addmm(self.joint.encoder_bias, rows, self._encoder_weight, out=out)
        if not in_place:
            self.encoder[:batch, :frames].copy_(out.view(batch, frames, -1))

    def run_rounds(self, rounds: int, condition: int = 0) -> None:
        """`ops.greedy_rounds_` on these buffers."""
        joint, rules = self.joint, self.rules
        ops.greedy_rounds_(
            self.encoder,
            self.lengths,
            joint.weight,
            joint.bias,
            joint.activation,
            rules.blank_id,
            list(rules.durations),
            rules.max_symbols,
            rules.window,
            rounds,
            self.predictor.kind,
            self.predictor.weights,
            self.predictor_state,
            self.predictor_output,
            self.times,
            self.symbols,
            self.tokens,
            self.token_frames,
            self.token_durations,
            self.log_probs,
            self.counts,
            self.active,
            self.workspace,
            condition,
        )

    def labels(self, lengths: Tensor, state: DecodeState, room: int) -> Tensor:
        """`ops.pack_labels` of the first rows; lengths [B] and the state as they were loaded."""
        return ops.pack_labels(
            self.tokens,
            self.token_frames,
            self.token_durations,
            self.log_probs,
            self.counts,
            lengths,
            state.decoded_lengths,
            room,
        )

    def state(self, batch: int, decoded_lengths: Tensor) -> DecodeState:
        """A copy of the state of the first rows; decoded_lengths [B] or [1] as it was before this chunk."""
        tensors = ops.save_rows(
            self._lasting, self._batch_dims, self.times, self.lengths, decoded_lengths, batch
        )
        return DecodeState.of(tensors, self.predictor.batch_dims)
