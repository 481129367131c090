"""Depthwise-separable strided convolutions: 8 feature frames in, one encoder frame out."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FastConformerConfig
from .convolution import Conv2d

KERNEL = 3
STRIDE = 2
STAGES = 3

Length = TypeVar("Length", int, Tensor)


def conv_padding(causal: bool) -> tuple[int, int]:
    """Padding before and after, the same in time and in frequency."""
    return (KERNEL - 1, STRIDE - 1) if causal else (1, 1)


def strided_length(length: Length, causal: bool) -> Length:
    """Frames after one strided convolution over `length` frames."""
    return (length + sum(conv_padding(causal)) - KERNEL) // STRIDE + 1


def subsampled_length(length: Length, causal: bool) -> Length:
    """Encoder frames for `length` feature frames; 0 feature frames give 0."""
    frames = length
    for _ in range(STAGES):
        frames = strided_length(frames, causal)
    return frames * (length > 0)


class SeparableStage(nn.Module):
    """A strided depthwise convolution and a pointwise one, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = Conv2d(channels, channels, KERNEL, STRIDE, groups=channels)
        self.pointwise = Conv2d(channels, channels, 1)

    def forward(self, padded: Tensor) -> Tensor:
        return torch.relu(self.pointwise(self.depthwise(padded)))


class Subsampling(nn.Module):
    """[B, T, F] -> [B, T/8, D]. Frames beyond a row's length are zero before every strided convolution."""

    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        self.causal = config.causal_subsampling
        channels = config.subsampling_channels
        bins = subsampled_length(config.feat_in, self.causal)
        self.conv_in = Conv2d(1, channels, KERNEL, STRIDE)
        self.stages = nn.ModuleList(SeparableStage(channels) for _ in range(STAGES - 1))
        self.out = nn.Linear(channels * bins, config.d_model)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        before, after = conv_padding(self.causal)
        pad = (before, after, before, after)
        out_lengths = subsampled_length(lengths, self.causal)

        x = self._mask(features.unsqueeze(1), lengths)
        x = torch.relu(self.conv_in(F.pad(x, pad)))
        for stage in self.stages:
            lengths = strided_length(lengths, self.causal)
            x = self._mask(x, lengths)
            x = stage(F.pad(x, pad))
        batch, channels, frames, bins = x.shape
        x = self._mask(x, out_lengths)
        return self.out(x.transpose(1, 2).reshape(batch, frames, channels * bins)), out_lengths

    @staticmethod
    def _mask(x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.shape[2], device=x.device) < lengths.unsqueeze(1)
        return x.masked_fill(~valid[:, None, :, None], 0.0)
