"""Multi-head self-attention with relative positions (arXiv 1901.02860), and the masks of its context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Context, FastConformerConfig

# Far below any score and representable in float16, so that a masked weight is exactly 0 after the softmax.
MASKED = -1e4


def relative_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sines and cosines in turn for the distances frames-1 .. -(frames-1): [2 * frames - 1, width]."""
    distance = torch.arange(frames - 1, -frames, -1, device=device, dtype=torch.float32)
    rate = torch.exp(
        torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10000.0) / width)
    )
    angle = distance.unsqueeze(1) * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).to(dtype)


def context_mask(frames: int, context: Context, style: str, device: torch.device) -> Tensor:
    """Which frame may attend to which: [frames, frames] bool, True where row i sees column j."""
    left, right = context
    index = torch.arange(frames, device=device)
    if style == "chunked_limited" and right >= 0:
        chunk = index // (right + 1)
        behind = chunk.unsqueeze(1) - chunk
        visible = behind >= 0
        return visible & (behind <= left // (right + 1)) if left >= 0 else visible
    behind = index.unsqueeze(1) - index
    visible = torch.ones(frames, frames, dtype=torch.bool, device=device)
    if left >= 0:
        visible &= behind <= left
    if right >= 0:
        visible &= behind >= -right
    return visible


def shift_to_distances(scores: Tensor) -> Tensor:
    """[.., T, 2T-1] by distance T-1 .. -(T-1) -> [.., T, T]: entry (i, j) is the one for distance i - j."""
    *lead, frames, distances = scores.shape
    padded = F.pad(scores, (1, 0)).view(*lead, distances + 1, frames)
    return padded[..., 1:, :].reshape(*lead, frames, distances)[..., :frames]


class RelPositionAttention(nn.Module):
    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        width, self.heads = config.d_model, config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(width, width, bias=config.use_bias)
        self.key = nn.Linear(width, width, bias=config.use_bias)
        self.value = nn.Linear(width, width, bias=config.use_bias)
        self.out = nn.Linear(width, width, bias=config.use_bias)
        self.position = nn.Linear(width, width, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.heads, width // self.heads))
        self.bias_v = nn.Parameter(torch.zeros(self.heads, width // self.heads))

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """x [B, T, D], positions [2T-1, D], visible [B, 1, T, T] bool -> [B, T, D]."""
        query = self._heads(self.query(x))
        key = self._heads(self.key(x))
        value = self._heads(self.value(x))
        position = self._heads(self.position(positions).unsqueeze(0))
        by_distance = (query + self.bias_v.unsqueeze(1)) @ position.transpose(-2, -1)
        bias = shift_to_distances(by_distance) * (1.0 / math.sqrt(query.shape[-1]))
        mixed = F.scaled_dot_product_attention(
            query + self.bias_u.unsqueeze(1),
            key,
            value,
            attn_mask=bias.masked_fill(~visible, MASKED),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
