"""Convolutions that are quick in float16 on a CPU too.

Few CPUs multiply float16, and PyTorch's substitute for a convolution is ten times slower than float32. So
there the convolution runs in float32 and its result is rounded: more exact, and of the same type.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv1d(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_slow(x):
            return super()._conv_forward(x, weight, bias)
        wide = None if bias is None else bias.float()
        return super()._conv_forward(x.float(), weight.float(), wide).half()


class Conv2d(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_slow(x):
            return super()._conv_forward(x, weight, bias)
        wide = None if bias is None else bias.float()
        return super()._conv_forward(x.float(), weight.float(), wide).half()


def _is_slow(x: Tensor) -> bool:
    return x.dtype == torch.float16 and x.device.type == "cpu"
