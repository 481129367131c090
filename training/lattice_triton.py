"""The transducer lattice of `losses` in Triton: one program a row, one anti-diagonal n = t + u at a time.

A program holds u in its lanes and walks n upwards (alpha) or downwards (beta, and with it the gradient: the
posterior of every edge). Diagonals pass through global memory; the barrier after each shows them to the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

IMPOSSIBLE = tl.constexpr(-1e30)


@triton.jit
def _log_add(a, b):
    high = tl.maximum(a, b)
    return high + tl.log(1.0 + tl.exp(tl.minimum(a, b) - high))


@triton.jit
def _alpha_kernel(
    blank, label, frames, labels, alpha, likelihood, time, width,
    NUM_BLANK: tl.constexpr, NUM_LABEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    num_frames = tl.load(frames + row).to(tl.int32)
    num_labels = tl.load(labels + row).to(tl.int32)
    u = tl.arange(0, BLOCK)
    alpha += row.to(tl.int64) * (time + 1) * width
    blank += row.to(tl.int64) * time * width * NUM_BLANK
    label += row.to(tl.int64) * time * width * NUM_LABEL
    tl.store(alpha + u, tl.where(u == 0, 0.0, IMPOSSIBLE), mask=u == 0)
    tl.debug_barrier()
    for n in range(1, num_frames + num_labels + 1):
        t = n - u
        node = (t >= 0) & (t <= num_frames) & (u <= num_labels)
        value = tl.full((BLOCK,), IMPOSSIBLE, tl.float32)
        for d in tl.static_range(1, NUM_BLANK + 1):
            source = (t - d) * width + u
            open_ = node & (t - d >= 0)
            before = tl.load(alpha + source, mask=open_, other=IMPOSSIBLE)
            edge = tl.load(blank + source * NUM_BLANK + d - 1, mask=open_, other=0.0)
            value = _log_add(value, before + edge)
        for d in tl.static_range(NUM_LABEL):
            source = (t - d) * width + u - 1
            open_ = node & (t - d >= 0) & (t - d < num_frames) & (u >= 1)
            before = tl.load(alpha + source, mask=open_, other=IMPOSSIBLE)
            edge = tl.load(label + source * NUM_LABEL + d, mask=open_, other=0.0)
            value = _log_add(value, before + edge)
        tl.store(alpha + t * width + u, tl.maximum(value, IMPOSSIBLE), mask=node)
        tl.debug_barrier()
    tl.store(likelihood + row, tl.load(alpha + num_frames * width + num_labels))


@triton.jit
def _beta_kernel(
    blank, label, frames, labels, alpha, likelihood, upstream, beta, blank_grad, label_grad, time, width,
    NUM_BLANK: tl.constexpr, NUM_LABEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    num_frames = tl.load(frames + row).to(tl.int32)
    num_labels = tl.load(labels + row).to(tl.int32)
    total = tl.load(likelihood + row)
    scale = tl.where(total > IMPOSSIBLE / 2, tl.load(upstream + row), 0.0)
    u = tl.arange(0, BLOCK)
    alpha += row.to(tl.int64) * (time + 1) * width
    beta += row.to(tl.int64) * (time + 1) * width
    blank += row.to(tl.int64) * time * width * NUM_BLANK
    label += row.to(tl.int64) * time * width * NUM_LABEL
    blank_grad += row.to(tl.int64) * time * width * NUM_BLANK
    label_grad += row.to(tl.int64) * time * width * NUM_LABEL
    last = num_frames + num_labels
    tl.store(beta + num_frames * width + u, tl.where(u == num_labels, 0.0, IMPOSSIBLE), mask=u <= num_labels)
    tl.debug_barrier()
    for step in range(1, last + 1):
        t = last - step - u
        node = (t >= 0) & (t < num_frames) & (u <= num_labels)
        here = t * width + u
        before = tl.load(alpha + here, mask=node, other=IMPOSSIBLE) - total
        value = tl.full((BLOCK,), IMPOSSIBLE, tl.float32)
        for d in tl.static_range(1, NUM_BLANK + 1):
            inside = node & (t + d <= num_frames)
            after = tl.load(beta + here + d * width, mask=inside, other=IMPOSSIBLE)
            after += tl.load(blank + here * NUM_BLANK + d - 1, mask=inside, other=0.0)
            tl.store(
                blank_grad + here * NUM_BLANK + d - 1,
                scale * tl.exp(tl.minimum(before + after, 0.0)),
                mask=inside,
            )
            value = _log_add(value, after)
        for d in tl.static_range(NUM_LABEL):
            inside = node & (t + d <= num_frames) & (u < num_labels)
            after = tl.load(beta + here + d * width + 1, mask=inside, other=IMPOSSIBLE)
            after += tl.load(label + here * NUM_LABEL + d, mask=inside, other=0.0)
            tl.store(
                label_grad + here * NUM_LABEL + d,
                scale * tl.exp(tl.minimum(before + after, 0.0)),
                mask=inside,
            )
            value = _log_add(value, after)
        tl.store(beta + here, tl.maximum(value, IMPOSSIBLE), mask=node)
        tl.debug_barrier()


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        blank, label = blank.contiguous(), label.contiguous()
        batch, time, width, num_blank = blank.shape
        alpha = torch.empty(batch, time + 1, width, device=blank.device, dtype=torch.float32)
        likelihood = torch.empty(batch, device=blank.device, dtype=torch.float32)
        block = max(16, triton.next_power_of_2(width))
        _alpha_kernel[(batch,)](
            blank, label, frames, labels, alpha, likelihood, time, width,
            num_blank, label.shape[-1], block, num_warps=max(1, min(4, block // 32)),
        )  # fmt: skip
        ctx.save_for_backward(blank, label, frames, labels, alpha, likelihood)
        return likelihood

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        blank, label, frames, labels, alpha, likelihood = ctx.saved_tensors
        batch, time, width, num_blank = blank.shape
        beta = torch.empty_like(alpha)
        blank_grad, label_grad = torch.zeros_like(blank), torch.zeros_like(label)
        block = max(16, triton.next_power_of_2(width))
        _beta_kernel[(batch,)](
            blank, label, frames, labels, alpha, likelihood, upstream.contiguous(), beta, blank_grad,
            label_grad, time, width, num_blank, label.shape[-1], block, num_warps=max(1, min(4, block // 32)),
        )  # fmt: skip
        return blank_grad, label_grad, None, None


def log_likelihood(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """As `losses.lattice_log_likelihood`, fp32 on a GPU: [B]."""
    return _LogLikelihood.apply(blank.float(), label.float(), frames, labels)
