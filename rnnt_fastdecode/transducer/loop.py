"""The buffers of the greedy loop for a capacity of B rows and T frames, and the op that works on them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .rules import GreedyRules
from .state import DecodeState
from .weights import JointWeights, PredictorWeights

# Words of one partial result of the joint, and how many results the CUDA kernel likes to have for each
# multiprocessor.
PARTIAL_WORDS = 5
PARTIALS_PER_MULTIPROCESSOR = 16


def loop_workspace(batch: int, window: int, device: torch.device) -> list[Tensor]:
    """Scratch tensors of `ops.greedy_rounds_`: none on the CPU."""
    if device.type == "cpu":
        return []
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    partials = batch * window + PARTIALS_PER_MULTIPROCESSOR * multiprocessors
    sizes = (batch, PARTIAL_WORDS * partials)
    return [torch.zeros(size, dtype=torch.int32, device=device) for size in sizes]


class LoopBuffers:
    """Everything the greedy loop reads and writes, allocated once.

    Memory, with C = T * max_symbols: B * T * J elements of the weights' dtype for the encoder, 16 * B * C
    bytes for the results, 2 * L * B * H elements for the state of an LSTM or a GRU, 4 * L * B * H bytes for
    an LSTM's cells, B * J elements for the predictor's output, and on a GPU 20 * (B * W + 16 *
    multiprocessors) bytes of scratch.
    """

    def __init__(
        self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules, batch: int, frames: int
    ) -> None:
        self.predictor, self.joint, self.rules = predictor, joint, rules
        self.batch, self.frames = batch, frames
        weight = joint.weight
        device = weight.device
        capacity = frames * rules.max_symbols
        self.encoder = weight.new_zeros(batch, frames, weight.shape[1])
        self.predictor_state = predictor.zero_state(batch, rules.blank_id)
        self.predictor_output = weight.new_zeros(batch, weight.shape[1])
        self.lengths, self.times, self.symbols, self.counts = (
            torch.zeros(batch, dtype=torch.int32, device=device) for _ in range(4)
        )
        self.tokens, self.token_frames, self.token_durations = (
            torch.zeros(batch, capacity, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.log_probs = torch.zeros(batch, capacity, dtype=torch.float32, device=device)
        self.active = torch.zeros(1, dtype=torch.int32, device=device)
        self.workspace = loop_workspace(batch, rules.window, device)

    def load(self, encoder: Tensor, lengths: Tensor, state: DecodeState) -> None:
        """Put a batch into the first rows; the other rows have no frames. encoder [B, T, J] is projected."""
        batch, frames = encoder.shape[:2]
        self.encoder[:batch, :frames].copy_(encoder)
        self.lengths[:batch].copy_(lengths)
        self.lengths[batch:].zero_()
        self.times[:batch].copy_(state.time_jumps)
        self.predictor_output[:batch].copy_(state.output)
        for own, given, dim in zip(self.predictor_state, state.predictor, state.batch_dims, strict=True):
            own.narrow(dim, 0, batch).copy_(given)
        self.symbols.zero_()
        self.counts.zero_()

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

    def state(self, batch: int, decoded_lengths: Tensor) -> DecodeState:
        """A copy of the state of the first rows; decoded_lengths [B] as it was before this chunk."""
        dims = self.predictor.batch_dims
        pairs = zip(self.predictor_state, dims, strict=True)
        return DecodeState(
            tuple(own.narrow(dim, 0, batch).clone() for own, dim in pairs),
            dims,
            self.predictor_output[:batch].clone(),
            (self.times[:batch] - self.lengths[:batch]).clamp(min=0),
            decoded_lengths + self.lengths[:batch],
        )
