"""Modules packed into the layouts that the ops read, and the state they start from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .modules import GruPredictor, Joint, LstmPredictor, StatelessPredictor

Predictor = LstmPredictor | GruPredictor | StatelessPredictor
# Labels whose input gates are computed at once, in float64.
TABLE_PART = 2048


@dataclass(frozen=True)
class PredictorWeights:
    """What the ops call `kind` and `weights`; see `ops.predictor_step_` for the layouts."""

    kind: str
    weights: list[Tensor]

    def zero_state(self, batch: int, blank_id: int) -> list[Tensor]:
        """The state before any label: zeros, or a context of blanks for a stateless predictor."""
        first = self.weights[0]
        if self.kind in ("lstm", "gru"):
            shape = (self.weights[1].shape[0], batch, first.shape[1])
            cell = [first.new_zeros(shape, dtype=torch.float32)] if self.kind == "lstm" else []
            return [first.new_zeros(shape), *cell, first.new_zeros(shape)]
        context = first.shape[0]
        return [torch.full((batch, context - 1), blank_id, dtype=torch.int32, device=first.device)]

    @property
    def batch_dims(self) -> tuple[int, ...]:
        """The batch dimension of each state tensor that lasts; the last of an LSTM or a GRU is scratch."""
        return {"lstm": (1, 1), "gru": (1,)}.get(self.kind, (0,))

    @cached_property
    def gate_table(self) -> Tensor:
        """[V, H, 4] float32: what every label adds to the sums of layer 0's units, with the biases.

        LSTM: the gates i, f, g, o. GRU: the gates r, z and the two halves of n, of which the second, over the
        hidden state, has a bias alone. Empty for a stateless predictor. Computed in float64, which no setting
        of TF32 touches.
        """
        first = self.weights[0]
        if self.kind not in ("lstm", "gru"):
            return first.new_zeros(0, first.shape[2], 4, dtype=torch.float32)
        vocab_size, width = first.shape
        input_weight, bias = self._input_sums()
        table = first.new_empty(vocab_size, width, 4, dtype=torch.float32)
        for part, labels in zip(table.split(TABLE_PART), first.split(TABLE_PART), strict=True):
            sums = labels.double() @ input_weight.t() + bias
            part.copy_(sums.view(len(labels), 4, width).transpose(1, 2))
        return table

    def _input_sums(self) -> tuple[Tensor, Tensor]:
        """The weights [4H, H] over the input and the biases [4H] of the sums of layer 0, in float64."""
        first, weight, bias = self.weights[0], self.weights[1][0].double(), self.weights[2][0].double()
        width = first.shape[1]
        if self.kind == "lstm":
            return weight[:, :width], bias
        gates, halves = bias.split((2 * width, width), dim=1)
        return (
            torch.cat([weight[0], weight.new_zeros(width, width)]),
            torch.cat([gates.sum(dim=0), halves.flatten()]),
        )


def pack_predictor(predictor: Predictor) -> PredictorWeights:
    """Copy a predictor's parameters into the layouts of `ops.predictor_step_`."""
    projection = predictor.projection
    bias = projection.bias
    if bias is None:
        bias = projection.weight.new_zeros(projection.weight.shape[0])
    if isinstance(predictor, StatelessPredictor):
        kind = "stateless_relu" if predictor.activation == "relu" else "stateless"
        return PredictorWeights(kind, _owned(predictor.tables, projection.weight, bias))
    kind = "gru" if isinstance(predictor, GruPredictor) else "lstm"
    rnn: nn.RNNBase = getattr(predictor, kind)
    if rnn.proj_size or rnn.bidirectional or rnn.input_size != rnn.hidden_size or not rnn.bias:
        raise ArgumentError(
            f"predictor.{kind} must be unidirectional with biases, no projection, "
            "and as wide as its embedding"
        )

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(rnn, f"{name}_l{layer}") for layer in range(rnn.num_layers)])

    matrices = stacked("weight_ih"), stacked("weight_hh")
    biases = stacked("bias_ih").float(), stacked("bias_hh").float()
    if kind == "gru":
        weight, gate_bias = torch.stack(matrices, dim=1), torch.stack(biases, dim=1)
    else:
        weight, gate_bias = torch.cat(matrices, dim=2), biases[0] + biases[1]
    return PredictorWeights(
        kind, _owned(predictor.embedding.weight, weight, gate_bias, projection.weight, bias)
    )


@dataclass(frozen=True)
class JointWeights:
    """encoder_weight [J, D], encoder_bias [J] or None, weight [V + N, J], bias [V + N] or None."""

    encoder_weight: Tensor
    encoder_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None
    activation: str


def pack_joint(joint: Joint) -> JointWeights:
    """Copy a joint's parameters."""
    projection, output = joint.encoder_projection, joint.output
    encoder_weight, weight = _owned(projection.weight, output.weight)
    encoder_bias = None if projection.bias is None else _owned(projection.bias)[0]
    bias = None if output.bias is None else _owned(output.bias)[0]
    return JointWeights(encoder_weight, encoder_bias, weight, bias, joint.activation)


def _owned(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
