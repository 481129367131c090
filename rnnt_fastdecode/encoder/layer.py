"""A FastConformer layer: half feed-forward, attention, convolution, half feed-forward (arXiv 2005.08100)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import RelPositionAttention
from .config import FastConformerConfig
from .convolution import Conv1d


class FeedForward(nn.Module):
    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.d_ff, bias=config.use_bias)
        self.linear2 = nn.Linear(config.d_ff, config.d_model, bias=config.use_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.silu(self.linear1(x))))


class Convolution(nn.Module):
    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        width, taps = config.d_model, config.conv_kernel
        self.padding = (taps - 1, 0) if config.causal_conv else ((taps - 1) // 2, (taps - 1) // 2)
        self.pointwise1 = Conv1d(width, 2 * width, 1, bias=config.use_bias)
        self.depthwise = Conv1d(width, width, taps, groups=width, bias=config.use_bias)
        self.norm = nn.BatchNorm1d(width) if config.conv_norm == "batch_norm" else nn.LayerNorm(width)
        self.pointwise2 = Conv1d(width, width, 1, bias=config.use_bias)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, D]; valid [B, T] bool: padding frames enter the depthwise convolution as zeros."""
        x = F.glu(self.pointwise1(x.transpose(1, 2)), dim=1)
        x = self.depthwise(F.pad(x.masked_fill(~valid.unsqueeze(1), 0.0), self.padding))
        if isinstance(self.norm, nn.LayerNorm):
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        else:
            x = self.norm(x)
        return self.pointwise2(F.silu(x)).transpose(1, 2)


class FastConformerLayer(nn.Module):
    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.norm_feed_forward1 = nn.LayerNorm(width)
        self.feed_forward1 = FeedForward(config)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RelPositionAttention(config)
        self.norm_conv = nn.LayerNorm(width)
        self.conv = Convolution(config)
        self.norm_feed_forward2 = nn.LayerNorm(width)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        x = x + 0.5 * self.dropout(self.feed_forward1(self.norm_feed_forward1(x)))
        x = x + self.dropout(self.attention(self.norm_attention(x), positions, visible))
        x = x + self.dropout(self.conv(self.norm_conv(x), valid))
        x = x + 0.5 * self.dropout(self.feed_forward2(self.norm_feed_forward2(x)))
        return self.norm_out(x)
