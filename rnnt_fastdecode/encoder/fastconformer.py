"""The FastConformer encoder, offline: the whole utterance at once, with any attention context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .attention import context_mask, relative_positions
from .config import Context, FastConformerConfig
from .layer import FastConformerLayer
from .subsampling import Subsampling


class FastConformer(nn.Module):
    """FastConformer (arXiv 2305.05084) with subsampling by 8 and relative positions."""

    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(FastConformerLayer(config) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, features: Tensor, lengths: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode a batch of utterances.

        Parameters
        ----------
        features: [B, T, F] log-mel features in the dtype of the weights; frames beyond `lengths` are ignored.
        lengths: [B] int64, valid feature frames of each row, 0 <= lengths <= T.
        context: (left, right) attention context in encoder frames, -1 = unlimited; None = the first of
            `config.contexts`.

        Returns
        -------
        encoded: [B, T', D]; frames beyond a row's length are undefined.
        lengths: [B] int64, valid encoder frames.

        Raises
        ------
        ArgumentError: wrong shape, dtype or context.
        """
        config = self.config
        if features.ndim != 3 or features.shape[2] != config.feat_in:
            raise ArgumentError(f"features must be [B, T, {config.feat_in}], got {list(features.shape)}")
        if lengths.shape != features.shape[:1] or lengths.dtype != torch.int64:
            raise ArgumentError(
                f"lengths must be [{features.shape[0]}] int64, got {list(lengths.shape)} {lengths.dtype}"
            )
        if context is None:
            context = config.contexts[0]
        config.check_context(context)
        if features.shape[0] == 0 or features.shape[1] == 0:
            return features.new_zeros(features.shape[0], 0, config.d_model), torch.zeros_like(lengths)

        x, lengths = self.subsampling(features, lengths)
        frames = x.shape[1]
        valid = torch.arange(frames, device=x.device) < lengths.unsqueeze(1)
        visible = context_mask(frames, context, config.context_style, x.device) & valid.unsqueeze(1)
        positions = relative_positions(frames, config.d_model, x.device, x.dtype)
        x = self.dropout(x * math.sqrt(config.d_model) if config.xscaling else x)
        positions = self.dropout(positions)
        for layer in self.layers:
            x = layer(x, positions, visible.unsqueeze(1), valid)
        return x, lengths
