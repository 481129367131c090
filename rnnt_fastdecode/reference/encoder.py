"""FastConformer, as a specification: one utterance at a time, so that padding does not exist.

arXiv 2305.05084 (subsampling by 8), 2005.08100 (the layers), 1901.02860 (relative positions), 2312.17279
(limited contexts). `weights` is a dict of tensors by the names below, all of one floating type, which is that
of the result. T feature frames, T' encoder frames, F mel bins, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def encode(
    weights: Weights,
    features: Tensor,
    *,
    num_heads: int,
    causal_subsampling: bool,
    causal_conv: bool,
    xscaling: bool,
    context_style: str,
    context: tuple[int, int],
) -> Tensor:
    """Features [T, F] of one utterance -> [T', D].

    context: (left, right) in encoder frames, -1 = unlimited. context_style: "regular" or "chunked_limited".
    """
    if len(features) == 0:
        return features.new_zeros(0, len(weights["subsampling.out.bias"]))
    x = subsample(weights, features, causal_subsampling)
    if xscaling:
        x = x * math.sqrt(x.shape[1])
    layer = 0
    while f"layers.{layer}.norm_out.weight" in weights:
        prefix = f"layers.{layer}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        x = conformer_layer(own, x, num_heads, causal_conv, context_style, context)
        layer += 1
    return x


def subsample(weights: Weights, features: Tensor, causal: bool) -> Tensor:
    """Three convolutions of stride 2 over time and frequency, the last two depthwise, then a linear layer."""
    before, after = (2, 1) if causal else (1, 1)
    x = features[None, None]
    x = F.pad(x, (before, after, before, after))
    x = F.conv2d(
        x, weights["subsampling.conv_in.weight"], weights["subsampling.conv_in.bias"], stride=2
    ).relu()
    for stage in ("subsampling.stages.0.", "subsampling.stages.1."):
        x = F.pad(x, (before, after, before, after))
        weight, bias = weights[stage + "depthwise.weight"], weights[stage + "depthwise.bias"]
        x = F.conv2d(x, weight, bias, stride=2, groups=len(weight))
        x = F.conv2d(x, weights[stage + "pointwise.weight"], weights[stage + "pointwise.bias"]).relu()
    _, channels, frames, bins = x.shape
    x = x[0].transpose(0, 1).reshape(frames, channels * bins)
    return F.linear(x, weights["subsampling.out.weight"], weights["subsampling.out.bias"])


def conformer_layer(
    weights: Weights, x: Tensor, num_heads: int, causal_conv: bool, style: str, context: tuple[int, int]
) -> Tensor:
    """[T', D] -> [T', D]."""
    x = x + 0.5 * feed_forward(weights, "feed_forward1.", layer_norm(weights, "norm_feed_forward1.", x))
    x = x + attention(weights, layer_norm(weights, "norm_attention.", x), num_heads, style, context)
    x = x + convolution(weights, layer_norm(weights, "norm_conv.", x), causal_conv)
    x = x + 0.5 * feed_forward(weights, "feed_forward2.", layer_norm(weights, "norm_feed_forward2.", x))
    return layer_norm(weights, "norm_out.", x)


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name + "weight"], weights[name + "bias"], eps=1e-5)


def feed_forward(weights: Weights, name: str, x: Tensor) -> Tensor:
    hidden = F.linear(x, weights[name + "linear1.weight"], weights.get(name + "linear1.bias"))
    return F.linear(F.silu(hidden), weights[name + "linear2.weight"], weights.get(name + "linear2.bias"))


def sees(frame: int, other: int, style: str, context: tuple[int, int]) -> bool:
    """Whether `frame` may attend to `other`."""
    left, right = context
    if style == "chunked_limited" and right >= 0:
        # A chunk is as long as its first frame looks ahead; the left context counts in whole chunks.
        chunk, other_chunk = frame // (right + 1), other // (right + 1)
        return other_chunk <= chunk and (left < 0 or chunk - other_chunk <= left // (right + 1))
    return (left < 0 or frame - other <= left) and (right < 0 or other - frame <= right)


def position_embedding(distance: int, width: int, like: Tensor) -> Tensor:
    """[D] sines and cosines, interleaved, of a distance in frames (positive: the other frame is earlier)."""
    angles = distance / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=1).flatten().to(like)


def attention(weights: Weights, x: Tensor, num_heads: int, style: str, context: tuple[int, int]) -> Tensor:
    """score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_(i - j)) / sqrt(head width), over the j that i sees."""
    frames, width = x.shape
    size = width // num_heads

    def heads(name: str, values: Tensor) -> Tensor:
        projected = F.linear(
            values, weights[f"attention.{name}.weight"], weights.get(f"attention.{name}.bias")
        )
        return projected.reshape(-1, num_heads, size)

    query, key, value = heads("query", x), heads("key", x), heads("value", x)
    mixed = torch.zeros_like(value)
    for i in range(frames):
        visible = [j for j in range(frames) if sees(i, j, style, context)]
        embedded = torch.stack([position_embedding(i - j, width, x) for j in visible])
        position = heads("position", embedded)
        for head in range(num_heads):
            by_content = key[visible, head] @ (query[i, head] + weights["attention.bias_u"][head])
            by_distance = position[:, head] @ (query[i, head] + weights["attention.bias_v"][head])
            share = torch.softmax((by_content + by_distance) / math.sqrt(size), dim=0)
            mixed[i, head] = share @ value[visible, head]
    return F.linear(mixed.flatten(1), weights["attention.out.weight"], weights.get("attention.out.bias"))


def convolution(weights: Weights, x: Tensor, causal: bool) -> Tensor:
    """Gated pointwise, depthwise over time, batch statistics or layer normalisation, SiLU, pointwise."""

    def conv(name: str, values: Tensor, groups: int = 1) -> Tensor:
        return F.conv1d(
            values, weights[f"conv.{name}.weight"], weights.get(f"conv.{name}.bias"), groups=groups
        )

    gated = F.glu(conv("pointwise1", x.T[None]), dim=1)
    taps = weights["conv.depthwise.weight"].shape[2]
    padding = (taps - 1, 0) if causal else ((taps - 1) // 2, (taps - 1) // 2)
    mixed = conv("depthwise", F.pad(gated, padding), groups=x.shape[1])[0].T
    if "conv.norm.running_mean" in weights:
        deviation = (weights["conv.norm.running_var"] + 1e-5).sqrt()
        mixed = (mixed - weights["conv.norm.running_mean"]) / deviation
        mixed = mixed * weights["conv.norm.weight"] + weights["conv.norm.bias"]
    else:
        mixed = layer_norm(weights, "conv.norm.", mixed)
    return conv("pointwise2", F.silu(mixed).T[None])[0].T
