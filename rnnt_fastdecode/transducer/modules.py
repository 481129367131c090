"""Prediction networks and joint as plain torch modules: what checkpoints fill and what training optimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ArgumentError

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


class LstmPredictor(nn.Module):
    """Embedding, LSTM layers of the same width, projection to the joint (arXiv 1211.3711).

    Start of sequence is one step of the label `blank_id` from a zero state. Checkpoints whose blank embedding
    is padding hold a zero row there.
    """

    def __init__(self, vocab_size: int, hidden: int, num_layers: int, joint_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers, batch_first=True)
        self.projection = nn.Linear(hidden, joint_width)

    def forward(self, labels: Tensor) -> Tensor:
        """Teacher forcing: labels [B, U] int64, of which the first is blank -> [B, U, J]."""
        return self.projection(self.lstm(self.embedding(labels))[0])


class GruPredictor(nn.Module):
    """Embedding, GRU layers of the same width, projection to the joint (arXiv 1406.1078).

    Start of sequence is one step of the label `blank_id` from a zero state, as for `LstmPredictor`. The GRU
    is torch's: the reset gate acts after the hidden state's matrix product.
    """

    def __init__(self, vocab_size: int, hidden: int, num_layers: int, joint_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.gru = nn.GRU(hidden, hidden, num_layers, batch_first=True)
        self.projection = nn.Linear(hidden, joint_width)

    def forward(self, labels: Tensor) -> Tensor:
        """Teacher forcing: labels [B, U] int64, of which the first is blank -> [B, U, J]."""
        return self.projection(self.gru(self.embedding(labels))[0])


class StatelessPredictor(nn.Module):
    """One embedding table per context position, their sum, optional ReLU, projection to the joint.

    A concatenation of embeddings is such a sum with tables that are zero outside their own columns; an
    embedding followed by a convolution over the context is one with the convolution folded into the tables.
    Ghodsi et al., "RNN-Transducer with Stateless Prediction Network", 2020.
    """

    def __init__(
        self, vocab_size: int, hidden: int, context: int, joint_width: int, activation: str | None = None
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ArgumentError(f"activation must be None or 'relu', got {activation!r}")
        if context < 1:
            raise ArgumentError(f"context must be at least 1 label, got {context}")
        self.activation = activation
        self.tables = nn.Parameter(torch.randn(context, vocab_size, hidden))
        self.projection = nn.Linear(hidden, joint_width)

    def forward(self, labels: Tensor) -> Tensor:
        """Teacher forcing: labels [B, U] int64 that start with blank -> [B, U, J]; before them, all blank."""
        context = self.tables.shape[0]
        padded = torch.cat((labels[:, :1].expand(-1, context - 1), labels), dim=1)
        frames = labels.shape[1]
        history = [self.tables[k][padded[:, context - 1 - k :][:, :frames]] for k in range(context)]
        mixed = torch.stack(history).sum(dim=0)
        return self.projection(torch.relu(mixed) if self.activation == "relu" else mixed)


class Joint(nn.Module):
    """logits = output(activation(encoder_projection(encoder) + predictor)): tokens first, then durations."""

    def __init__(
        self,
        encoder_width: int,
        joint_width: int,
        vocab_size: int,
        num_durations: int = 0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ArgumentError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.encoder_projection = nn.Linear(encoder_width, joint_width)
        self.output = nn.Linear(joint_width, vocab_size + num_durations)

    def forward(self, projected_encoder: Tensor, projected_predictor: Tensor) -> Tensor:
        """Two broadcastable [.., J] tensors -> logits [.., V + N]."""
        return self.output(ACTIVATIONS[self.activation](projected_encoder + projected_predictor))


class TransducerHead(nn.Module):
    """A predictor, a joint and the rules to decode them: RNN-T, or TDT (arXiv 2304.06795)."""

    def __init__(
        self,
        predictor: LstmPredictor | GruPredictor | StatelessPredictor,
        joint: Joint,
        blank_id: int,
        durations: Sequence[int] = (),
        max_symbols: int = 10,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.joint = joint
        self.blank_id = blank_id
        self.durations = tuple(durations)
        self.max_symbols = max_symbols


class CtcHead(nn.Module):
    """A linear layer over the encoder output: [.., D] -> logits [.., V]."""

    def __init__(self, encoder_width: int, vocab_size: int, blank_id: int) -> None:
        super().__init__()
        self.blank_id = blank_id
        self.output = nn.Linear(encoder_width, vocab_size)

    def forward(self, encoded: Tensor) -> Tensor:
        return self.output(encoded)
