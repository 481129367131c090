"""What defines a FastConformer, and what of it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError

Context = tuple[int, int]


@dataclass(frozen=True)
class FastConformerConfig:
    """Shape and behaviour of a FastConformer encoder (arXiv 2305.05084), subsampling by 8.

    Attributes
    ----------
    feat_in: mel bins F.
    d_model, num_layers, num_heads, d_ff: width D, layers L, attention heads, feed-forward width.
    conv_kernel: taps of the depthwise convolution of a layer.
    subsampling_channels: channels of the three strided convolutions.
    causal_subsampling: pad the strided convolutions by (2, 1) instead of (1, 1), in time and in frequency.
    conv_norm: "batch_norm" or "layer_norm" after the depthwise convolution.
    causal_conv: the depthwise convolution sees no frame to the right.
    use_bias: biases in the linear and convolution layers of the encoder layers.
    xscaling: multiply the subsampled features by sqrt(d_model).
    context_style: "regular" (frame i sees i-left .. i+right) or "chunked_limited" (chunks of right+1 frames,
        each sees itself and left // (right + 1) chunks before it).
    contexts: the (left, right) attention contexts the weights were trained for, in encoder frames,
        -1 = unlimited; the first is the default.
    dropout: probability used in training only.
    """

    feat_in: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    conv_kernel: int = 9
    subsampling_channels: int = 256
    causal_subsampling: bool = False
    conv_norm: str = "batch_norm"
    causal_conv: bool = False
    use_bias: bool = True
    xscaling: bool = False
    context_style: str = "regular"
    contexts: tuple[Context, ...] = ((-1, -1),)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", tuple((int(left), int(right)) for left, right in self.contexts))
        for name in ("feat_in", "d_model", "num_heads", "d_ff", "conv_kernel", "subsampling_channels"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.num_heads or self.d_model % 2:
            raise ArgumentError(
                f"d_model must be even and divisible by num_heads, got {self.d_model} and {self.num_heads}"
            )
        if self.conv_kernel % 2 == 0 and not self.causal_conv:
            raise ArgumentError(f"conv_kernel must be odd unless causal_conv is set, got {self.conv_kernel}")
        if self.conv_norm not in ("batch_norm", "layer_norm"):
            raise ArgumentError(f"conv_norm must be 'batch_norm' or 'layer_norm', got {self.conv_norm!r}")
        if self.context_style not in ("regular", "chunked_limited"):
            raise ArgumentError(
                f"context_style must be 'regular' or 'chunked_limited', got {self.context_style!r}"
            )
        if not self.contexts:
            raise ArgumentError("contexts must name at least one (left, right) pair")
        for context in self.contexts:
            self.check_context(context)

    def check_context(self, context: Context) -> None:
        """Raise ArgumentError unless (left, right) is a context that this style can use."""
        left, right = context
        if left < -1 or right < -1:
            raise ArgumentError(f"context must hold frame counts or -1 for unlimited, got {context}")
        if self.context_style == "chunked_limited" and right >= 0 and left > 0 and left % (right + 1):
            raise ArgumentError(
                f"context {context}: with chunked_limited the left context must be a multiple of right + 1"
            )
