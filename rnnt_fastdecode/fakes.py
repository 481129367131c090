"""Fake kernels: what the ops return, for `torch.compile`; op_libraries.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _joint_argmax(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    times: Tensor,
    lengths: Tensor,
    window: int,
    num_durations: int,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (times.shape[0], window)
    return times.new_empty(shape), times.new_empty(shape), times.new_empty(shape, dtype=torch.float32)


def _save_rows(
    state: list[Tensor],
    batch_dims: list[int],
    times: Tensor,
    row_lengths: Tensor,
    decoded_lengths: Tensor,
    batch: int,
) -> list[Tensor]:
    copies = [
        tensor.new_empty([batch if d == dim else size for d, size in enumerate(tensor.shape)])
        for tensor, dim in zip(state, batch_dims, strict=True)
    ]
    return [*copies, times.new_empty(batch), decoded_lengths.new_empty(batch)]


def _pack_labels(
    tokens: Tensor,
    frames: Tensor,
    token_durations: Tensor,
    log_probs: Tensor,
    counts: Tensor,
    lengths: Tensor,
    decoded_lengths: Tensor,
    room: int,
) -> Tensor:
    return tokens.new_empty((lengths.shape[0] + room, 4))


def _pack_network(
    encoder_weight: Tensor,
    encoder_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    num_durations: int,
    predictor_kind: str,
    predictor_weights: list[Tensor],
    gate_table: Tensor | None,
    start: list[Tensor],
) -> Tensor:
    parts = (encoder_weight, encoder_bias, weight, bias, *predictor_weights, gate_table, *start)
    sizes = [part.numel() * part.element_size() for part in parts if part is not None]
    return weight.new_empty(sum(-(-size // 256) * 256 for size in sizes), dtype=torch.uint8)


def _greedy_decode(
    encoder_output: Tensor,
    lengths: Tensor,
    state: list[Tensor],
    window: int,
    network: Tensor,
    numbers: list[int],
    host_records: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    batch, frames = encoder_output.shape[:2]
    _, kind, _, _, joint_width, _, width, depth, _, _, _, max_symbols, *_ = numbers

    def empty(*shape: int, dtype: torch.dtype = encoder_output.dtype) -> Tensor:
        return encoder_output.new_empty(shape, dtype=dtype)

    labels = empty(batch + batch * frames * max_symbols, 4, dtype=torch.int32)
    if kind > 1:
        carried = [empty(batch, depth - 1, dtype=torch.int32)]
    else:
        carried = [empty(depth, batch, width)]
        carried += [empty(depth, batch, width, dtype=torch.float32)] if kind == 0 else []
    counters = empty(batch, dtype=torch.int32), empty(batch, dtype=torch.int64)
    host_labels = torch.empty(host_records, 4, dtype=torch.int32)
    return labels, host_labels, [*carried, empty(batch, joint_width), *counters]


def _in_place(*_arguments: Any, **_keywords: Any) -> None:
    """In-place ops have no results."""


def register() -> None:
    """Make them known to torch; the op library must have been loaded."""
    results: dict[str, Callable[..., Any]] = {
        "joint_argmax": _joint_argmax,
        "save_rows": _save_rows,
        "pack_labels": _pack_labels,
        "pack_network": _pack_network,
        "greedy_decode": _greedy_decode,
    }
    in_place = ("predictor_step_", "kv_cache_update_", "greedy_rounds_", "load_rows_")
    for name, fake in results.items():
        torch.library.register_fake(f"rnnt_fastdecode::{name}", fake)
    for name in in_place:
        torch.library.register_fake(f"rnnt_fastdecode::{name}", _in_place)
